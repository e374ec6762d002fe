"""The data of an experiment: what is usable of its manifests, and loaders of batches."""

import hashlib
import json
import logging
import math
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler, SimpleCutSampler
from lhotse.utils import fastcopy
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from twopass_kd.config.schema import Config
from twopass_kd.data.asr_dataset import AsrDataset, cut_text, load_features
from twopass_kd.data.augment import Augmenter
from twopass_kd.data.conditions import Condition, ConditionDataset, Span
from twopass_kd.data.cut_checks import UniqueIds, cut_faults
from twopass_kd.data.cut_lines import CutLines, manifest_lines, read_cuts, without_folders
from twopass_kd.data.fbank import make_fbank
from twopass_kd.data.noise import Babble, ColouredNoise, NoiseSource, find_musan, musan
from twopass_kd.data.pauses import Pauses
from twopass_kd.data.spec_augment import SpecAugmenter
from twopass_kd.data.tokenizer import Tokenizer, too_many_tokens
from twopass_kd.files.layout import cuts_path
from twopass_kd.files.write import printable, state_of_file, write_text_atomically


@dataclass
class TrainCuts:
    """What `measure_train` finds in the manifests of the training and dev parts.

    Attributes:
      num_cuts: usable training cuts.
      seconds: of their audio.
      longest: seconds of the longest of them.
      most_tokens: the most that one of them has.
      left_out: part -> id -> reason of the others, of the dev parts too.
      sizes: part -> its cuts, usable or not.
      digest: 16 hexadecimal digits that identify the content of the training manifests, wherever the data lie.
    """

    num_cuts: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    most_tokens: int = 0
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    digest: str = ""


class _Slice:
    """A sampler's batches from number `start`, every `step`-th of them."""

    def __init__(self, sampler: Iterable[CutSet], start: int, step: int = 1) -> None:
        self.sampler = sampler
        self.start, self.step = start, step

    def __iter__(self) -> Iterator[CutSet]:
        return islice(self.sampler, self.start, None, self.step)


def read_measured(path: Path) -> tuple[dict[str, Any], TrainCuts]:
    """What `measure_train` has kept, and what that depends on; both empty where it has not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["key"], TrainCuts(**content["train_cuts"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, TrainCuts()


def measured_before(cache: Path, train_manifests: Sequence[Path]) -> TrainCuts | None:
    """What `measure_train` has kept of these training cuts, whatever the settings; None where they have changed."""
    key, measured = read_measured(cache)
    return measured if key.get("train") == [state_of_file(path) for path in train_manifests] else None


def _ignore_signals(_worker: int) -> None:
    """A worker goes on when all processes are told to stop, as Slurm does: the trainer still takes a step and saves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


