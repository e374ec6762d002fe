"""Tests of local/filter_cuts.py."""

from lhotse import CutSet

from compute_fbank import compute_fbank
from filter_cuts import filter_cuts, main
from left_out import read_left_out
from prepare_manifests import prepare_manifests
from small_corpus import TINY_YAML, small_config, write_corpus, write_utterance
from train_bpe import train_bpe
from twopass_kd.files.layout import cuts_path


def test_filter_cuts_leaves_out_more_tokens_than_frames_and_brings_them_back(tmp_path, capsys):
    folders = write_corpus(tmp_path / "corpus", count=6, seconds=2.5)
    long = "THE OLD CAPTAIN FOUND A GOLDEN MIRROR BEHIND HER CASTLE YESTERDAY AND WALKED HOME"
    write_utterance(folders["train-clean"], "10-100-0008", long, seconds=1.5)
    write_utterance(folders["test-clean"], "30-300-0008", long, seconds=1.5)
    cfg = small_config("corpus.max_left_out=0.2", "tokens.vocab_size=30")
    prepare_manifests(cfg, tmp_path / "corpus", tmp_path / "data")
    compute_fbank(cfg, tmp_path / "data", num_jobs=1)

    def ids(part):
        return {cut.id for cut in CutSet.from_file(cuts_path(tmp_path / "data", part))}

    every = ids("train-clean")
    train_bpe(cfg, tmp_path / "data")
    filter_cuts(cfg, tmp_path / "data")
    assert every - ids("train-clean") == {"10-100-0008"}
    rows = [("10-100-0008", "train-clean", "more tokens than frames (BPE 30, subsampling 6)")]
    assert [tuple(row) for row in read_left_out(tmp_path / "data")] == rows
    assert "30-300-0008" in ids("test-clean")  # a hard test utterance counts
    filter_cuts(cfg, tmp_path / "data")  # again: nothing is lost or listed twice
    assert [tuple(row) for row in read_left_out(tmp_path / "data")] == rows and len(ids("train-clean")) == 6

    args = ["--conf", str(TINY_YAML), "--data-dir", str(tmp_path / "data"), "tokens.vocab_size=30"]
    assert main([*args, "corpus.max_left_out=0.01"]) == 1
    assert "`corpus.max_left_out` (0.01) must be at least 0.143 for part `train-clean`" in capsys.readouterr().err
    cfg = small_config("corpus.max_left_out=0.2", "tokens.vocab_size=80")  # whole words fit
    train_bpe(cfg, tmp_path / "data")
    filter_cuts(cfg, tmp_path / "data")
    assert ids("train-clean") == every and read_left_out(tmp_path / "data") == []
