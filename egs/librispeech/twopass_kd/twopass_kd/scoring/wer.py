"""Word error rate: icefall's recogs/errs/wer-summary files, bootstrap intervals and a paired test.

kaldialign does the alignments. The bootstrap is numpy's: `kaldialign.bootstrap_wer_ci` gives mean +- 1.96 standard
deviations (it can reach below zero at a low WER) and no interval of the difference of two systems.
This module does not import torch.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
import scipy.stats

from twopass_kd.files.ondevice_json import Difference
from twopass_kd.files.read import read_lines
from twopass_kd.files.results_json import Wer
from twopass_kd.files.write import write_text_atomically

Transcript = tuple[str, list[str], list[str]]  # cut id, reference words, hypothesis words
WordPair = tuple[str | None, str | None]  # (None, hyp) an insertion, (ref, None) a deletion

_EPS = ""  # no word is this, while icefall's own mark "*" may be one
_RECOGS_LINE = re.compile(r"(?P<id>.+?):\t(?P<kind>ref|hyp)=(?P<words>\[.*\])")
MIN_SPEAKERS = 5
_CHUNK = 2**22  # resampled indices held in memory at a time


@dataclass
class WerStats:
    """Errors of a test set. `wer` is in percent; the others are counts of words, `num_utts` of utterances."""

    wer: float
    ins: int
    dels: int
    subs: int
    ref_words: int
    num_utts: int


def align_words(ref: Sequence[str], hyp: Sequence[str]) -> list[WordPair]:
    """A minimum edit distance alignment; None stands for the missing side of an insertion or a deletion."""
    return [
        (None if r == _EPS else r, None if h == _EPS else h) for r, h in kaldialign.align(list(ref), list(hyp), _EPS)
    ]


def error_counts(transcripts: Sequence[Transcript]) -> np.ndarray:
    """Errors per utterance.

    Returns:
      (N, 4) int64: insertions, deletions, substitutions, reference words.
    Raises:
      ValueError: if there is no reference word to divide by.
    """
    found = (kaldialign.edit_distance(list(ref), list(hyp)) for _, ref, hyp in transcripts)
    rows = [[e["ins"], e["del"], e["sub"], e["ref_len"]] for e in found]
    counts = np.array(rows, dtype=np.int64).reshape(-1, 4)
    if counts[:, 3].sum() == 0:
        raise ValueError(
            f"`transcripts` ({len(rows)} utterances, 0 reference words) must have reference words; "
            "check the transcripts of the test set"
        )
    return counts


def corpus_wer(transcripts: Sequence[Transcript]) -> WerStats:
    """All errors over all reference words. Raises ValueError where there is no reference word."""
    return _stats(error_counts(transcripts))


def _stats(counts: np.ndarray) -> WerStats:
    ins, dels, subs, words = (int(n) for n in counts.sum(axis=0))
    return WerStats(100.0 * (ins + dels + subs) / words, ins, dels, subs, words, len(counts))


def score_wer(
    transcripts: Sequence[Transcript], num_samples: int, seed: int, speakers: Mapping[str, str] | None = None
) -> Wer:
    """WER and errors, with the WER's 95% percentile interval (Bisani and Ney, ICASSP 2004) over resampled speakers.

    Args:
      transcripts: the utterances of one test set.
      num_samples: resamples, each of as many speakers as the set has.
      speakers: as `clusters` has them.
      seed: the same seed gives the same interval.
    Raises:
      ValueError: if there is no reference word or `num_samples` is not positive.
    """
    counts = error_counts(transcripts)
    stats, columns = _stats(counts), np.stack([counts[:, :3].sum(axis=1), counts[:, 3]])
    sums = cluster_sums(columns, clusters(transcripts, speakers or {})[0])
    samples = resample(sums, num_samples, seed)
    low, high = interval(100.0 * samples[0] / samples[1], stats.wer, sums.shape[1])
    return Wer(wer=stats.wer, ci95=(max(low, 0.0), high), ins=stats.ins, dels=stats.dels, subs=stats.subs)


def paired_bootstrap(a: Sequence[Transcript], b: Sequence[Transcript], num_samples: int, seed: int) -> Difference:
    """Is system `b` worse or better than system `a` on the same utterances? (Bisani and Ney, ICASSP 2004)

    Both systems are resampled with the same utterances, so that what is hard for both cancels.

    Args:
      a, b: transcripts of two systems, in any order, with the same cut ids and references.
      num_samples: resamples, each of as many utterances as the set has.
      seed: the same seed gives the same answer.
    Returns:
      WER(b) - WER(a); p is twice the share of resamples on the other side of zero (or on it), at most 1.
    Raises:
      ValueError: naming the first cut whose id or reference differs; if there is no reference word; if
        `num_samples` is not positive.
    """
    a, b = paired(a, b)
    counts_a, counts_b = error_counts(a), error_counts(b)
    difference = counts_b[:, :3].sum(axis=1) - counts_a[:, :3].sum(axis=1)
    samples = resample(np.stack([difference, counts_a[:, 3]]), num_samples, seed)
    deltas = 100.0 * samples[0] / samples[1]
    delta_wer = _stats(counts_b).wer - _stats(counts_a).wer
    one_sided = min((deltas <= 0).sum(), (deltas >= 0).sum())
    p = min(1.0, 2.0 * float(one_sided + 1) / (num_samples + 1))  # + 1: no finite number of resamples shows p = 0
    return Difference(delta_wer=delta_wer, ci95=interval(deltas, delta_wer, len(a)), p=p)


def paired(a: Sequence[Transcript], b: Sequence[Transcript]) -> tuple[list[Transcript], list[Transcript]]:
    """Both sorted by cut id. Raises ValueError, naming the first cut whose id or reference differs."""
    a, b = sorted(a, key=_cut_id), sorted(b, key=_cut_id)
    _check_same_references(a, b)
    return a, b


def clusters(transcripts: Sequence[Transcript], speakers: Mapping[str, str]) -> tuple[np.ndarray, bool]:
    """What is drawn together, since what one person says is alike: all utterances of a speaker.

    Args:
      speakers: cut id -> speaker.
    Returns:
      (N,) int64, the number of each utterance's cluster, and whether those are speakers: each utterance is on its own
      where somebody's name is not known, where nobody speaks twice (such names are those of utterances), and where
      there are fewer than `MIN_SPEAKERS`, of whom no interval could be told.
    """
    names = [speakers.get(cut_id) for cut_id, _, _ in transcripts]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if None in numbers or not MIN_SPEAKERS <= len(numbers) < len(names):
        return np.arange(len(transcripts)), False
    return np.array([numbers[name] for name in names]), True


def cluster_sums(columns: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(K, N) int64 by utterance to (K, number of clusters)."""
    sums = np.zeros((len(columns), int(numbers.max()) + 1), dtype=np.int64)
    np.add.at(sums.T, numbers, columns.T)
    return sums