MAX_VOICES = 2000  # utterances that babble is made of; their lines stay in memory
MAX_TEST_VOICES = 50  # those of a test set; their audio does

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
        self.dataset = AsrDataset(tokenizer, self.data_dir)
        self.subsampling_factor = subsampling_factor
        self.rank, self.world_size = rank, world_size
        self.measured: TrainCuts | None = None

    def cuts(self, parts: Sequence[str]) -> CutSet:
        """All cuts of `parts`, opened lazily; several parts are mixed in proportion to their sizes.

        Their texts are normalised; features and audio are read where they are (`whole_cut`).

        Raises:
          FileNotFoundError: naming the missing file and the stage that makes it.
        """
        return self._lines(parts).map(self.dataset.whole)

    def _lines(self, parts: Sequence[str]) -> CutSet:
        sets = [CutSet(CutLines(path)) for path in self._paths(parts)]
        if len(sets) == 1:
            return sets[0]
        return CutSet.mux(*sets, weights=[self._size(part) for part in parts], stop_early=False, seed=self.cfg.seed)

    def _paths(self, parts: Sequence[str]) -> list[Path]:
        paths = [cuts_path(self.data_dir, part) for part in parts]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; stage 2 makes it: ./run.sh --stage 2 --stop-stage 2")
        return paths

    def _size(self, part: str) -> int:
        """Number of cuts of a part."""
        if self.measured is not None and part in self.measured.sizes:
            return self.measured.sizes[part]
        return sum(1 for _ in manifest_lines(*self._paths([part])))

    def why_unusable(self, cut: Cut) -> tuple[str | None, int]:
        """Why a cut cannot be trained on, None where it can; and how many tokens it has then."""
        corpus = self.cfg.corpus
        fault = next(cut_faults(cut, self.cfg.features), None)
        if fault is not None:
            return fault, 0
        if not corpus.min_duration <= cut.duration <= corpus.max_duration:
            return f"{cut.duration:.2f} s is not within {corpus.min_duration} to {corpus.max_duration} s", 0
        tokenizer = self.dataset.tokenizer
        (tokens,) = tokenizer.encode([cut_text(cut)])
        if not tokens:
            return f"its text ({cut_text(cut)!a}) has no letter that the tokens know", 0
        special = next((token for token in tokens if token <= tokenizer.sos_id), None)
        if special is not None:
            return f"its text has {tokenizer.pieces[special]}, which is not for texts", 0
        if too_many_tokens(cut.num_frames, len(tokens), self.subsampling_factor):
            return f"more tokens ({len(tokens)}) than frames after subsampling", 0
        return None, len(tokens)

    def _usable(self, cuts: CutSet, parts: Sequence[str]) -> CutSet:
        """Those of the cuts of `parts` that are usable. After `measure_train`."""
        assert self.measured is not None, "measure_train first"
        left_out = {cut_id for part in parts for cut_id in self.measured.left_out[part]}

        def is_usable(cut: Cut) -> bool:
            return cut.id not in left_out

        return cuts.filter(is_usable)

    def train_cuts(self) -> CutSet:
        """The usable training cuts, read lazily. After `measure_train`."""
        parts = self.cfg.corpus.train_parts
        return self._usable(self.cuts(parts), parts)

    def valid_cuts(self) -> CutSet:
        """The usable dev cuts, read lazily. After `measure_train`."""
        parts = self.cfg.corpus.dev_parts
        return self._usable(self.cuts(parts), parts)

    def measure_train(self, cache: Path | None = None, left_out_path: Path | None = None) -> TrainCuts:
        """Look at all training and dev cuts once: which are usable, and how much audio that is.

        Args:
          cache: JSON file that the answer is kept in, for as long as the manifests and the settings stay as they are.
          left_out_path: where the unusable ones are listed (id, part, reason), if there are any.
        Raises:
          FileNotFoundError: a manifest is missing.
          ValueError: a manifest is not whole, an id comes twice, more than `corpus.max_left_out` of the training cuts
            cannot be used, none can, no dev cut can, or a cut of MUSAN cannot.
        """
        key, known = self._measure_key(), ({}, None) if cache is None else read_measured(cache)
        if known[0] == key:
            self.measured = known[1]
        else:
            self.measured = self._measure()
            if cache is not None:
                write_text_atomically(cache, json.dumps({"key": key, "train_cuts": asdict(self.measured)}))
        corpus, measured = self.cfg.corpus, self.measured
        rows = [(i, part, why) for part, ids in measured.left_out.items() for i, why in ids.items()]
        if left_out_path is not None and (rows or left_out_path.is_file()):
            write_text_atomically(left_out_path, "".join("\t".join(map(printable, row)) + "\n" for row in rows))
        for kind, parts in (("training", corpus.train_parts), ("dev", corpus.dev_parts)):
            left_out = [(i, why) for part in parts for i, why in measured.left_out[part].items()]
            total = sum(measured.sizes[part] for part in parts)
            if len(left_out) == total:
                example = f", e.g. {': '.join(left_out[0])}" if left_out else ": they are empty"
                raise ValueError(f"none of the cuts of {parts} can be used for {kind}{example}; mend them")
            if left_out:
                logging.info("left out %d of %d %s cuts, see %s", len(left_out), total, kind, left_out_path)
            if kind == "training" and len(left_out) > corpus.max_left_out * total:
                raise ValueError(
                    f"{len(left_out)} of {total} training cuts cannot be used, e.g. {': '.join(left_out[0])}; "
                    f"mend them, or raise `corpus.max_left_out` ({corpus.max_left_out})"
                )
        return measured

    def _measure_key(self) -> dict[str, Any]:
        """What the result of `_measure` depends on."""
        corpus = self.cfg.corpus
        return {
            "parts": [corpus.train_parts, corpus.dev_parts],
            "train": [state_of_file(path) for path in self._paths(corpus.train_parts)],
            "dev": [state_of_file(path) for path in self._paths(corpus.dev_parts)],
            "musan": state_of_file(find_musan(self.data_dir)) if corpus.musan else None,
            "durations": [corpus.min_duration, corpus.max_duration],
            "features": asdict(self.cfg.features),
            "tokens": [self.dataset.tokenizer.digest(), self.dataset.tokenizer.normalization],
            "subsampling_factor": self.subsampling_factor,
        }

    def _measure(self) -> TrainCuts:
        corpus, measured, digest = self.cfg.corpus, TrainCuts(), hashlib.sha256()
        for parts in (corpus.train_parts, corpus.dev_parts):
            unique = UniqueIds()
            for part, path in zip(parts, self._paths(parts)):
                size, left_out = 0, {}
                for line, cut in tqdm(read_cuts(path), desc=f"Measuring {path.name}", unit="cut"):
                    size += 1
                    unique.add(str(cut.id), path, size)
                    reason, num_tokens = self.why_unusable(cut)
                    if reason is not None:
                        left_out[str(cut.id)] = reason
                    if parts is not corpus.train_parts:
                        continue
                    digest.update(without_folders(line))
                    if reason is None:
                        measured.num_cuts += 1
                        measured.seconds += cut.duration
                        measured.longest = max(measured.longest, cut.duration)
                        measured.most_tokens = max(measured.most_tokens, num_tokens)
                measured.sizes[part], measured.left_out[part] = size, left_out
        measured.digest = digest.hexdigest()[:16]
        if corpus.musan:
            self._check_cuts(find_musan(self.data_dir), has_text=False)
        return measured

    def check_parts(self, parts: Sequence[str]) -> None:
        """Look at each cut of parts that are decoded, of which none is left out.

        Raises:
          FileNotFoundError: a manifest is missing.
          ValueError: naming the manifest, and the cut that cannot be scored or the id that comes twice.
        """
        for path in self._paths(parts):
            self._check_cuts(path)

    def _check_cuts(self, path: Path, has_text: bool = True) -> None:
        unique = UniqueIds()
        for number, (_, cut) in enumerate(read_cuts(path), start=1):
            fault = next(cut_faults(cut, self.cfg.features, has_text), None)
            if fault is not None:
                raise ValueError(f"{path}, line {number}, {cut.id}: {fault}")
            unique.add(cut.id, path, number)
        if not unique:
            raise ValueError(f"{path} must have cuts, and is empty; make it anew")

    def feature_statistics(self, max_cuts: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each mel bin, (num_mel_bins,) float32, over the first training cuts.

        After `measure_train`.
        """
        total = torch.zeros(self.cfg.features.num_mel_bins, dtype=torch.float64)
        square, count = total.clone(), 0
        for cut in self.train_cuts().subset(first=max_cuts):
            x = load_features(cut).double()
            total += x.sum(0)
            square += x.square().sum(0)
            count += len(x)
        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp(min=0).sqrt().float()

    def train_loader(
        self, epoch: int, sort: bool = False, skip: int = 0, spec_augment: bool = False, augment: bool = True
    ) -> DataLoader:
        """This rank's batches of epoch `epoch` (from 1): the same ones each time it is called for the same seed.

        After `measure_train`, by which a tiny corpus gets fewer buckets.

        Args:
          sort: from short to long instead of shuffled; reads the whole manifests into memory.
          skip: batches of this epoch that this rank has trained on already.
          spec_augment: mask the features as SpecAugment does.
          augment: vary the features as the section `augment` of the settings says.
        """
        assert self.measured is not None, "measure_train first"
        corpus, train = self.cfg.corpus, self.cfg.train
        mine = {"rank": self.rank, "world_size": self.world_size}
        varied = self.cfg.augment if augment else replace(self.cfg.augment, noise=0.0, pauses=0.0, gain=0.0)
        pauses = Pauses(varied, self.cfg.seed, epoch)

        def with_pauses(cut: Cut) -> Cut:  # as long as it will be when it is loaded
            return fastcopy(cut, duration=cut.duration + pauses.draw(cut.id).seconds)

        lines = self._usable(self._lines(corpus.train_parts), corpus.train_parts).map(with_pauses)
        if sort:
            cuts = lines.to_eager().sort_by_duration(ascending=True)
            sampler = SimpleCutSampler(cuts, max_duration=self._batch_seconds(), shuffle=False, **mine)
        else:
            sampler = DynamicBucketingSampler(
                lines,
                max_duration=self._batch_seconds(),
                num_buckets=max(2, min(train.num_buckets, self.measured.num_cuts // 50)),
                shuffle=True,
                seed=self.cfg.seed,
                drop_last=False,
                **mine,
            )
            sampler.set_epoch(epoch)
        augmenter = Augmenter(
            varied,
            self.cfg.seed,
            epoch,
            self.coloured,
            self.noise_sources,
            SpecAugmenter(self.cfg.seed, epoch) if spec_augment else None,
        )
        return self._loader(_Slice(sampler, skip), AsrDataset(self.dataset.tokenizer, self.data_dir, augmenter))

    @cached_property
    def coloured(self) -> ColouredNoise:
        return ColouredNoise(self.cfg.features)

    @cached_property
    def noise_sources(self) -> list[NoiseSource]:
        """What is mixed into training data: coloured noise and babble, which need no download, and MUSAN if asked for.

        A corpus of one utterance has no babble.
        """
        parts, sources = self.cfg.corpus.train_parts, [self.coloured]
        every = -(-self.measured.num_cuts // MAX_VOICES)
        voices = [cut.line for cut in islice(self._usable(self._lines(parts), parts), 0, None, every)]
        if len(voices) > 1:
            sources.append(Babble(voices, self.data_dir))
        else:
            logging.warning("there is one training utterance, so no babble of others is mixed into it")
        return [*sources, musan(self.data_dir)] if self.cfg.corpus.musan else sources

    def _batch_seconds(self) -> float:
        """`train.max_duration`; until a training has worked it out, this rank's share of a step."""
        train = self.cfg.train
        return train.max_duration or train.ref_duration / self.world_size

    def valid_loader(self) -> DataLoader:
        """Every `world_size`-th batch of the dev cuts: none doubled, so ranks may have one batch more or less."""
        sampler = DynamicCutSampler(self.valid_cuts(), max_duration=self._batch_seconds(), shuffle=False, **_ALL)
        return self._loader(_Slice(sampler, self.rank, self.world_size))

    def decode_loader(self, part: str) -> DataLoader:
        """All cuts of one part (nothing filtered), from short to long for little padding."""
        return self._loader(self._sorted(self.cuts([part])))

    def condition_loader(self, part: str, condition: Condition, aligned: Mapping[str, Sequence[Span]]) -> DataLoader:
        """`condition_cuts` as they are heard in a condition; `aligned` is of `ConditionDataset`."""
        cuts = self.condition_cuts(part)
        voices = cuts[:: -(-len(cuts) // MAX_TEST_VOICES)]
        fbank, shared = make_fbank(self.cfg.features), {"tokenizer": self.dataset.tokenizer, "data_dir": self.data_dir}
        dataset = ConditionDataset(condition, fbank, voices, aligned, **shared)
        return self._loader(self._sorted(CutSet.from_cuts(cuts)), dataset)

    def condition_cuts(self, part: str) -> list[Cut]:
        """Utterances of one part, evenly spaced, of about `decode.condition_seconds` in all."""
        cuts = list(self.cuts([part]))
        every = max(1, math.ceil(sum(cut.duration for cut in cuts) / self.cfg.decode.condition_seconds))
        return cuts[::every]

    def _sorted(self, cuts: CutSet) -> SimpleCutSampler:
        cuts = cuts.to_eager().sort_by_duration(ascending=True)
        return SimpleCutSampler(cuts, max_duration=self.cfg.decode.max_duration, shuffle=False, **_ALL)

    def _loader(self, sampler: Iterable[CutSet], dataset: AsrDataset | None = None) -> DataLoader:
        return DataLoader(
            dataset or self.dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.cfg.train.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
        )
