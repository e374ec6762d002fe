"""Results out of transcripts; nothing here imports torch."""