def resample(columns: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Sums of `columns` (K, N) over N utterances or speakers drawn with replacement; returns (K, num_samples).

    The last column, reference words, is at least 1: a draw of nothing but empty references has no WER, and
    counting its insertions against one word keeps it at the extreme end where it belongs.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` ({num_samples}) must be positive; 10000 is usual")
    rng = np.random.default_rng(seed)
    num_utts = columns.shape[1]
    sums = np.empty((len(columns), num_samples), dtype=np.int64)
    step = max(1, _CHUNK // num_utts)
    for begin in range(0, num_samples, step):
        size = min(step, num_samples - begin)
        drawn = rng.integers(0, num_utts, size=(size, num_utts))
        for k, column in enumerate(columns):
            sums[k, begin : begin + size] = column[drawn].sum(axis=1)
    sums[-1] = np.maximum(sums[-1], 1)
    return sums


def interval(values: np.ndarray, estimate: float, count: int) -> tuple[float, float]:
    """The middle 95% of resampled values, wider where few were resampled.

    Resampled values of few lie too close together: by the root of (count - 1) / count, and as a normal distribution
    beside Student's.

    Args:
      estimate: the value of what was not resampled.
      count: of the speakers or utterances.
    """
    wider = 1.0
    if count >= MIN_SPEAKERS:  # fewer are no sample anyway
        wider = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf(0.975, count - 1) / scipy.stats.norm.ppf(0.975)
    low, high = estimate + wider * (np.percentile(values, [2.5, 97.5]) - estimate)
    return float(low), float(high)


def _cut_id(transcript: Transcript) -> str:
    return transcript[0]


def _check_same_references(a: Sequence[Transcript], b: Sequence[Transcript]) -> None:
    """`a` and `b` are sorted by cut id."""
    for (id_a, ref_a, _), (id_b, ref_b, _) in zip(a, b, strict=False):  # lengths are compared below
        if id_a != id_b:
            raise ValueError(
                f"cut {min(id_a, id_b)} is in one system's transcripts only; "
                "decode both systems on the same test set (stage 8)"
            )
        if ref_a != ref_b:
            raise ValueError(
                f"cut {id_a} must have the same reference in both systems, but one has {' '.join(ref_a)!r} and the "
                f"other {' '.join(ref_b)!r}; decode both systems on the same test set (stage 8)"
            )
    if len(a) != len(b):
        extra = (a if len(a) > len(b) else b)[min(len(a), len(b))]
        raise ValueError(
            f"cut {extra[0]} is in one system's transcripts only; decode both systems on the same test set (stage 8)"
        )


def write_decoding_results(out_dir: Path, set_name: str, suffix: str, transcripts: Sequence[Transcript]) -> WerStats:
    """Write `{recogs,errs,wer-summary}-<set_name>-<suffix>.txt`, in the formats that icefall's decode.py leaves.

    Args:
      out_dir: made if need be.
      set_name: e.g. `test-clean`.
      suffix: e.g. `greedy_search`; also the name of the setting in the summary.
      transcripts: one per utterance; written sorted by cut id.
    Returns:
      The errors of the set.
    Raises:
      ValueError: if a cut id comes twice or would break the format, if words are not lists, or if there
        is no reference word.
    """
    transcripts = sorted(transcripts, key=_cut_id)
    _check_writable(transcripts)
    stats = corpus_wer(transcripts)
    out_dir, name = Path(out_dir), f"{set_name}-{suffix}.txt"
    recogs = (f"{cut_id}:\tref={list(ref)}\n{cut_id}:\thyp={list(hyp)}\n" for cut_id, ref, hyp in transcripts)
    write_text_atomically(out_dir / f"recogs-{name}", "".join(recogs))
    write_text_atomically(out_dir / f"errs-{name}", "\n".join(_errs_lines(transcripts, stats)) + "\n")
    write_text_atomically(out_dir / f"wer-summary-{name}", f"settings\tWER\n{suffix}\t{round(stats.wer, 2)}\n")
    return stats


def _check_writable(transcripts: Sequence[Transcript]) -> None:
    previous = None
    for cut_id, ref, hyp in transcripts:
        if cut_id == previous:
            raise ValueError(f"cut {cut_id} must come once; it was decoded twice")
        if not cut_id or ":\t" in cut_id or "\n" in cut_id:
            raise ValueError(f"cut id ({cut_id!r}) must be non-empty, without newlines or colon-tab; rename the cut")
        if isinstance(ref, str) or isinstance(hyp, str):
            raise ValueError(f"cut {cut_id}: reference and hypothesis must be lists of words; split the text")
        previous = cut_id


def _errs_lines(transcripts: Sequence[Transcript], stats: WerStats) -> Iterator[str]:
    """The lines of an errs file: totals, marked alignments, counts of each confusion and of each word."""
    correct, subs, dels, ins = Counter(), Counter(), Counter(), Counter()
    marked = []
    for cut_id, ref, hyp in transcripts:
        pairs = align_words(ref, hyp)
        marked.append(f"{cut_id}:\t{_mark(pairs)}")
        for r, h in pairs:
            if r is None:
                ins[h] += 1
            elif h is None:
                dels[r] += 1
            elif r == h:
                correct[r] += 1
            else:
                subs[(r, h)] += 1
    yield f"%WER = {stats.wer:.2f}"
    yield (
        f"Errors: {stats.ins} insertions, {stats.dels} deletions, {stats.subs} substitutions, "
        f"over {stats.ref_words} reference words ({sum(correct.values())} correct)"
    )
    yield (
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:"
    )
    yield from ("", "PER-UTT DETAILS: corr or (ref->hyp)  ", *marked)
    yield from ("", "SUBSTITUTIONS: count ref -> hyp", *(f"{n}   {r} -> {h}" for (r, h), n in _by_count(subs)))
    yield from ("", "DELETIONS: count ref", *(f"{n}   {word}" for word, n in _by_count(dels)))
    yield from ("", "INSERTIONS: count hyp", *(f"{n}   {word}" for word, n in _by_count(ins)))
    yield from ("", "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp")
    ref_subs, hyp_subs = Counter(), Counter()
    for (r, h), n in subs.items():
        ref_subs[r] += n
        hyp_subs[h] += n
    errors = ref_subs + hyp_subs + ins + dels
    for word in sorted({*correct, *errors}, key=lambda w: (errors[w], w), reverse=True):
        in_ref = correct[word] + ref_subs[word] + dels[word]
        in_hyp = correct[word] + hyp_subs[word] + ins[word]
        yield f"{word}   {correct[word]} {errors[word]} {in_ref} {in_hyp}"


def _by_count(counter: Counter) -> list[tuple[Any, int]]:
    return sorted(counter.items(), key=lambda item: (item[1], item[0]), reverse=True)


def _mark(pairs: Sequence[WordPair]) -> str:
    """Words as they are, runs of errors as `(REF WORDS->HYP WORDS)`, `*` for an empty side."""
    out: list[str] = []
    wrong: list[WordPair] = []

    def flush() -> None:
        if wrong:
            ref = " ".join(r for r, _ in wrong if r is not None) or "*"
            hyp = " ".join(h for _, h in wrong if h is not None) or "*"
            out.append(f"({ref}->{hyp})")
            wrong.clear()

    for r, h in pairs:
        if r == h and r is not None:
            flush()
            out.append(r)
        else:
            wrong.append((r, h))
    flush()
    return " ".join(out)


def read_recogs(path: Path) -> list[Transcript]:
    """Read a recogs file written by `write_decoding_results` or by icefall.

    Raises:
      ValueError: naming file and line, where a line is not `<cut id>:\\tref=[...]` followed by `<cut id>:\\thyp=[...]`.
    """
    path = Path(path)
    lines = read_lines(path, str(path), "decode again (stage 8)")
    parsed = [_parse_recogs_line(path, i, line) for i, line in enumerate(lines, start=1)]
    transcripts: list[Transcript] = []
    seen = set()
    for i in range(0, len(parsed), 2):
        cut_id, kind, ref = parsed[i]
        if kind != "ref":
            raise ValueError(
                f"{path}, line {i + 1}: must be a `ref=` line, but it is `{kind}=`; decode again (stage 8)"
            )
        if i + 1 == len(parsed) or parsed[i + 1][:2] != (cut_id, "hyp"):
            raise ValueError(f"{path}, line {i + 2}: must be the `hyp=` line of cut {cut_id}; decode again (stage 8)")
        if cut_id in seen:
            raise ValueError(f"{path}, line {i + 1}: cut {cut_id} must come once; decode again (stage 8)")
        seen.add(cut_id)
        transcripts.append((cut_id, ref, parsed[i + 1][2]))
    return transcripts


def _parse_recogs_line(path: Path, number: int, line: str) -> tuple[str, str, list[str]]:
    wrong = f"{path}, line {number}: must be `<cut id>:<tab>ref=['WORD', ...]` (or `hyp=`), but is {line[:80]!r}"
    match = _RECOGS_LINE.fullmatch(line)
    if match is None:
        raise ValueError(wrong)
    try:
        words = ast.literal_eval(match["words"])
    except (ValueError, SyntaxError) as e:
        raise ValueError(wrong) from e
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise ValueError(wrong)
    return match["id"], match["kind"], words
