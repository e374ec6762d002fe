"""icefall stores paths of features relative to its recipe's folder; ours could not read them from elsewhere."""

from pathlib import Path

import numpy as np
from lhotse import CutSet

from random_cuts import data_dir  # noqa: F401  (a fixture)
from twopass_kd.config.load import load_config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer

MINI = Path(__file__).parents[2] / "egs/librispeech/twopass_kd/conf/mini.yaml"


def test_features_are_found_from_any_folder(data_dir, tmp_path, monkeypatch):  # noqa: F811
    cuts = CutSet.from_file(data_dir / "fbank" / "librispeech_cuts_dev.jsonl.gz").to_eager()
    want = {c.id: c.load_features() for c in cuts}
    for cut in cuts:
        cut.features.storage_path = "data/fbank/" + Path(cut.features.storage_path).name
    (tmp_path / "data" / "fbank").mkdir(parents=True)
    cuts.to_file(tmp_path / "data" / "fbank" / "librispeech_cuts_dev.jsonl.gz")
    (tmp_path / "data" / "fbank" / "feats.lca").symlink_to(data_dir / "fbank" / "feats.lca")
    monkeypatch.chdir("/")
    cfg = load_config(MINI, ["corpus.dev_parts=[dev]"])
    data = AsrDataModule(cfg, tmp_path / "data", Tokenizer(data_dir / "lang_bpe_40"), subsampling_factor=4)
    for cut in data.cuts(["dev"]):
        np.testing.assert_allclose(cut.load_features(), want[cut.id])
