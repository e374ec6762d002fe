"""The mean of what speakers and seeds both have a part in: its standard error, interval and p-value."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats

_DRAWS = 4000


@dataclass
class Crossed:
    """The mean of values that two factors have a part in, and its standard error with its degrees of freedom.

    Mean squares of the analysis of variance: `a` and `b` of the factors, `e` of what is left; `shape`: how many levels.
    """

    mean: float
    a: float
    b: float
    e: float
    shape: tuple[int, int]

    def p(self) -> float:
        """Two-sided, of a mean of zero."""
        error, freedom = _error(self.a, self.b, self.e, self.shape)
        if error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * scipy.stats.t.sf(abs(self.mean) / error, freedom))

    def interval(self) -> tuple[float, float]:
        """That has the mean with 95%."""
        error, freedom = _error(self.a, self.b, self.e, self.shape)
        half = float(scipy.stats.t.ppf(0.975, freedom) * error)
        return self.mean - half, self.mean + half

    def power(self, level: float) -> float:
        """The chance that a test at `level` calls a mean of this size different from zero, by simulation.

        Drawn are means and mean squares around those that are given; `a` and `b` may not be below `e`.
        """
        rng, count = np.random.default_rng(0), np.prod(self.shape)
        a, b, e = (
            expected * rng.chisquare(freedom, _DRAWS) / freedom if freedom else np.full(_DRAWS, expected)
            for expected, freedom in zip((self.a, self.b, self.e), _freedoms(self.shape), strict=True)
        )
        means = self.mean + math.sqrt((self.a + self.b - self.e) / count) * rng.normal(size=_DRAWS)
        error, freedom = _error(a, b, e, self.shape)
        return float((abs(means) > scipy.stats.t.isf(level / 2, freedom) * error).mean())

    def expected(self, rows: int, columns: int) -> "Crossed":
        """What so many levels of the factors would give, if the mean and what each has a part in stay as they are."""
        by_row, by_column = max(self.a - self.e, 0.0) / self.shape[1], max(self.b - self.e, 0.0) / self.shape[0]
        return Crossed(self.mean, self.e + columns * by_row, self.e + rows * by_column, self.e, (rows, columns))


def _freedoms(shape: tuple[int, int]) -> tuple[int, int, int]:
    rows, columns = shape
    return rows - 1, columns - 1, (rows - 1) * (columns - 1)


def _error(a: Any, b: Any, e: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of the mean and its degrees of freedom, of mean squares that are numbers or arrays."""
    squares, freedoms = np.stack(np.broadcast_arrays(e, a, b)), np.roll(_freedoms(shape), 1)
    largest = squares.argmax(axis=0)  # an effect that is estimated below zero is none
    square, freedom = squares.max(axis=0), freedoms[largest]
    both = (a > e) & (b > e)
    quasi = np.where(both, a + b - e, square)
    if min(shape) > 1:
        satterthwaite = a**2 / freedoms[1] + b**2 / freedoms[2] + e**2 / freedoms[0]
        freedom = np.where(both, quasi**2 / np.where(both, satterthwaite, 1.0), freedom)
    return np.sqrt(quasi / math.prod(shape)), np.maximum(freedom, max(min(shape) - 1, 1))


def crossed(values: np.ndarray) -> Crossed:
    """Speakers and seeds are both drawn from many, and each speaker is measured with each seed: crossed random effects.

    The standard error of the mean is that of an analysis of variance (quasi-F with Satterthwaite's degrees of freedom;
    Clark 1973 for speakers and words). A bootstrap over five seeds, or signs drawn for them, can never show anything.

    Args:
      values: (speakers, seeds) float, at least two of each.
    """
    rows, columns = values.shape
    by_row, by_column, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    rest = values - by_row[:, None] - by_column + mean
    a, b = columns * by_row.var(ddof=1), rows * by_column.var(ddof=1)
    e = (rest**2).sum() / ((rows - 1) * (columns - 1))
    return Crossed(float(mean), float(a), float(b), float(e), (rows, columns))
