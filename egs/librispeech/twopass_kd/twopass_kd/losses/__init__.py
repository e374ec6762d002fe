"""Task losses and distillation losses. All return one value per utterance, in nats."""
