"""A model that hears bursts of noise and counts them, and audio to count: every text and time is known beforehand."""

from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from twopass_kd.ondevice.runtime import ModelInfo

RATE = 16000
WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX")


class CountingRuntime:
    """A model that hears bursts of noise and counts them: the n-th burst of an utterance is the n-th word.

    Its output for a burst's first frame is 1 and else 0; the decoder gives the last token, so that the joiner can
    tell which word comes next.
    """

    info = ModelInfo(
        num_features=40,
        sampling_rate=RATE,
        subsampling_factor=4,
        chunk_frames=19,
        chunk_shift=16,
        context_size=2,
        vocab_size=3 + len(WORDS),
        tokens=("<blk>", "<sos/eos>", "<unk>", *("\u2581" + w for w in WORDS)),
        second_pass=True,
        rescore_weight=0.5,
        length_reward=0.0,
        beam=4,
        nbest=3,
    )

    def init_states(self, batch):
        return np.zeros((1, batch, 1), np.float32), np.zeros((1, batch, 1), np.float32)

    def encode(self, x, states):
        loud = np.stack([x[:, 3 + 4 * t].mean(axis=1) > -6.0 for t in range((x.shape[1] - 3) // 4)], axis=1)
        before = np.concatenate([states[0][0, :, 0, None] > 0, loud[:, :-1]], axis=1)
        out = (loud & ~before).astype(np.float32)[:, :, None]
        return out, out, (loud[:, -1:, None].transpose(1, 0, 2).astype(np.float32), states[1])

    def decode(self, context):
        return context[:, -1:].astype(np.float32)

    def join(self, encoder_out, decoder_out):
        logits = np.zeros((len(encoder_out), self.info.vocab_size), np.float32)
        following = np.clip(decoder_out[:, 0].astype(int) + 1, 3, self.info.vocab_size - 1)
        logits[np.arange(len(logits)), np.where(encoder_out[:, 0] > 0, following, 0)] = 8.0
        return logits

    def attention_log_probs(self, memory, hyps):
        return np.array([-abs(len(h) - memory.sum()) for h in hyps], np.float32)


def bursts(*pauses: float, rate: int = RATE) -> np.ndarray:
    """Silences (very faint noise) of so many seconds, with 0.3 s of noise between them."""
    rng = np.random.default_rng(0)
    parts = []
    for i, pause in enumerate(pauses):
        if i:
            parts.append(0.2 * rng.standard_normal(round(0.3 * RATE)))
        parts.append(1e-5 * rng.standard_normal(round(pause * RATE)))
    x = np.concatenate(parts)
    return (x if rate == RATE else resample_poly(x, rate // 100, RATE // 100)).astype(np.float32)


def write(path: Path, x: np.ndarray, rate: int = RATE, **kwargs) -> str:
    soundfile.write(path, x, rate, **kwargs)
    return str(path)


def write_talk(path: Path) -> str:
    """Two words, a pause that ends the utterance, three words; 6 s. The words come at 0.5, 1.3, 3.6, 4.4 and 5.2 s."""
    return write(path, bursts(0.5, 0.5, 2.0, 0.5, 0.5, 0.5), subtype="FLOAT")
