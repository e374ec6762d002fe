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


def test_what_the_error_is_made_of():
    speakers, seeds = np.arange(10.0)[:, None], np.zeros((1, 4))
    by_speaker, by_seed, rest = crossed(speakers + seeds).variances()
    assert by_speaker == pytest.approx(speakers.var(ddof=1) / 10) and by_seed == pytest.approx(0) == rest
    by_speaker, by_seed, rest = crossed(0 * speakers + np.arange(4.0)).variances()
    assert by_seed == pytest.approx(np.arange(4.0).var(ddof=1) / 4) and by_speaker == pytest.approx(0) == rest


def test_values_without_any_spread():
    assert crossed(np.zeros((5, 3))).p() == 1.0 and crossed(np.ones((5, 3))).p() == 0.0
