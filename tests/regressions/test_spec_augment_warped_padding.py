"""SpecAugment worked on padded rows: time was warped into the padding, and masks had the padding's mean."""

import pytest
import torch

from twopass_kd.data.spec_augment import SpecAugmenter

FEATURES = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) + 5


def augmented(epoch, numbers):
    return {i: SpecAugmenter(seed=1, epoch=epoch)(FEATURES, f"utt-{i}") for i in numbers}


def test_masks_have_the_utterances_own_mean():
    masked = 0
    for x in augmented(1, range(10)).values():
        assert x.shape == FEATURES.shape
        values, counts = x.unique(return_counts=True)
        if counts.max() > 1:  # what is not masked comes once
            masked += 1
            assert float(values[counts.argmax()]) == pytest.approx(float(FEATURES.mean()), abs=0.1)
    assert masked > 5


def test_draws_depend_on_seed_epoch_and_utterance_alone():
    first, second = augmented(1, range(10)), augmented(2, range(10))
    again = augmented(1, reversed(range(10)))
    assert all(torch.equal(first[i], again[i]) for i in first)
    assert not any(torch.equal(first[i], second[i]) for i in first if not torch.equal(first[i], FEATURES))
