"""Noise in the batches: of which kinds, and the same for a cut wherever it is met."""

import gzip
import json
import random

import numpy as np
import pytest
import torch
from lhotse import CutSet

from random_cuts import make_cut
from twopass_kd.config.schema import AugmentConfig
from twopass_kd.data.noise import Babble, energy, musan
from twopass_kd.files.layout import musan_cuts_path


@pytest.fixture()
def noisy(data, tmp_path_factory):  # noqa: F811
    """The data module of `data` with 12 windows of noise, half as long as the longest to longer than any cut."""
    from lhotse import LilcomChunkyWriter

    path = musan_cuts_path(data.data_dir)
    if not path.is_file():
        rng, cuts = np.random.default_rng(1), []
        with LilcomChunkyWriter(path.with_name("musan_feats")) as writer:
            for i in range(12):
                frames = int(rng.integers(501, 1001))
                key = writer.write(f"noise-{i}", rng.normal(-5, 2, (frames, 80)).astype(np.float32))
                cuts.append(make_cut(f"noise-{i}", frames, "", key, path.with_name("musan_feats")))
        CutSet.from_cuts(cut.drop_supervisions() for cut in cuts).to_file(path)
    data.cfg.corpus.musan, data.cfg.augment = True, AugmentConfig()
    data.measure_train()
    return data


def test_musan_is_as_long_as_asked_for(noisy):
    source = musan(noisy.data_dir)
    for frames in (3, 700, 2500):
        noise = source.draw(frames, random.Random(frames))
        assert noise.shape == (frames, 80) and np.isfinite(noise).all()


def test_babble_is_of_several_others_and_as_loud_as_each(noisy):
    (babble,) = (source for source in noisy.noise_sources if isinstance(source, Babble))
    assert len(babble.lines) == 39
    loudest = max(energy(cut.load_features()) for cut in noisy.train_cuts())
    for seed in range(5):
        noise = babble.draw(1000, random.Random(seed))
        assert noise.shape == (1000, 80) and loudest / 2 < energy(noise) < 10 * loudest


def test_a_corpus_of_one_utterance_has_no_babble(noisy, caplog):
    noisy.measured.num_cuts = 1
    noisy._usable = lambda cuts, parts: cuts.subset(first=1)
    assert [type(source).__name__ for source in noisy.noise_sources] == ["ColouredNoise", "Musan"]
    assert "one training utterance" in caplog.text


def test_samplers_count_with_pauses_and_epochs_do_not(noisy):
    noisy.cfg.augment.pauses, noisy.cfg.augment.max_pause = 0.9, 4.0
    batches = list(noisy.train_loader(1))
    longer = [batch for batch in batches if batch.feature_lens.sum() > 100 * batch.duration + 100]
    assert len(longer) > len(batches) / 2 and max(int(b.feature_lens.sum()) for b in batches) < 100 * (8 + 15)
    assert sum(batch.duration for batch in batches) == pytest.approx(noisy.measured.seconds)


def features(loader):
    return [(batch.cut_ids, batch.feature) for batch in loader]


def equal(a, b):
    return len(a) == len(b) and all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_noise_of_a_resumed_epoch_is_that_of_the_whole_one(noisy, num_workers):
    noisy.cfg.train.num_workers = 0
    whole = features(noisy.train_loader(2))
    noisy.cfg.train.num_workers = num_workers
    assert equal(features(noisy.train_loader(2, skip=3)), whole[3:])
    assert equal(features(noisy.train_loader(2)), whole)


def test_epochs_before_augmentation_have_the_features_as_they_are(noisy):
    whole, without = features(noisy.train_loader(1)), features(noisy.train_loader(1, augment=False))
    noisy.cfg.augment = AugmentConfig(noise=0.0, pauses=0.0, gain=0.0)
    assert equal(without, features(noisy.train_loader(1))) and not equal(without, whole)


def test_only_training_is_noisy(noisy):
    for loader in (noisy.valid_loader(), noisy.decode_loader("train")):
        for batch in loader:
            for i, cut in enumerate(batch.cuts):
                np.testing.assert_allclose(batch.feature[i, : batch.feature_lens[i]], cut.load_features(), atol=1e-6)
                assert not hasattr(cut, "tracks")


def test_missing_noise_names_the_stage_and_the_way_out(noisy, tmp_path):
    with pytest.raises(FileNotFoundError, match="musan_cuts.jsonl.gz is missing.*stage 2.*corpus.musan=false"):
        musan(tmp_path)


def test_noise_without_features_is_named_before_any_training(noisy):
    path = musan_cuts_path(noisy.data_dir)
    whole = path.read_bytes()
    for cuts, said in (
        ([cut.drop_features() for cut in CutSet.from_file(path)], f"{path}, line 1, .*must be a MonoCut"),
        ([], f"{path} must have cuts, and is empty"),
    ):
        path.write_bytes(gzip.compress("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts).encode()))
        with pytest.raises(ValueError, match=said):
            noisy.measure_train()
    path.write_bytes(whole)
    noisy.measure_train()
