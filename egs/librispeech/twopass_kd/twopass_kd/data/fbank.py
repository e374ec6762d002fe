"""Lhotse's filter banks, as stage 2 computes them."""

from lhotse import Fbank, FbankConfig

from twopass_kd.config.log_mel import HIGH_FREQ
from twopass_kd.config.schema import FeaturesConfig


def make_fbank(features: FeaturesConfig) -> Fbank:
    """No dither, 25 ms windows every 10 ms, one frame per 10 ms of audio rounded to the nearest (snip_edges false)."""
    rate, bins = features.sampling_rate, features.num_mel_bins
    return Fbank(FbankConfig(sampling_rate=rate, num_mel_bins=bins, dither=0.0, snip_edges=False, high_freq=HIGH_FREQ))
