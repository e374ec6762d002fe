"""Files: written whole, read with errors that say what to do, laid out in one place."""
