"""Data and experiments that were moved or copied were read at the old place, not found, or trained anew."""

import gzip
import shutil

from run_sh import TINY, ok
from small_corpus import PARTS, small_config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.files.layout import cuts_path, features_dir


def copied(tiny_experiment, tiny_data, folder):
    """Corpus, data and experiment in `folder`; the options of run.sh there."""
    shutil.copytree(tiny_data.corpus_dir, folder / "corpus")
    shutil.copytree(tiny_data.data_dir, folder / "data")
    shutil.copytree(tiny_experiment.folder, folder / "exp" / "tiny")
    dirs = ["--corpus-dir", folder / "corpus", "--data-dir", folder / "data", "--exp-dir", folder / "exp"]
    epochs = tiny_experiment.args[-1]
    return ["--conf", TINY, *dirs, epochs]


def times(folder, pattern):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def test_a_copy_is_whole_and_nothing_is_computed_or_trained_anew(tiny_experiment, tiny_data, tmp_path):
    args = copied(tiny_experiment, tiny_data, tmp_path)
    assert "Stage 3: done already" in ok(*args, "--stage", 3, "--stop-stage", 3)
    models, features = times(tmp_path / "exp", "final.pt"), times(tmp_path / "data", "*.lca")
    said = ok(*args, "--stop-stage", 3)
    assert "Stage 2 runs again: " in said and "Stage 3 runs again: " in said
    assert "is trained already" in (tmp_path / "exp/tiny/log/stage-3.log").read_text()
    assert models == times(tmp_path / "exp", "final.pt") and features == times(tmp_path / "data", "*.lca")
    old = str(tiny_data.data_dir).encode(), str(tiny_data.corpus_dir).encode()
    for part in PARTS:
        for manifest in (cuts_path(tmp_path / "data", part), features_dir(tmp_path / "data", part) / "cuts.jsonl.gz"):
            content = gzip.decompress(manifest.read_bytes())
            assert str(tmp_path / "data").encode() in content and str(tmp_path / "corpus").encode() in content
            assert not any(path in content for path in old)


def test_a_copy_is_read_without_stage_2_and_not_the_original(tiny_data, tmp_path):
    shutil.copytree(tiny_data.data_dir, tmp_path / "copy")
    tokenizer = Tokenizer(*(tmp_path / "copy").glob("lang_bpe_*"))
    data = AsrDataModule(small_config(), tmp_path / "copy", tokenizer, subsampling_factor=4)
    for cut in data.cuts(PARTS):
        assert cut.features.storage_path.startswith(f"{tmp_path}/copy/fbank/") and len(cut.load_features())
