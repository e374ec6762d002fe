"""Batches out of cuts: padding, order, where an interrupted epoch goes on, cuts that cannot be trained on."""

import gzip
import re
import shutil

import numpy as np
import pytest
import torch
from lhotse import CutSet, NumpyFilesWriter, SupervisionSegment
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.collation import collate_features

from random_cuts import make_cut
from twopass_kd.data.asr_datamodule import AsrDataModule


def ids(loader):
    return [batch.cut_ids for batch in loader]


def test_batches_hold_features_and_tokens_of_their_cuts(data):
    data.measure_train()
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


@pytest.mark.parametrize("parts", [["train"], ["train", "more"]])
def test_batches_are_those_of_lhotses_sampler_on_whole_cuts(data, parts):
    data.cfg.corpus.train_parts, data.cfg.corpus.min_duration = parts, 0.7
    data.measure_train()
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
    assert (tmp_path / "left_out.tsv").read_text().startswith("utt-07\ttrain\tmore tokens")
    data.cfg.corpus.max_left_out = 0.01
    with pytest.raises(ValueError, match="1 of 40 training cuts.*utt-07.*raise `corpus.max_left_out`"):
        data.measure_train()
    data.cfg.corpus.max_left_out = 1.0
    data.cfg.corpus.min_duration = 100.0
    with pytest.raises(ValueError, match="none of the cuts of .'train'. can be used for training, e.g. utt-00: "):
        data.measure_train()
    data.cfg.corpus.min_duration = max(c.duration for c in data.cuts(["dev"])) + 0.01
    with pytest.raises(ValueError, match="none of the cuts of .'dev'. can be used for dev"):
        data.measure_train()


def write_cuts(data_dir, part, change, count=10):
    """The first `count` cuts of `train` under other ids, number 6 changed, as a part of its own."""
    cuts = list(CutSet.from_file(data_dir / "fbank" / "librispeech_cuts_train.jsonl.gz").subset(first=count + 1))
    cuts = [cut.with_id(f"{part}-{i}") for i, cut in enumerate(cuts[:7] + cuts[8:])]
    cuts[6] = change(cuts[6]) or cuts[6]
    path = data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


def two_supervisions(cut):
    cut.supervisions.append(SupervisionSegment("second", "second", 0.3, 0.1, text="TWO"))


def no_text(cut):
    cut.supervisions[0].text = None


def number_as_text(cut):
    cut.supervisions[0].text = 7


def no_features(cut):
    cut.features = None


@pytest.mark.parametrize("change, reason", [
    (two_supervisions, "must have one supervision, not 2; do `lhotse cut trim-to-supervisions` first"),
    (lambda cut: cut.supervisions.clear(), "must have one supervision, not 0"),
    (no_text, "has no text"),
    (number_as_text, r"its text \(7\) must be text"),
    (no_features, "must be a MonoCut with features, not a MonoCut without"),
    (lambda cut: cut.pad(duration=4.0), "must be a MonoCut with features, not a MixedCut"),
    (lambda cut: setattr(cut, "duration", 9.0), "lasts from 0.00 to 9.00 s and its features from 0.00 to "),
    (lambda cut: setattr(cut, "start", 7.0), "lasts from 7.00 to .* s and its features from 0.00 to .*"),
    (lambda cut: setattr(cut.supervisions[0], "duration", float("nan")), "its supervision lasts from"),
    (lambda cut: cut.with_id("a\tb"), "its id .'a.tb'. must be text without tabs"),
])  # fmt: skip
def test_every_cut_is_looked_at_before_it_is_trained_on_or_decoded(data, data_dir, tmp_path, change, reason):
    path = write_cuts(data_dir, "odd", change)
    data.cfg.corpus.train_parts, data.cfg.corpus.max_left_out = ["odd"], 0.1
    measured = data.measure_train(left_out_path=tmp_path / "left_out.tsv")
    (cut_id,) = measured.left_out["odd"]
    assert measured.num_cuts == 9
    with pytest.raises(ValueError, match=f"{path}, line 7, .*: .*{reason}"):
        data.check_parts(["dev", "odd"])
    assert cut_id not in [i for batch in ids(data.train_loader(1)) for i in batch]
    data.cfg.corpus.train_parts, data.cfg.corpus.dev_parts = ["train"], ["odd"]
    assert [*data.measure_train(left_out_path=tmp_path / "left_out.tsv").left_out["odd"]] == [cut_id]
    rows = [line.split("\t") for line in (tmp_path / "left_out.tsv").read_text().splitlines()]
    assert [row[0] for row in rows if row[1] == "odd"] == [cut_id.replace("\t", "\\t")]
    assert sum(map(len, ids(data.valid_loader()))) == 9


def test_features_that_cannot_be_read_are_named(data, data_dir):
    def spoil(cut):
        cut.features.storage_key = "0,5"

    write_cuts(data_dir, "odd", spoil)
    with pytest.raises(ValueError, match="the features of odd-6 in .*feats.lca cannot be read .*; compute them anew"):
        ids(data.decode_loader("odd"))


def test_features_that_are_not_as_long_as_their_cut_are_named(data, data_dir):
    """Once trained on, though their manifest tells of others."""

    def longer(cut):
        cut.features.duration = cut.duration = cut.supervisions[0].duration = 9.0

    write_cuts(data_dir, "odd", longer)
    with pytest.raises(ValueError, match=r"the features of odd-6 in .* \(must have about 900 frames of features, and"):
        ids(data.decode_loader("odd"))


