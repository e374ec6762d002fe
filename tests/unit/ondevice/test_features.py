"""Tests of ondevice/features.py against Lhotse and kaldi-native-fbank."""

import numpy as np
import pytest
from lhotse import Fbank, FbankConfig

from twopass_kd.ondevice.features import OnlineFeatures


def audio(samples, rate=16000, seed=0):
    rng = np.random.default_rng(seed)
    tone = 0.2 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)
    return (tone + 0.1 * rng.standard_normal(samples) + 0.05).astype(np.float32)


def in_pieces(samples, size, num_features=80, rate=16000):
    features = OnlineFeatures(num_features, rate)
    rows, read = [], 0
    for begin in range(0, len(samples), size):
        features.accept_waveform(samples[begin : begin + size])
        rows.append(features.read(read, features.num_ready - read))
        read = features.num_ready
        features.discard_before(read)
    features.input_finished()
    return np.concatenate([*rows, features.read(read, features.num_ready - read)])


@pytest.mark.parametrize("rate, num_features", [(16000, 80), (8000, 40), (22050, 80)])
@pytest.mark.parametrize("seconds", [0.013, 0.02, 0.1, 0.3337, 12.0])
def test_features_equal_lhotse_and_kaldi_native_fbank(seconds, rate, num_features):
    samples = audio(round(seconds * rate), rate)
    found = in_pieces(samples, len(samples), num_features, rate)
    config = FbankConfig(sampling_rate=rate, num_mel_bins=num_features, dither=0.0, snip_edges=False, high_freq=-400.0)
    if len(samples) > 0.02 * rate:  # Lhotse mirrors but once
        np.testing.assert_allclose(found, Fbank(config).extract(samples, rate)[: len(found)], atol=2e-3)

    knf = pytest.importorskip("kaldi_native_fbank", reason="the independent implementation is not installed")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.snip_edges = rate, 0.0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = num_features, -400.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(rate, samples.tolist())
    fbank.input_finished()
    want = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    np.testing.assert_allclose(found, want, atol=2e-3)


@pytest.mark.parametrize("size", [1, 7, 119, 160, 777, 5000])
def test_features_are_the_same_whatever_the_pieces(size):
    samples = audio(9111)
    np.testing.assert_array_equal(in_pieces(samples, size), in_pieces(samples, len(samples)))


def test_features_of_no_audio_and_of_zeros():
    features = OnlineFeatures(80, 16000)
    features.input_finished()
    assert features.num_ready == 0
    assert in_pieces(np.zeros(1600, np.float32), 100).tolist() == [[np.log(np.finfo(np.float32).eps)] * 80] * 10


def test_frames_that_are_not_there_are_an_error():
    features = OnlineFeatures(80, 16000)
    features.accept_waveform(audio(16000))
    features.discard_before(10)
    assert features.read(10, 3).shape == (3, 80)
    for begin, count in ((9, 1), (features.num_ready, 1), (95, 20)):
        with pytest.raises(IndexError, match="must be within 10 to"):
            features.read(begin, count)
