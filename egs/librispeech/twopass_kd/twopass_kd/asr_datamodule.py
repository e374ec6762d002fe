"""Lhotse cuts with precomputed features -> batches of tensors."""

import gzip
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Tuple

import torch
from lhotse import CutSet, load_manifest_lazy
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler, SimpleCutSampler
from lhotse.dataset.collation import collate_features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twopass_kd.config import Config
from twopass_kd.files import write_text_atomically
from twopass_kd.tokenizer import Tokenizer, too_many_tokens


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
    cuts: List[Cut]

    @property
    def cut_ids(self) -> List[str]:
        return [c.id for c in self.cuts]

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return sum(c.duration for c in self.cuts)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on `device`."""
        tensors = [t.to(device) for t in (self.feature, self.feature_lens, self.y, self.y_lens)]
        return Batch(*tensors, self.cuts)


def cut_text(cut: Cut) -> str:
    return cut.supervisions[0].text


class AsrDataset(Dataset):
    """Maps a CutSet (one batch) to a `Batch`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __getitem__(self, cuts: CutSet) -> Batch:
        cuts = cuts.sort_by_duration(ascending=False)
        feature, feature_lens = collate_features(cuts)
        tokens = self.tokenizer.encode([cut_text(c) for c in cuts])
        y_lens = torch.tensor([len(t) for t in tokens])
        y = torch.zeros(len(tokens), int(y_lens.max()), dtype=torch.int64)
        for row, t in zip(y, tokens):
            row[: len(t)] = torch.tensor(t, dtype=torch.int64)
        return Batch(feature, feature_lens.long(), y, y_lens, list(cuts))


class _Skip:
    """A sampler without its first `count` batches: where an interrupted epoch goes on."""

    def __init__(self, sampler: Iterable[CutSet], count: int) -> None:
        self.sampler = sampler
        self.count = count

    def __iter__(self) -> Iterator[CutSet]:
        for i, cuts in enumerate(self.sampler):
            if i >= self.count:
                yield cuts


def _open_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as f:
        yield from f


