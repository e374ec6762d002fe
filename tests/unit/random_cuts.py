"""Cuts of random features, as stage 2 leaves them, and the data module of mini.yaml on them."""

from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, LilcomChunkyWriter, MonoCut, SupervisionSegment
from lhotse.testing.dummies import dummy_recording

from twopass_kd.config.load import load_config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.tokenizer import Tokenizer

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
    more = CutSet.from_cuts(cuts[:5]).modify_ids(lambda cut_id: f"more-{cut_id}")
    more.to_file(root / "fbank" / "librispeech_cuts_more.jsonl.gz")
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
    parts += ["augment.noise=0", "augment.gain=0", "augment.pauses=0"]
    cfg = load_config(MINI, [*parts, "train.max_duration=8", "tokens.vocab_size=40", "corpus.max_left_out=0.03"])
    return AsrDataModule(cfg, data_dir, Tokenizer(data_dir / "lang_bpe_40"), subsampling_factor=4)
