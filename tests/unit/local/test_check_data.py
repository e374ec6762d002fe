"""Tests of local/check_data.py on what icefall's recipe leaves, whole and spoilt."""

import gzip
import re
import shutil

import pytest
from lhotse import CutSet, MfccConfig
from lhotse.features import Mfcc

from check_data import check_data, main, read_sample
from icefall_data import VOCAB_SIZE, edit_cuts, inside, prepare, snapshot, store_features
from small_corpus import TINY_YAML, small_config

TOKENS = f"tokens.vocab_size={VOCAB_SIZE}"
MUSAN = "corpus.musan=true"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """icefall's recipe after its prepare.sh."""
    recipe = tmp_path_factory.mktemp("icefall é") / "ASR"
    prepare(recipe, speed_perturb=True, musan=True)
    return recipe


@pytest.fixture()
def data_dir(whole, tmp_path):
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "ASR")
    return tmp_path / "ASR" / "data"


def problems(data_dir, *overrides):
    return check_data(small_config(TOKENS, *overrides), data_dir)


def test_check_data_takes_icefalls_data_and_writes_nothing(whole, capsys, monkeypatch):
    monkeypatch.chdir("/")
    before = snapshot(whole)
    assert problems(whole / "data", MUSAN, "corpus.speed_perturb=[0.9,1.1]") == []
    assert snapshot(whole) == before
    said = capsys.readouterr().out
    assert "train-clean: 12 cuts, 8 of them at another speed" in said and "warning" not in said


def test_check_data_takes_the_shuffled_manifest_of_all_train_parts(whole):
    assert problems(whole / "data", "corpus.train_parts=[train-all-shuf]") == []


def test_check_data_speed_perturb_without_copies_is_a_warning(data_dir, capsys):
    path = data_dir / "fbank" / "librispeech_cuts_train-clean.jsonl.gz"
    cuts = CutSet.from_file(path).to_eager()
    CutSet.from_cuts(cut for cut in cuts if "_sp" not in cut.id).to_file(path)
    assert problems(data_dir) == [] and "warning" not in capsys.readouterr().out
    assert problems(data_dir, "corpus.speed_perturb=[0.9,1.1]") == []
    assert "warning: `corpus.speed_perturb` ([0.9, 1.1]) is for stage 2" in capsys.readouterr().out


def test_check_data_wants_what_the_stages_read(data_dir):
    fbank = data_dir / "fbank"
    (fbank / "librispeech_cuts_test-clean.jsonl.gz").unlink()
    cfg = small_config(TOKENS, MUSAN)
    assert check_data(cfg, data_dir, range(3, 8)) == []
    (found,) = check_data(cfg, data_dir, [8])
    assert "test-clean.jsonl.gz is missing" in found
    for path in (fbank / "librispeech_cuts_train-clean.jsonl.gz", fbank / "musan_cuts.jsonl.gz"):
        path.unlink()
    assert check_data(cfg, data_dir, [8]) == [found]
    assert len(check_data(cfg, data_dir, [3])) == 2


def test_check_data_wants_the_audio_that_stage_10_recognises(data_dir):
    (audio,) = (data_dir.parent / "download").rglob("20-200-0001.flac")
    audio.unlink()
    edit_cuts(data_dir, "test-other", lambda cut: setattr(cut, "recording", None))
    found = check_data(small_config(TOKENS), data_dir, [10])
    assert [line.partition(" ")[0] for line in found] == [
        f"librispeech_cuts_{part}.jsonl.gz," for part in ("dev-clean", "test-other")
    ]
    assert f"its audio ({audio}) is missing, which stage 10 recognises" in found[0] and "(1 of 4" in found[0]
    assert "has no audio file in its recording" in found[1] and "(4 of 4" in found[1]
    assert check_data(small_config(TOKENS), data_dir, range(3, 10)) == []
    assert check_data(small_config(TOKENS, "export.systems=[]"), data_dir) == []


