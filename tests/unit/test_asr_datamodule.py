"""Batches out of cuts: padding, order, where an interrupted epoch goes on, cuts that cannot be trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet, LilcomChunkyWriter, MonoCut, SupervisionSegment
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.collation import collate_features
from lhotse.testing.dummies import dummy_recording

from twopass_kd.asr_datamodule import AsrDataModule
from twopass_kd.config import load_config
from twopass_kd.tokenizer import Tokenizer

MINI = Path(__file__).parents[2] / "egs/librispeech/twopass_kd/conf/mini.yaml"
WORDS = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN".split()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """40 cuts of random features, and tokens trained on their text by the recipe's own stage 2."""
    from train_bpe import write_lang

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (root / "fbank").mkdir()
    cuts = []
    with LilcomChunkyWriter(root / "fbank" / "feats") as writer:
        for i in range(40):
            frames = int(rng.integers(60, 300))
            text = " ".join(rng.choice(WORDS, size=1 + frames // 60))
            if i == 7:
                text = " ".join(WORDS * 10)  # more tokens than frames
            features = writer.write(f"utt-{i:02d}", rng.normal(-8, 3, (frames, 80)).astype(np.float32))
            cuts.append(make_cut(f"utt-{i:02d}", frames, text, features, root / "fbank" / "feats"))
    CutSet.from_cuts(cuts).to_file(root / "fbank" / "librispeech_cuts_train.jsonl.gz")
    CutSet.from_cuts(cuts[:5]).to_file(root / "fbank" / "librispeech_cuts_dev.jsonl.gz")
    write_lang(root / "lang_bpe_40", [c.supervisions[0].text for c in cuts], 40)
    return root


def make_cut(cut_id, frames, text, key, storage):
    from lhotse import Features

    seconds = frames / 100
    features = Features(
        type="fbank",
        num_frames=frames,
        num_features=80,
        frame_shift=0.01,
        sampling_rate=16000,
        start=0,
        duration=seconds,
        storage_type="lilcom_chunky",
        storage_path=str(storage) + ".lca",
        storage_key=key,
        channels=0,
    )
    supervision = SupervisionSegment(cut_id, cut_id, 0, seconds, text=text)
    return MonoCut(
        cut_id, 0, seconds, 0, [supervision], features=features, recording=dummy_recording(0, duration=seconds)
    )


@pytest.fixture()
def data(data_dir):
    parts = ["corpus.train_parts=[train]", "corpus.dev_parts=[dev]", "corpus.test_parts=[dev]"]
    cfg = load_config(MINI, [*parts, "train.max_duration=8", "tokens.vocab_size=40", "corpus.max_left_out=0.03"])
    return AsrDataModule(cfg, data_dir, Tokenizer(data_dir / "lang_bpe_40"), subsampling_factor=4)


def ids(loader):
    return [batch.cut_ids for batch in loader]


def test_batches_hold_features_and_tokens_of_their_cuts(data):
    for batch in data.valid_loader():
        assert batch.feature.dtype == torch.float32 and batch.y.dtype == torch.int64
        for i, cut in enumerate(batch.cuts):
            n, s = int(batch.feature_lens[i]), int(batch.y_lens[i])
            assert n == cut.num_frames
            np.testing.assert_allclose(batch.feature[i, :n].numpy(), cut.load_features(), atol=1e-6)
            assert data.dataset.tokenizer.decode([batch.y[i, :s].tolist()]) == [cut.supervisions[0].text]
            assert (batch.y[i, s:] == 0).all()
        assert batch.duration == pytest.approx(sum(batch.feature_lens.tolist()) / 100)


def test_an_epoch_has_every_usable_cut_once_and_the_same_order_each_time(data):
    measured = data.measure_train()
    first, again = ids(data.train_loader(1)), ids(data.train_loader(1))
    assert first == again != ids(data.train_loader(2))
    flat = [i for batch in first for i in batch]
    assert len(flat) == len(set(flat)) == measured.num_cuts == 39 and "utt-07" not in flat
    durations = [c.duration for c in data.train_cuts()]
    assert measured.seconds == pytest.approx(sum(durations)) and measured.longest == max(durations)


@pytest.mark.parametrize("parts", [["train"], ["train", "dev"]])
def test_batches_are_those_of_lhotses_sampler_on_whole_cuts(data, parts):
    data.cfg.corpus.train_parts, data.cfg.corpus.min_duration = parts, 0.7
    measured = data.measure_train()
    assert measured.sizes == [40, 5][: len(parts)]
    sampler = DynamicBucketingSampler(data.train_cuts(), max_duration=8.0, num_buckets=2, shuffle=True, seed=42)
    sampler.set_epoch(2)
    batches = list(data.train_loader(2))
    assert [b.cut_ids for b in batches] == [[c.id for c in b.sort_by_duration()] for b in sampler]
    whole = {cut.id: cut for cut in data.train_cuts()}
    for batch in batches:
        assert batch.cuts == [whole[cut_id] for cut_id in batch.cut_ids]
        feature, feature_lens = collate_features(CutSet.from_cuts(batch.cuts))
        assert torch.equal(batch.feature, feature) and torch.equal(batch.feature_lens, feature_lens)


@pytest.mark.parametrize("sort", [False, True])
def test_skipping_gives_the_rest_of_the_epoch(data, sort):
    data.measure_train()
    whole = ids(data.train_loader(3, sort=sort))
    assert ids(data.train_loader(3, sort=sort, skip=4)) == whole[4:]


def test_sorted_epoch_goes_from_short_to_long(data):
    data.measure_train()
    durations = [max(c.duration for c in batch.cuts) for batch in data.train_loader(1, sort=True)]
    assert durations == sorted(durations)


def test_batches_are_of_max_duration_and_at_most_one_cut_more(data):
    data.measure_train()
    durations = [batch.duration for batch in data.train_loader(1)]
    assert max(durations) <= 8.0 + 3.0 and max(durations) > 4.0


def test_decoding_leaves_nothing_out(data):
    assert sorted(i for batch in ids(data.decode_loader("train")) for i in batch) == [f"utt-{i:02d}" for i in range(40)]


def test_statistics_are_those_of_the_features(data):
    data.measure_train()
    mean, std = data.feature_statistics()
    assert mean.shape == std.shape == (80,)
    np.testing.assert_allclose(mean.mean(), -8, atol=0.1)
    np.testing.assert_allclose(std.mean(), 3, atol=0.1)


def test_cuts_left_out_are_listed_with_the_reason_and_limited(data, tmp_path):
    data.measure_train(left_out_path=tmp_path / "left_out.tsv")
    assert (tmp_path / "left_out.tsv").read_text().startswith("utt-07\tmore tokens")
    data.cfg.corpus.max_left_out = 0.01
    with pytest.raises(ValueError, match="1 of 40 training cuts.*utt-07.*raise `corpus.max_left_out`"):
        data.measure_train()
    data.cfg.corpus.max_left_out = 1.0
    data.cfg.corpus.min_duration = 100.0
    with pytest.raises(ValueError, match="none of the cuts of .'train'."):
        data.measure_train()
    data.cfg.corpus.min_duration = max(c.duration for c in data.cuts(["dev"])) + 0.01
    with pytest.raises(ValueError, match="none of the cuts of .'dev'."):
        data.measure_train()


def test_parts_are_mixed_in_proportion_to_their_sizes(data):
    """The smaller part must not be used up long before the larger one."""
    order = [c.id for c in data.cuts(["train", "dev"])]
    assert len(order) == 45
    twice = [i for i, cut_id in enumerate(order) if cut_id in order[:i]]
    assert max(twice) > 22


def test_digest_changes_with_the_cuts(data):
    before = data.measure_train().digest
    assert before == data.measure_train().digest
    data.cfg.corpus.train_parts = ["dev"]
    assert data.measure_train().digest != before


def test_training_cuts_are_measured_once(data, tmp_path, monkeypatch):
    cache = tmp_path / "exp" / "train_cuts.json"
    measured = data.measure_train(cache)
    batches = ids(data.train_loader(1))
    monkeypatch.setattr(AsrDataModule, "_measure", lambda self: pytest.fail("measured again"))
    assert data.measure_train(cache) == measured and measured.left_out.keys() == {"utt-07"}
    assert ids(data.train_loader(1)) == batches
    monkeypatch.undo()
    data.cfg.corpus.min_duration, data.cfg.corpus.max_left_out = 1.0, 0.5
    assert data.measure_train(cache).num_cuts < measured.num_cuts
    cache.write_text("cut sho")
    assert data.measure_train(cache).num_cuts < measured.num_cuts


def of_rank(data, rank, world_size):
    return AsrDataModule(data.cfg, data.data_dir, data.dataset.tokenizer, 4, rank, world_size)


@pytest.mark.parametrize("sort", [False, True])
def test_ranks_share_an_epoch_and_have_as_many_batches(data, sort):
    shares = []
    for rank in range(3):
        mine = of_rank(data, rank, 3)
        mine.measure_train()
        shares.append(ids(mine.train_loader(1, sort=sort)))
        assert ids(mine.train_loader(1, sort=sort, skip=2)) == shares[-1][2:]
    assert len({len(batches) for batches in shares}) == 1
    data.measure_train()
    together = [i.split("_dup")[0] for batches in shares for batch in batches for i in batch]
    assert set(together) == {c.id for c in data.train_cuts()} and len(together) <= 39 + 2


def test_ranks_share_the_dev_cuts_without_doubling_any(data):
    together = [i for rank in range(3) for batch in ids(of_rank(data, rank, 3).valid_loader()) for i in batch]
    assert sorted(together) == sorted(c.id for c in data.valid_cuts())


def test_missing_cuts_name_the_stage_that_makes_them(data):
    with pytest.raises(FileNotFoundError, match="stage 2 makes it"):
        data.cuts(["train", "nothing"])
