"""MUSAN in the batches: how loud, in how many, and the same for a cut wherever it is met."""

import gzip
import json

import numpy as np
import pytest
import torch
from lhotse import CutSet

from random_cuts import MINI, make_cut
from twopass_kd.config.load import load_config
from twopass_kd.config.schema import ConfigError
from twopass_kd.data.noise import NoiseMixer
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
    data.cfg.corpus.musan = True
    data.measure_train()
    return data


def energy(feature):
    return np.exp(np.asarray(feature, dtype=np.float64)).sum()


def test_noise_is_in_half_of_the_cuts_at_10_to_20_db(noisy):
    clean = {cut.id: cut for cut in noisy.train_cuts()}
    snr = []
    for epoch in (1, 2, 3):
        for batch in noisy.train_loader(epoch):
            for i, cut in enumerate(batch.cuts):
                before, n = clean[cut.id].load_features(), int(batch.feature_lens[i])
                after = batch.feature[i, :n].numpy()
                assert n == len(before) == cut.num_frames and cut.duration == clean[cut.id].duration
                assert (batch.feature[i, n:] == np.float32(np.log(1e-10))).all()
                assert cut.supervisions[0].text == clean[cut.id].supervisions[0].text
                if np.abs(after - before).max() > 1e-3:
                    assert (after.sum(1) > before.sum(1)).mean() > 0.9  # everywhere
                    snr.append(10 * np.log10(energy(before) / (energy(after) - energy(before))))
    assert 0.35 < len(snr) / (3 * len(clean)) < 0.65
    assert 9.9 < min(snr) < 12 and 18 < max(snr) < 20.5


def test_noise_covers_a_cut_longer_than_its_windows(noisy):
    cut = next(iter(noisy.train_cuts())).pad(duration=25.0, pad_feat_value=-8.0, preserve_id=True)
    mixer = NoiseMixer(noisy.data_dir, seed=1, epoch=1)
    mixed = next(m for m in (mixer.mix(cut.with_id(f"cut-{i}")) for i in range(20)) if len(m.tracks) > 3)
    assert mixed.num_frames == 2500 and mixed.duration == 25.0
    louder = mixed.load_features() - cut.load_features()
    assert (louder[:2480].max(1) > 0).all()


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


def test_noise_of_a_cut_depends_on_seed_epoch_and_id_alone(noisy):
    mixer = NoiseMixer(noisy.data_dir, seed=1, epoch=1)
    cuts = list(noisy.train_cuts())
    alone = {cut.id: NoiseMixer(noisy.data_dir, seed=1, epoch=1).mix(cut) for cut in reversed(cuts)}
    assert [mixer.mix(cut) for cut in cuts] == [alone[cut.id] for cut in cuts]
    for seed, epoch in ((2, 1), (1, 2)):
        other = NoiseMixer(noisy.data_dir, seed, epoch)
        assert sum(other.mix(cut) == alone[cut.id] for cut in cuts) < len(cuts) / 2


def test_only_training_is_noisy(noisy):
    for loader in (noisy.valid_loader(), noisy.decode_loader("train"), noisy.cache_loader()):
        for batch in loader:
            for i, cut in enumerate(batch.cuts):
                np.testing.assert_allclose(batch.feature[i, : batch.feature_lens[i]], cut.load_features(), atol=1e-6)
                assert not hasattr(cut, "tracks")


def test_missing_noise_names_the_stage_and_the_way_out(noisy, tmp_path):
    with pytest.raises(FileNotFoundError, match="musan_cuts.jsonl.gz is missing.*stage 2.*corpus.musan=false"):
        NoiseMixer(tmp_path, seed=1, epoch=1)


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


def test_noise_and_encodings_kept_from_before_exclude_each_other():
    with pytest.raises(ConfigError, match="`train.cache_frozen_encoders` .true. must be false with `corpus.musan`"):
        load_config(MINI, ["corpus.musan=true"])