def test_check_data_names_all_that_is_missing_at_once(data_dir, capsys):
    (data_dir / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz").unlink()
    (data_dir / "fbank" / "musan_cuts.jsonl.gz").unlink()
    (data_dir / "fbank" / "librispeech_feats_train-clean" / "feats-1.lca").unlink()
    arguments = ["--conf", str(TINY_YAML), "--data-dir", str(data_dir), "tokens.vocab_size=500", MUSAN]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "lang_bpe_500 is missing, and `tokens.vocab_size` is 500" in said
    assert f"say tokens.vocab_size={VOCAB_SIZE} for lang_bpe_{VOCAB_SIZE}, which is there" in said
    assert "librispeech_cuts_dev-clean.jsonl.gz is missing; stage 3 of icefall's prepare.sh makes it, or" in said
    assert "musan_cuts.jsonl.gz is missing" in said and "say corpus.musan=false" in said
    assert "librispeech_feats_train-clean/feats-1.lca is missing" in said
    assert said.count("\n  - ") == 4


def test_check_data_under_another_name(data_dir):
    moved = data_dir.rename(data_dir.with_name("prepared"))
    assert problems(moved) == []
    for folder in (moved / "fbank").glob("librispeech_feats_*"):
        folder.rename(moved / folder.name)
    found = problems(moved)
    assert len(found) == 4
    for problem in found:
        assert "counts from the folder that --data-dir lies in; name the data folder as its recipe does" in problem


@pytest.mark.parametrize("link", ["data", "theirs"])
def test_check_data_through_a_link(data_dir, tmp_path, link):
    """`data` here leads to a folder of another name, `theirs` to icefall's `data`."""
    (tmp_path / "here").mkdir()
    if link == "data":
        data_dir = data_dir.rename(tmp_path / "on another disk")
    (tmp_path / "here" / link).symlink_to(data_dir)
    # The audio of `data` stays behind, which stage 10 would read.
    stages = range(3, 10 if link == "data" else 11)
    assert check_data(small_config(TOKENS), tmp_path / "here" / link, stages) == []


def set_field(name, value):
    return lambda cut: setattr(cut.features, name, value)


def set_text(change):
    def edit(cut):
        cut.supervisions[0].text = change(cut.supervisions[0].text)

    return edit


def no_features(cut):
    cut.features = None


@pytest.mark.parametrize("edit, said", [
    (set_field("num_features", 40), r"40 values per frame and `features.num_mel_bins` is 80; say features"),
    (set_field("sampling_rate", 8000), r"at 8000 Hz and `features.sampling_rate` is 16000; say features"),
    (set_field("frame_shift", 0.0125), r"a frame each 0.01 s, not 0.0125 s"),
    (set_field("type", "whisper-fbank"), r"must be log-mel filter banks \(.*\), not whisper-fbank"),
    (set_field("storage_key", "0,5"), r"train-clean/feats-0.lca cannot be read"),
    (no_features, r"must be a MonoCut with features, not a MonoCut without"),
    (lambda cut: cut.supervisions.clear(), r"must have one supervision, not 0; do `lhotse cut trim-to-supervisions`"),
    (lambda cut: setattr(cut.supervisions[0], "start", 0.5), r"its supervision lasts from 0.5 to"),
    (set_text(lambda text: " "), r"has no text"),
    (set_text(len), r"its text \(\d+\) must be text"),
    (set_field("duration", 1.0), r"lasts from 0.00 to .* s and its features from 0.00 to 1.00 s"),
    (set_text(str.lower), r"of its texts are <unk> \(e.g. 'the old captain'\); write the transcripts in upper case"),
    (set_text(lambda text: "中文 文字"), r"<unk> .*; take the bpe.model of these transcripts"),
])  # fmt: skip
def test_check_data_unfit_cuts(data_dir, edit, said):
    edit_cuts(data_dir, "train-clean", edit)
    (problem,) = problems(data_dir)
    assert problem.startswith("librispeech_cuts_train-clean.jsonl.gz")
    assert re.search(said, problem), problem


def test_check_data_mfcc(data_dir):
    path = data_dir / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz"
    cuts = CutSet.from_file(path).drop_features().to_eager()
    with inside(data_dir.parent):
        store_features(cuts, "dev-clean", extractor=Mfcc(MfccConfig()))
    found = "\n".join(problems(data_dir))
    assert "not kaldi-mfcc" in found and "has 13 values per frame" in found


def test_check_data_manifest_cut_short(data_dir):
    path = data_dir / "fbank" / "librispeech_cuts_test-other.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = problems(data_dir)
    assert f"{path} must be a whole gzipped manifest (EOFError: " in problem
    path.write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"\x07" * 20)  # a block of no type that there is
    (problem,) = problems(data_dir)
    assert f"{path} must be a whole gzipped manifest (error: " in problem


