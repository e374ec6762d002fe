"""Lhotse cuts with precomputed features -> batches of tensors."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator, List, Tuple

import torch
from lhotse import CutSet, load_manifest_lazy
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler, SimpleCutSampler
from lhotse.dataset.collation import collate_features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from twopass_kd.config import Config
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


class AsrDataModule:
    """The data loaders of one experiment, from `<data_dir>/fbank/librispeech_cuts_<part>.jsonl.gz`."""

    def __init__(self, cfg: Config, data_dir: Path, tokenizer: Tokenizer, subsampling_factor: int) -> None:
        self.cfg = cfg
        self.data_dir = Path(data_dir)
        self.dataset = AsrDataset(tokenizer)
        self.subsampling_factor = subsampling_factor

    def cuts(self, parts: List[str]) -> CutSet:
        """All cuts of `parts`, opened lazily.

        Raises:
          FileNotFoundError: naming the missing file and the stage that makes it.
        """
        sets = []
        for part in parts:
            path = self.data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; stage 2 makes it: ./run.sh --stage 2 --stop-stage 2")
            sets.append(load_manifest_lazy(path))
        return sets[0] if len(sets) == 1 else CutSet.mux(*sets, stop_early=False, seed=self.cfg.seed)

    def usable(self, cut: Cut) -> bool:
        """Whether a cut can be trained on: within the duration limits, not empty, not more tokens than frames."""
        if not self.cfg.corpus.min_duration <= cut.duration <= self.cfg.corpus.max_duration:
            return False
        num_tokens = len(self.dataset.tokenizer.encode([cut_text(cut)])[0])
        return num_tokens > 0 and not too_many_tokens(cut.num_frames, num_tokens, self.subsampling_factor)

    def train_cuts(self) -> CutSet:
        return self.cuts(self.cfg.corpus.train_parts).filter(self.usable)

    def valid_cuts(self) -> CutSet:
        return self.cuts(self.cfg.corpus.dev_parts).filter(self.usable)

    def measure_train(self) -> Tuple[int, float]:
        """Number of usable training cuts and their seconds; the cuts left out are counted in the log."""
        every, count, seconds = 0, 0, 0.0
        for cut in self.cuts(self.cfg.corpus.train_parts):
            every += 1
            if self.usable(cut):
                count += 1
                seconds += cut.duration
        if count < every:
            logging.info(
                "left out %d of %d training cuts (duration limits, or more tokens than frames)", every - count, every
            )
        if count == 0:
            raise ValueError(
                f"none of the {every} cuts of {self.cfg.corpus.train_parts} can be trained on; see left_out.tsv"
            )
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
