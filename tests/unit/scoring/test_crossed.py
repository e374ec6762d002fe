"""Means of what speakers and seeds have a part in: their errors against simulation."""

import numpy as np
import pytest

from twopass_kd.scoring.crossed import crossed


@pytest.mark.parametrize("seeds, most", [(3, 0.09), (5, 0.07)])
@pytest.mark.parametrize("speakers", [10, 40])
@pytest.mark.parametrize(
    "by_speaker, by_seed, rest", [(1, 0, 1), (1, 1, 1), (0, 1, 1), (0.3, 0.1, 2), (0.5, 1, 0.5), (1.2, 0.9, 1)]
)
def test_equal_systems_are_rarely_called_different(speakers, seeds, most, by_speaker, by_seed, rest):
    """At 5%; speakers say more or less and differ accordingly."""
    rng, called, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        weight = rng.uniform(0.5, 2, (speakers, 1))
        values = weight * (by_speaker * rng.normal(size=(speakers, 1)) + rest * rng.normal(size=(speakers, seeds)))
        called += crossed(values + by_seed * rng.normal(size=(1, seeds))).p() < 0.05
    assert called / trials < most


def test_interval_is_around_the_mean_and_holds_zero_as_p_says():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 1.0, 3.0):
        found = crossed(shift + rng.normal(size=(10, 5)))
        low, high = found.interval()
        assert low < found.mean < high and (low > 0 or high < 0) == (found.p() < 0.05)


@pytest.mark.parametrize("by_speaker, by_seed", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.3, 0.3)])
def test_so_many_seeds_have_the_power_that_is_said(by_speaker, by_seed):
    """Variances are known here: of many speakers and seeds."""
    rng = np.random.default_rng(0)

    def draw(speakers, seeds):
        parts = (speakers, 1, by_speaker), (1, seeds, by_seed), (speakers, seeds, 1.0)
        return 0.5 + sum(size * rng.normal(size=(n, m)) for n, m, size in parts)

    planned = crossed(draw(1000, 300))
    needed = next(n for n in range(2, 100) if planned.expected(10, n).power(0.025) >= 0.8)
    called = [crossed(draw(10, needed)).p() < 0.025 for _ in range(2000)]
    assert np.mean(called) == pytest.approx(planned.expected(10, needed).power(0.025), abs=0.04)


def test_values_without_any_spread():
    assert crossed(np.zeros((5, 3))).p() == 1.0 and crossed(np.ones((5, 3))).p() == 0.0
