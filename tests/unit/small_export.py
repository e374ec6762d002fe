"""An experiment that can be exported: an untrained model that talks, noise as dev and test audio, tokens of its own."""

import json
from pathlib import Path

import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from small_corpus import WORDS
from tiny import PIECES, TINY_CONF, noise, save_tiny_checkpoint
from train_bpe import write_lang
from twopass_kd.config.load import load_config
from twopass_kd.data.tokenizer import Tokenizer
from twopass_kd.models.checkpoint import load_checkpoint, save_checkpoint

SYSTEM, PHASE = "student", "student/deep"


def exportable_experiment(root, overrides=(), second_pass=True, utterances=4):
    """Write what `bin/export.py` reads; returns (cfg, data_dir, exp_dir)."""
    root = Path(root)
    overrides = [f"tokens.vocab_size={len(PIECES)}", *overrides]
    cfg = load_config(TINY_CONF, overrides)
    data_dir, exp_dir = root / "data", root / "exp"
    write_lang(data_dir / f"lang_bpe_{len(PIECES)}", [" ".join(WORDS)], len(PIECES))
    for part in (*cfg.corpus.dev_parts, *cfg.corpus.test_parts):
        write_cuts(data_dir, part, utterances)
    path = exp_dir / cfg.name / PHASE / "final.pt"
    save_tiny_checkpoint(path, phase=PHASE, second_pass=second_pass, overrides=overrides)
    tokenizer = Tokenizer(data_dir / f"lang_bpe_{len(PIECES)}")
    content = {**load_checkpoint(path), "tokens": tokenizer.pieces, "tokens_digest": tokenizer.digest()}
    save_checkpoint(content, path)
    decoded = {
        "identity": content["identity"],
        "beam": cfg.decode.beam,
        "nbest": cfg.decode.nbest,
        "rescore_weight": 0.5 if second_pass else None,
        "length_reward": 0.25 if second_pass else None,
    }
    (exp_dir / cfg.name / "decode" / SYSTEM).mkdir(parents=True)
    (exp_dir / cfg.name / "decode" / SYSTEM / "decode.json").write_text(json.dumps(decoded))
    return cfg, data_dir, exp_dir


def write_cuts(data_dir, part, utterances, sampling_rate=16000):
    """Cuts of noise with words as their transcripts; the audio's paths are relative to the parent of `data_dir`."""
    cuts = []
    for i in range(utterances):
        path = Path("audio") / part / f"utt-{i}.flac"
        (data_dir.parent / path).parent.mkdir(parents=True, exist_ok=True)
        samples = noise(1.0 + 0.37 * i, seed=i, sampling_rate=sampling_rate)
        soundfile.write(data_dir.parent / path, samples, sampling_rate)
        recording = Recording.from_file(data_dir.parent / path, recording_id=f"utt-{i}")
        recording.sources[0].source = str(path)
        text = " ".join(WORDS[i : i + 3])
        supervision = SupervisionSegment(f"utt-{i}", f"utt-{i}", 0, recording.duration, text=text)
        cuts.append(MonoCut(f"utt-{i}", 0, recording.duration, 0, [supervision], recording=recording))
    (data_dir / "fbank").mkdir(parents=True, exist_ok=True)
    CutSet.from_cuts(cuts).to_file(data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz")
