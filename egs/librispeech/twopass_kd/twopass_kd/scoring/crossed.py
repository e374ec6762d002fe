"""The mean of what speakers and seeds both have a part in: its standard error, interval and p-value."""

import math
from dataclasses import dataclass

import numpy as np
import scipy.stats


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

    @property
    def _error(self) -> tuple[float, float]:
        rows, columns = self.shape
        rest = (rows - 1) * (columns - 1)
        if self.a > self.e < self.b:
            square = self.a + self.b - self.e
            freedom = square**2 / (self.a**2 / (rows - 1) + self.b**2 / (columns - 1) + self.e**2 / rest)
        else:  # an effect that is estimated below zero is none
            square, freedom = max((self.e, rest), (self.a, rows - 1), (self.b, columns - 1))
        return math.sqrt(square / (rows * columns)), max(freedom, min(self.shape) - 1)

    def p(self) -> float:
        """Two-sided, of a mean of zero."""
        error, freedom = self._error
        if error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * scipy.stats.t.sf(abs(self.mean) / error, freedom))

    def interval(self) -> tuple[float, float]:
        """That has the mean with 95%."""
        error, freedom = self._error
        half = float(scipy.stats.t.ppf(0.975, freedom)) * error
        return self.mean - half, self.mean + half

    def variances(self) -> tuple[float, float, float]:
        """What the mean's variance is made of: the first factor, the second, the rest."""
        rows, columns = self.shape
        count = rows * columns
        return max(self.a - self.e, 0.0) / count, max(self.b - self.e, 0.0) / count, self.e / count


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