def test_check_data_tokens_that_do_not_belong_to_the_model(data_dir):
    lang_dir = data_dir / f"lang_bpe_{VOCAB_SIZE}"
    lines = (lang_dir / "tokens.txt").read_text().splitlines(keepends=True)
    (lang_dir / "tokens.txt").write_text("".join(lines[:10]))
    (problem,) = problems(data_dir)
    assert "must list the pieces of bpe.model" in problem and "icefall's prepare.sh" in problem
    (lang_dir / "tokens.txt").write_text("".join(lines))
    lang_dir.rename(data_dir / "lang_bpe_50")
    (problem,) = problems(data_dir, "tokens.vocab_size=50")
    assert f"bpe.model has {VOCAB_SIZE} pieces and `tokens.vocab_size` is 50" in problem


def test_read_sample_reaches_to_the_end_of_a_long_manifest(data_dir):
    path = data_dir / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    lines = [lines[i % 4].replace(b'"id": "', b'"id": "%d-' % i, 1) for i in range(2000)]
    path.write_bytes(gzip.compress(b"".join(lines)))
    sample = read_sample(path, every=False)
    assert sample.size == 2000 and sample.perturbed == 0 and len(sample.cuts) < 40
    assert sample.opened == sample.cuts and int(sample.cuts[-1].id.split("-")[0]) > 1400
    everything = read_sample(path, every=True)
    assert len(everything.cuts) == 2000 and [c.id for c in everything.opened] == [c.id for c in sample.opened]


def test_check_data_looks_at_every_cut_that_is_decoded(data_dir):
    """A cut far behind the first ones; and one whose id another one has."""
    path = data_dir / "fbank" / "librispeech_cuts_test-clean.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    lines = [lines[i % 4].replace(b'"id": "', b'"id": "%d-' % i, 1) for i in range(60)]
    path.write_bytes(gzip.compress(b"".join(lines)))
    assert problems(data_dir) == []
    without = re.sub(rb'"supervisions": \[.*?\}\]', b'"supervisions": []', lines[42])
    path.write_bytes(gzip.compress(b"".join([*lines[:42], without, *lines[43:]])))
    (problem,) = problems(data_dir)
    assert "test-clean.jsonl.gz, 42-" in problem and "must have one supervision, not 0" in problem
    path.write_bytes(gzip.compress(b"".join([*lines[:42], lines[5], *lines[43:]])))
    (problem,) = problems(data_dir)
    assert re.search("line 43: `5-.*` must be the id of one cut, and is that of two: line 6 of .*, line 43 of", problem)


def test_check_data_says_which_letters_no_token_spells(data_dir, capsys):
    def edit(cut):
        cut.supervisions[0].text += " WALKED" * 30 + " É"

    edit_cuts(data_dir, "test-clean", edit)
    assert problems(data_dir) == []
    said = capsys.readouterr().out
    assert "test-clean: 4 of 4 texts looked at have letters that no token spells (É); their words" in said
