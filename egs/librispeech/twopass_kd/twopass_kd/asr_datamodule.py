"""Lhotse cuts with precomputed features -> batches of tensors."""

import hashlib
import json
import logging
import signal
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from lhotse import CutSet, load_manifest_lazy
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler, SimpleCutSampler
from lhotse.utils import LOG_EPSILON
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from twopass_kd.config import Config
from twopass_kd.cut_lines import CutLines, open_lines, parse_line, paths_root, whole_cut
from twopass_kd.files import write_text_atomically
from twopass_kd.noise import NoiseMixer
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
        tensors = [t.to(device, non_blocking=True) for t in (self.feature, self.feature_lens, self.y, self.y_lens)]
        return Batch(*tensors, self.cuts)

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads without a copy in between; DataLoader calls it."""
        tensors = [t.pin_memory() for t in (self.feature, self.feature_lens, self.y, self.y_lens)]
        return Batch(*tensors, self.cuts)


@dataclass
class TrainCuts:
    """What `measure_train` finds in the training manifests.

    Attributes:
      num_cuts: usable cuts.
      seconds: of their audio.
      longest: seconds of the longest of them.
      most_tokens: the most that one of them has.
      left_out: id -> reason of the others.
      sizes: cuts in each manifest, usable or not.
      digest: 16 hexadecimal digits that identify the content of the manifests.
    """

    num_cuts: int
    seconds: float
    longest: float
    most_tokens: int
    left_out: Dict[str, str]
    sizes: List[int]
    digest: str


def cut_text(cut: Cut) -> str:
    return cut.supervisions[0].text


class AsrDataset(Dataset):
    """Maps a CutSet (one batch) to a `Batch`.

    Args:
      root: folder that relative paths of features count from, where the cuts are out of `CutLines`.
      noise: what mixes noise into the features; None: they stay as they are.
    """

    def __init__(self, tokenizer: Tokenizer, root: Path, noise: Optional[NoiseMixer] = None) -> None:
        self.tokenizer = tokenizer
        self.root = root
        self.noise = noise

    def __getitem__(self, cuts: CutSet) -> Batch:
        cuts = CutSet.from_cuts(whole_cut(cut, self.root) for cut in cuts).sort_by_duration(ascending=False)
        if self.noise is not None:
            cuts = CutSet.from_cuts(self.noise.mix(cut) for cut in cuts)
        features = [torch.from_numpy(cut.load_features()) for cut in cuts]
        feature = pad_sequence(features, batch_first=True, padding_value=LOG_EPSILON)
        feature_lens = torch.tensor([len(x) for x in features])
        tokens = self.tokenizer.encode([cut_text(c) for c in cuts])
        y_lens = torch.tensor([len(t) for t in tokens])
        y = torch.zeros(len(tokens), int(y_lens.max()), dtype=torch.int64)
        for row, t in zip(y, tokens):
            row[: len(t)] = torch.tensor(t, dtype=torch.int64)
        return Batch(feature, feature_lens, y, y_lens, list(cuts))


class _Slice:
    """A sampler's batches from number `start`, every `step`-th of them."""

    def __init__(self, sampler: Iterable[CutSet], start: int, step: int = 1) -> None:
        self.sampler = sampler
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[CutSet]:
        return islice(self.sampler, self.start, None, self.step)


def _read_json(path: Optional[Path]) -> Dict[str, Any]:
    """The content of a JSON file; empty where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (AttributeError, OSError, ValueError):
        return {}


def _ignore_signals(_worker: int) -> None:
    """A worker goes on when all processes are told to stop, as Slurm does: the trainer still takes a step and saves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# Said to samplers that are to give all batches: by default they ask torch.distributed.
_ALL = {"rank": 0, "world_size": 1}


