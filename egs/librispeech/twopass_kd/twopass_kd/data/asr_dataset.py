"""Batches of tensors out of Lhotse cuts with precomputed features."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lhotse import CutSet, MonoCut
from lhotse.cut import Cut
from lhotse.utils import LOG_EPSILON
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from twopass_kd.data.cut_checks import frames_fault
from twopass_kd.data.cut_lines import LineCut, whole_cut
from twopass_kd.data.tokenizer import Tokenizer


@dataclass
class Batch:
    """One batch: B utterances, padded.

    Attributes:
      feature: (B, T, num_mel_bins) float32 log-mel fbank, padded with log(1e-10).
      feature_lens: (B,) int64, frames before subsampling.
      y: (B, S) int64 tokens, padded with 0.
      y_lens: (B,) int64.
      cuts: the cuts themselves, for ids, references and durations.
    """

    feature: Tensor
    feature_lens: Tensor
    y: Tensor
    y_lens: Tensor
    cuts: list[Cut]

    @property
    def cut_ids(self) -> list[str]:
        return [c.id for c in self.cuts]

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return sum(c.duration for c in self.cuts)

    def select(self, rows: Tensor) -> "Batch":
        """The utterances that `rows`, (B,) bool on the CPU, tells of; padded no further than they need."""
        cuts = [cut for cut, chosen in zip(self.cuts, rows.tolist()) if chosen]
        rows = rows.to(self.feature.device)
        feature_lens, y_lens = self.feature_lens[rows], self.y_lens[rows]
        feature = self.feature[rows, : int(feature_lens.max())]
        return Batch(feature, feature_lens, self.y[rows, : int(y_lens.max())], y_lens, cuts)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        tensors = [t.to(device, non_blocking=True) for t in (self.feature, self.feature_lens, self.y, self.y_lens)]
        return Batch(*tensors, self.cuts)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads without a copy in between; DataLoader calls it."""
        tensors = [t.pin_memory() for t in (self.feature, self.feature_lens, self.y, self.y_lens)]
        return Batch(*tensors, self.cuts)


def cut_text(cut: Cut) -> str:
    return cut.supervisions[0].text


def load_features(cut: Cut) -> Tensor:
    """(T, num_mel_bins) float32.

    Raises:
      ValueError: naming the cut whose features cannot be read, are not finite or not as long as the cut.
    """
    try:
        features = torch.from_numpy(cut.load_features())
        finite = bool(features.isfinite().all())
        problem = frames_fault(cut, *features.shape) if finite else "they have NaN or infinity"
        if problem is None:
            return features
    except Exception as e:  # each kind of storage has errors of its own
        problem = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"  # Lhotse goes on with the whole cut
    where = f" in {cut.features.storage_path}" if isinstance(cut, MonoCut) else ""
    raise ValueError(f"the features of {cut.id}{where} cannot be read ({problem}); compute them anew")


class AsrDataset(Dataset):
    """Maps a CutSet (one batch) to a `Batch`.

    Args:
      data_dir: whose manifests the cuts are from.
      augment: features (T, F) and cut of an utterance -> other features; None: they stay as they are.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        data_dir: Path,
        augment: Callable[[Tensor, Cut], Tensor] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.data_dir = data_dir
        self.augment = augment

    def whole(self, cut: Cut) -> Cut:
        """`whole_cut`, its text normalised: what is scored is what can be learnt."""
        if isinstance(cut, LineCut):
            cut = whole_cut(cut.line, self.data_dir)
            for supervision in cut.supervisions:
                if isinstance(supervision.text, str):
                    (supervision.text,) = self.tokenizer.normalize([supervision.text])
        return cut

    def load(self, cut: Cut) -> Tensor:
        """The features of an utterance, (T, num_mel_bins)."""
        features = load_features(cut)
        return features if self.augment is None else self.augment(features, cut)

    def __getitem__(self, cuts: CutSet) -> Batch:
        cuts = CutSet.from_cuts(self.whole(cut) for cut in cuts).sort_by_duration(ascending=False)
        features = [self.load(cut) for cut in cuts]
        feature = pad_sequence(features, batch_first=True, padding_value=LOG_EPSILON)
        feature_lens = torch.tensor([len(x) for x in features])
        tokens = self.tokenizer.encode([cut_text(cut) for cut in cuts])
        y_lens = torch.tensor([len(t) for t in tokens])
        y = torch.zeros(len(tokens), int(y_lens.max()), dtype=torch.int64)
        for row, t in zip(y, tokens):
            row[: len(t)] = torch.tensor(t, dtype=torch.int64)
        return Batch(feature, feature_lens, y, y_lens, list(cuts))
