"""Fixtures of the tests of batches: cuts of random features."""

from random_cuts import data, data_dir

__all__ = ["data", "data_dir"]
