"""The two-pass model, its parts and its checkpoints."""