def test_features_that_are_not_finite_are_named(data, data_dir):
    writer = NumpyFilesWriter(data_dir / "fbank" / "nan")
    cut = make_cut("nan", 100, "ONE", writer.write("nan", np.full((100, 80), np.nan, np.float32)), "")
    cut.features.storage_type, cut.features.storage_path = "numpy_files", str(data_dir / "fbank" / "nan")
    CutSet.from_cuts([cut]).to_file(data_dir / "fbank" / "librispeech_cuts_nan.jsonl.gz")
    with pytest.raises(ValueError, match=r"the features of nan in .* \(they have NaN or infinity\)"):
        ids(data.decode_loader("nan"))


def test_texts_that_name_a_special_token_are_left_out(data, data_dir):
    def blank(cut):
        cut.supervisions[0].text = "ONE <blk> TWO"

    write_cuts(data_dir, "odd", blank)
    data.cfg.corpus.train_parts, data.cfg.corpus.max_left_out = ["odd"], 0.1
    assert data.measure_train().left_out["odd"] == {"odd-6": "its text has <blk>, which is not for texts"}


def test_texts_without_a_token_are_left_out(data, data_dir):
    def space(cut):
        cut.supervisions[0].text = "\u2581"

    write_cuts(data_dir, "odd", space)
    data.cfg.corpus.train_parts, data.cfg.corpus.max_left_out = ["odd"], 0.1
    reason = r"its text ('\u2581') has no letter that the tokens know"
    assert data.measure_train().left_out["odd"] == {"odd-6": reason}


def test_half_a_character_in_a_text_is_named(data):
    cut = data.cuts(["dev"])[0]
    cut.supervisions[0].text = "ONE \ud800"
    assert data.why_unusable(cut)[0].startswith(r"its text ('ONE \ud800') must be whole characters")


def test_ids_may_have_letters_that_join_others(data, data_dir):
    """As Persian words have."""
    write_cuts(data_dir, "odd", lambda cut: cut.with_id("می\u200cروم"))
    data.check_parts(["odd"])


def test_an_id_of_two_cuts_is_an_error_that_names_both(data, data_dir):
    """Encoder outputs are kept, utterances left out and tests paired by id: once 12 of 24 were trained on another's."""
    path = write_cuts(data_dir, "odd", lambda cut: cut.with_id("odd-2"))
    said = f"`odd-2` must be the id of one cut, and is that of two: line 3 of {path}, line 7 of {path}; remove one"
    data.cfg.corpus.train_parts = ["odd"]
    with pytest.raises(ValueError, match=re.escape(said)):
        data.measure_train()
    with pytest.raises(ValueError, match=re.escape(said)):
        data.check_parts(["odd"])
    data.cfg.corpus.train_parts = ["train", "dev"]
    with pytest.raises(ValueError, match="line 1 of .*cuts_train.jsonl.gz, line 1 of .*cuts_dev.jsonl.gz"):
        data.measure_train()


def test_an_empty_part_cannot_be_decoded(data, data_dir):
    path = data_dir / "fbank" / "librispeech_cuts_empty.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match=f"{path} must have cuts, and is empty"):
        data.check_parts(["empty"])
    data.cfg.corpus.dev_parts = ["empty"]
    with pytest.raises(ValueError, match=r"none of the cuts of \['empty'\] can be used for dev: they are empty"):
        data.measure_train()


def test_texts_are_normalised_as_they_are_read(data, data_dir):
    def decomposed(cut):
        cut.supervisions[0].text = "E\u0301TE\u0301  \u00a0ONE"

    write_cuts(data_dir, "odd", decomposed)
    texts = {cut.id: cut.supervisions[0].text for cut in data.cuts(["odd"])}
    assert texts["odd-6"] == "\u00c9T\u00c9 ONE"
    batches = [cut for batch in data.decode_loader("odd") for cut in batch.cuts]
    assert {cut.id: cut.supervisions[0].text for cut in batches} == texts


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


def test_digest_does_not_depend_on_where_the_data_lie(data, tmp_path):
    before = data.measure_train().digest
    content = gzip.decompress((data.data_dir / "fbank" / "librispeech_cuts_train.jsonl.gz").read_bytes())
    assert str(data.data_dir).encode() in content
    shutil.copytree(data.data_dir, tmp_path / "moved")
    moved = content.replace(str(data.data_dir).encode(), str(tmp_path / "moved").encode())
    (tmp_path / "moved/fbank/librispeech_cuts_train.jsonl.gz").write_bytes(gzip.compress(moved))
    data.data_dir = tmp_path / "moved"
    assert data.measure_train().digest == before


def test_training_cuts_are_measured_once(data, tmp_path, monkeypatch):
    cache = tmp_path / "exp" / "train_cuts.json"
    measured = data.measure_train(cache)
    batches = ids(data.train_loader(1))
    monkeypatch.setattr(AsrDataModule, "_measure", lambda self: pytest.fail("measured again"))
    assert data.measure_train(cache) == measured and measured.left_out["train"].keys() == {"utt-07"}
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
    together = [i for batches in shares for batch in batches for i in batch]  # a doubled one has its own id too
    assert set(together) == {c.id for c in data.train_cuts()} and len(together) <= 39 + 2


def test_ranks_share_the_dev_cuts_without_doubling_any(data):
    together = []
    for rank in range(3):
        mine = of_rank(data, rank, 3)
        mine.measure_train()
        together += [i for batch in ids(mine.valid_loader()) for i in batch]
    assert sorted(together) == sorted(c.id for c in mine.valid_cuts())


def test_missing_cuts_name_the_stage_that_makes_them(data):
    with pytest.raises(FileNotFoundError, match="stage 2 makes it"):
        data.cuts(["train", "nothing"])
