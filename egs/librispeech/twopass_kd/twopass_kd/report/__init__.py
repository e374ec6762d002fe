"""Pages out of results; nothing here imports torch."""
