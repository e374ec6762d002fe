"""Two-pass end-to-end ASR model compression by distillation (arXiv 2201.02741), as a k2 recipe."""

__version__ = "0.1.0"
