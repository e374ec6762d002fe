"""First-pass search and second-pass rescoring. All searches give the same n-best type."""
