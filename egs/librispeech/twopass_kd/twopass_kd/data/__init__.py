"""Batches out of cuts, and tokens out of texts."""