class AsrDataModule:
    """The data loaders of one experiment, from `<data_dir>/fbank/librispeech_cuts_<part>.jsonl.gz`.

    The manifests are read as the batches are made, so memory does not grow with the corpus.

    Args:
      rank, world_size: training and validation give each of `world_size` ranks its own batches. All ranks get as many
        training batches; the last ones are shared out, and an utterance doubled where there are fewer than ranks.
    """

    def __init__(
        self,
        cfg: Config,
        data_dir: Path,
        tokenizer: Tokenizer,
        subsampling_factor: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.cfg = cfg
        self.data_dir = Path(data_dir)
        self.root = paths_root(self.data_dir)
        self.dataset = AsrDataset(tokenizer, self.root)
        self.subsampling_factor = subsampling_factor
        self.rank, self.world_size = rank, world_size
        self.measured: Optional[TrainCuts] = None
        self._sizes: Dict[Path, int] = {}

    def cuts(self, parts: List[str]) -> CutSet:
        """All cuts of `parts`, opened lazily; several parts are mixed in proportion to their sizes.

        Paths of features that are relative, as icefall's are, count from the folder that `data_dir` lies in.

        Raises:
          FileNotFoundError: naming the missing file and the stage that makes it.
        """
        sets = [load_manifest_lazy(path) for path in self._paths(parts)]
        return self._mixed(sets, parts).with_features_path_prefix(self.root)

    def _mixed(self, sets: List[CutSet], parts: List[str]) -> CutSet:
        if len(sets) == 1:
            return sets[0]
        sizes = [self._size(path) for path in self._paths(parts)]
        return CutSet.mux(*sets, weights=sizes, stop_early=False, seed=self.cfg.seed)

    def _paths(self, parts: List[str]) -> List[Path]:
        paths = [self.data_dir / "fbank" / f"librispeech_cuts_{part}.jsonl.gz" for part in parts]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; stage 2 makes it: ./run.sh --stage 2 --stop-stage 2")
        return paths

    def _size(self, path: Path) -> int:
        """Number of cuts in a manifest."""
        if path not in self._sizes:
            self._sizes[path] = sum(1 for _ in open_lines(path))
        return self._sizes[path]

    def why_unusable(self, cut: Cut, num_tokens: int) -> Optional[str]:
        """Why a cut, whose text has `num_tokens` tokens, cannot be trained on; None where it can."""
        corpus = self.cfg.corpus
        if not corpus.min_duration <= cut.duration <= corpus.max_duration:
            return f"{cut.duration:.2f} s is not within {corpus.min_duration} to {corpus.max_duration} s"
        if num_tokens == 0:
            return "empty transcript"
        if too_many_tokens(cut.num_frames, num_tokens, self.subsampling_factor):
            return f"more tokens ({num_tokens}) than frames after subsampling"
        return None

    def _num_tokens(self, cut: Cut) -> int:
        return len(self.dataset.tokenizer.encode([cut_text(cut)])[0])

    def _is_usable(self, cut: Cut) -> bool:
        return self.why_unusable(cut, self._num_tokens(cut)) is None

    def _is_train_cut(self, cut: Cut) -> bool:
        assert self.measured is not None, "measure_train first"
        return cut.id not in self.measured.left_out

    def train_cuts(self) -> CutSet:
        """The usable training cuts, read lazily. After `measure_train`."""
        return self.cuts(self.cfg.corpus.train_parts).filter(self._is_train_cut)

    def _train_lines(self) -> CutSet:
        """The training cuts in the same order, as `CutLines` has them."""
        parts = self.cfg.corpus.train_parts
        sets = [CutSet(CutLines(path)) for path in self._paths(parts)]
        return self._mixed(sets, parts).filter(self._is_train_cut)

    def valid_cuts(self) -> CutSet:
        """The usable dev cuts, read lazily."""
        return self.cuts(self.cfg.corpus.dev_parts).filter(self._is_usable)

    def measure_train(self, cache: Optional[Path] = None, left_out_path: Optional[Path] = None) -> TrainCuts:
        """Look at all training cuts once: which are usable, and how much audio that is.

        Args:
          cache: JSON file that the answer is kept in, for as long as the manifests and the settings stay as they are.
          left_out_path: where the unusable ones are listed with their reasons, if there are any.
        Raises:
          ValueError: if more than `corpus.max_left_out` of them cannot be used, none can, or no dev cut can.
        """
        key = self._measure_key()
        found = _read_json(cache)
        if found.get("key") == key:
            self.measured = TrainCuts(**found["train_cuts"])
        else:
            self.measured = self._measure()
            if cache is not None:
                write_text_atomically(cache, json.dumps({"key": key, "train_cuts": asdict(self.measured)}))
        measured = self.measured
        self._sizes.update(zip(self._paths(self.cfg.corpus.train_parts), measured.sizes))
        left_out = [f"{cut_id}\t{reason}\n" for cut_id, reason in measured.left_out.items()]
        total = measured.num_cuts + len(left_out)
        if left_out and left_out_path is not None:
            write_text_atomically(left_out_path, "".join(left_out))
            logging.info("left out %d of %d training cuts, see %s", len(left_out), total, left_out_path)
        if len(left_out) > self.cfg.corpus.max_left_out * total:
            raise ValueError(
                f"{len(left_out)} of {total} training cuts cannot be used, e.g. {left_out[0].strip()}; "
                f"mend them, or raise `corpus.max_left_out` ({self.cfg.corpus.max_left_out})"
            )
        if measured.num_cuts == 0:
            raise ValueError(f"none of the cuts of {self.cfg.corpus.train_parts} can be used for training")
        if next(iter(self.valid_cuts()), None) is None:
            raise ValueError(f"none of the cuts of {self.cfg.corpus.dev_parts} can be used for validation")
        return measured

    def _measure_key(self) -> Dict[str, Any]:
        """What the result of `_measure` depends on."""
        corpus = self.cfg.corpus
        stats = [(path.resolve(), path.stat()) for path in self._paths(corpus.train_parts)]
        return {
            "manifests": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
            "durations": [corpus.min_duration, corpus.max_duration],
            "tokens": self.dataset.tokenizer.digest(),
            "subsampling_factor": self.subsampling_factor,
        }

    def _measure(self) -> TrainCuts:
        measured = TrainCuts(0, 0.0, 0.0, 0, {}, [], "")
        digest = hashlib.sha256()
        for path in self._paths(self.cfg.corpus.train_parts):
            measured.sizes.append(0)
            for line in tqdm(open_lines(path), desc=f"Measuring {path.name}", unit="cut", disable=None):
                digest.update(line)
                measured.sizes[-1] += 1
                cut = parse_line(line)
                num_tokens = self._num_tokens(cut)
                reason = self.why_unusable(cut, num_tokens)
                if reason is not None:
                    measured.left_out[cut.id] = reason
                    continue
                measured.num_cuts += 1
                measured.seconds += cut.duration
                measured.longest = max(measured.longest, cut.duration)
                measured.most_tokens = max(measured.most_tokens, num_tokens)
        measured.digest = digest.hexdigest()[:16]
        return measured

    def feature_statistics(self, max_cuts: int = 1000) -> Tuple[Tensor, Tensor]:
        """Mean and standard deviation of each mel bin, (num_mel_bins,) float32, over the first training cuts.

        After `measure_train`.
        """
        total = torch.zeros(self.cfg.features.num_mel_bins, dtype=torch.float64)
        square, count = total.clone(), 0
        for cut in self.train_cuts().subset(first=max_cuts):
            x = torch.from_numpy(cut.load_features()).double()
            total += x.sum(0)
            square += x.square().sum(0)
            count += len(x)
        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()

    def train_loader(self, epoch: int, sort: bool = False, skip: int = 0) -> DataLoader:
        """This rank's batches of epoch `epoch` (from 1): the same ones each time it is called for the same seed.

        After `measure_train`, by which a tiny corpus gets fewer buckets. With `corpus.musan`, noise is mixed in.

        Args:
          sort: from short to long instead of shuffled; reads the whole manifest into memory.
          skip: batches of this epoch that this rank has trained on already.
        """
        assert self.measured is not None, "measure_train first"
        corpus, train = self.cfg.corpus, self.cfg.train
        mine = {"rank": self.rank, "world_size": self.world_size}
        if sort:
            cuts = self.train_cuts().to_eager().sort_by_duration(ascending=True)
            sampler = SimpleCutSampler(cuts, max_duration=train.max_duration, shuffle=False, **mine)
        else:
            sampler = DynamicBucketingSampler(
                self._train_lines(),
                max_duration=train.max_duration,
                num_buckets=max(2, min(train.num_buckets, self.measured.num_cuts // 50)),
                shuffle=True,
                seed=self.cfg.seed,
                drop_last=False,
                **mine,
            )
            sampler.set_epoch(epoch)
        noise = NoiseMixer(self.data_dir, self.cfg.seed, epoch) if corpus.musan else None
        return self._loader(_Slice(sampler, skip), AsrDataset(self.dataset.tokenizer, self.root, noise))

    def valid_loader(self) -> DataLoader:
        """Every `world_size`-th batch of the dev cuts: none doubled, so ranks may have one batch more or less."""
        sampler = DynamicCutSampler(self.valid_cuts(), max_duration=self.cfg.train.max_duration, shuffle=False, **_ALL)
        return self._loader(_Slice(sampler, self.rank, self.world_size))

    def decode_loader(self, part: str) -> DataLoader:
        """All cuts of one part (nothing filtered), from short to long for little padding."""
        return self._sorted_loader(self.cuts([part]))

    def cache_loader(self) -> DataLoader:
        """All training cuts once, in batches for inference, always in the same order."""
        return self._sorted_loader(self.train_cuts())

    def _sorted_loader(self, cuts: CutSet) -> DataLoader:
        cuts = cuts.to_eager().sort_by_duration(ascending=True)
        return self._loader(SimpleCutSampler(cuts, max_duration=self.cfg.decode.max_duration, shuffle=False, **_ALL))

    def _loader(self, sampler: Iterable[CutSet], dataset: Optional[AsrDataset] = None) -> DataLoader:
        return DataLoader(
            dataset or self.dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.cfg.train.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