class AsrDataModule:
    """The data loaders of one experiment, from `<data_dir>/fbank/librispeech_cuts_<part>.jsonl.gz`."""

    def __init__(self, cfg: Config, data_dir: Path, tokenizer: Tokenizer, subsampling_factor: int) -> None:
        self.cfg = cfg
        self.data_dir = Path(data_dir)
        self.dataset = AsrDataset(tokenizer)
        self.subsampling_factor = subsampling_factor

    def cuts(self, parts: List[str]) -> CutSet:
        """All cuts of `parts`, opened lazily; several parts are mixed in proportion to their sizes.

        Paths of features that are relative, as icefall's are, count from the folder that `data_dir` lies in.

        Raises:
          FileNotFoundError: naming the missing file and the stage that makes it.
        """
        sets = [load_manifest_lazy(path) for path in self._paths(parts)]
        if len(sets) > 1:
            sizes = [sum(1 for _ in _open_lines(path)) for path in self._paths(parts)]
            sets = [CutSet.mux(*sets, weights=sizes, stop_early=False, seed=self.cfg.seed)]
        return sets[0].with_features_path_prefix(self.data_dir.resolve().parent)

    def _paths(self, parts: List[str]) -> List[Path]:
        paths = [self.data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz" for part in parts]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; stage 2 makes it: ./run.sh --stage 2 --stop-stage 2")
        return paths

    def train_digest(self) -> str:
        """16 hexadecimal digits that identify the training cuts."""
        digest = hashlib.sha256()
        for path in self._paths(self.cfg.corpus.train_parts):
            for line in _open_lines(path):
                digest.update(line)
        return digest.hexdigest()[:16]

    def why_unusable(self, cut: Cut) -> Optional[str]:
        """Why a cut cannot be trained on; None where it can."""
        corpus = self.cfg.corpus
        if not corpus.min_duration <= cut.duration <= corpus.max_duration:
            return f"{cut.duration:.2f} s is not within {corpus.min_duration} to {corpus.max_duration} s"
        num_tokens = len(self.dataset.tokenizer.encode([cut_text(cut)])[0])
        if num_tokens == 0:
            return "empty transcript"
        if too_many_tokens(cut.num_frames, num_tokens, self.subsampling_factor):
            return f"more tokens ({num_tokens}) than frames after subsampling"
        return None

    def usable(self, cut: Cut) -> bool:
        return self.why_unusable(cut) is None

    def train_cuts(self) -> CutSet:
        return self.cuts(self.cfg.corpus.train_parts).filter(self.usable)

    def valid_cuts(self) -> CutSet:
        return self.cuts(self.cfg.corpus.dev_parts).filter(self.usable)

    def measure_train(self, left_out_path: Optional[Path] = None) -> Tuple[int, float]:
        """Number of usable training cuts and their seconds of audio.

        Args:
          left_out_path: where the others are listed with their reasons, if there are any.
        Raises:
          ValueError: if more than `corpus.max_left_out` of them cannot be used, none can, or no dev cut can.
        """
        left_out, count, seconds = [], 0, 0.0
        for cut in self.cuts(self.cfg.corpus.train_parts):
            reason = self.why_unusable(cut)
            if reason is None:
                count += 1
                seconds += cut.duration
            else:
                left_out.append(f"{cut.id}\t{reason}\n")
        if left_out and left_out_path is not None:
            write_text_atomically(left_out_path, "".join(left_out))
            logging.info("left out %d of %d training cuts, see %s", len(left_out), count + len(left_out), left_out_path)
        if len(left_out) > self.cfg.corpus.max_left_out * (count + len(left_out)):
            raise ValueError(
                f"{len(left_out)} of {count + len(left_out)} training cuts cannot be used, e.g. {left_out[0].strip()}; "
                f"mend them, or raise `corpus.max_left_out` ({self.cfg.corpus.max_left_out})"
            )
        if count == 0:
            raise ValueError(f"none of the cuts of {self.cfg.corpus.train_parts} can be used for training")
        if next(iter(self.valid_cuts()), None) is None:
            raise ValueError(f"none of the cuts of {self.cfg.corpus.dev_parts} can be used for validation")
        return count, seconds

    def feature_statistics(self, max_cuts: int = 1000) -> Tuple[Tensor, Tensor]:
        """Mean and standard deviation of each mel bin, (num_mel_bins,) float32, over the first training cuts."""
        total = torch.zeros(self.cfg.features.num_mel_bins, dtype=torch.float64)
        square, count = total.clone(), 0
        for cut in self.train_cuts().subset(first=max_cuts):
            x = torch.from_numpy(cut.load_features()).double()
            total += x.sum(0)
            square += x.square().sum(0)
            count += len(x)
        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()

    def train_loader(self, epoch: int, num_cuts: int, sort: bool = False, skip: int = 0) -> DataLoader:
        """Batches of epoch `epoch` (from 1): the same ones each time it is called for the same seed.

        Args:
          num_cuts: from `measure_train`; a tiny corpus gets fewer buckets.
          sort: from short to long instead of shuffled.
          skip: batches of this epoch that were trained on already.
        """
        train = self.cfg.train
        if sort:
            cuts = self.train_cuts().to_eager().sort_by_duration(ascending=True)
            sampler = SimpleCutSampler(cuts, max_duration=train.max_duration, shuffle=False)
        else:
            sampler = DynamicBucketingSampler(
                self.train_cuts(),
                max_duration=train.max_duration,
                num_buckets=max(2, min(train.num_buckets, num_cuts // 50)),
                shuffle=True,
                seed=self.cfg.seed,
                drop_last=False,
            )
            sampler.set_epoch(epoch)
        return self._loader(_Skip(sampler, skip))

    def valid_loader(self) -> DataLoader:
        return self._loader(
            DynamicCutSampler(self.valid_cuts(), max_duration=self.cfg.train.max_duration, shuffle=False)
        )

    def decode_loader(self, part: str) -> DataLoader:
        """All cuts of one part (nothing filtered), from short to long for little padding."""
        return self._sorted_loader(self.cuts([part]))

    def cache_loader(self) -> DataLoader:
        """All training cuts once, in batches for inference, always in the same order."""
        return self._sorted_loader(self.train_cuts())

    def _sorted_loader(self, cuts: CutSet) -> DataLoader:
        cuts = cuts.to_eager().sort_by_duration(ascending=True)
        return self._loader(SimpleCutSampler(cuts, max_duration=self.cfg.decode.max_duration, shuffle=False))

    def _loader(self, sampler: Iterable[CutSet]) -> DataLoader:
        return DataLoader(self.dataset, sampler=sampler, batch_size=None, num_workers=self.cfg.train.num_workers)
