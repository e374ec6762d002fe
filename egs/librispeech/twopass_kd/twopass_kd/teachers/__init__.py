"""Trained models: our checkpoints and icefall's."""
