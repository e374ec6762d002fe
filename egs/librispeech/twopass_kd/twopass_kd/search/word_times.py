"""When the words of a set are said: as the corpus has it, else aligned by the teacher's CTC head."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from lhotse import SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem
from torch import Tensor
from tqdm import tqdm

from twopass_kd.config.load import experiment_folder, reported_systems
from twopass_kd.config.log_mel import FRAME_SHIFT
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import Batch, cut_text
from twopass_kd.data.cut_checks import alignment_fault
from twopass_kd.data.tokenizer import WORD_BEGIN, Tokenizer
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.scoring.delay import TimedWord, describe_delays, word_delays, write_delay_summary
from twopass_kd.search.ctc_align import ctc_align
from twopass_kd.search.decode_set import Decoded, first_pass_words
from twopass_kd.teachers.load_system import load_system

ALIGNER = "teacher"
WordTimes = dict[str, list[TimedWord]]  # by utterance


def word_times(cfg: Config, part: str, data: AsrDataModule, data_dir: Path, exp_dir: Path) -> WordTimes:
    """When each word of a part is said.

    Where the manifests do not say it (synthetic speech and LibriSpeech-Alignments do), the CTC head of the reported
    teacher aligns the transcripts, as well as it knows; that is kept in `<exp-dir>/<conf>/alignments`, in manifests of
    Lhotse. Without such a teacher the result is empty.
    """
    if found := _of_manifests(part, data):
        return found
    if ALIGNER not in reported_systems(cfg):
        logging.warning("nobody knows when words are said, without a teacher to align them: no delays")
        return {}
    path, teacher, content, tokenizer = load_system(cfg, ALIGNER, data_dir, exp_dir)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    if "ctc_head" not in content["trained_parts"]:
        logging.warning("%s has no CTC head to align words with: no delays", path)
        return {}
    kept = experiment_folder(cfg, exp_dir) / "alignments" / f"{part}-{content['identity']}.jsonl.gz"
    if not kept.is_file():
        _write(_align(teacher, data, part, tokenizer), kept)
    return {
        segment.id: [TimedWord(item.symbol, item.start, item.end) for item in segment.alignment["word"]]
        for segment in SupervisionSet.from_file(kept)
    }


def _of_manifests(part: str, data: AsrDataModule) -> WordTimes:
    """What the manifests say; alignments that cannot be of the transcript are left out, with a line in the log."""
    found, faults = {}, {}
    for cut in data.cuts([part]):
        (speech,) = cut.supervisions
        items = [item for item in (speech.alignment or {}).get("word", []) if item.symbol]  # silences have none
        if not items:
            continue
        if fault := alignment_fault(items, cut_text(cut)):
            faults[cut.id] = fault
        else:
            words = cut_text(cut).split()
            found[cut.id] = [TimedWord(word, item.start, item.end) for word, item in zip(words, items)]
    if faults:
        cut_id, fault = next(iter(faults.items()))
        logging.warning("%s: %d alignments are not used (e.g. %s: %s)", part, len(faults), cut_id, fault)
    return found


def _align(teacher: TwoPassModel, data: AsrDataModule, part: str, tokenizer: Tokenizer) -> list[SupervisionSegment]:
    """The transcripts of a part with alignments; those that cannot be aligned are left out."""
    device = next(teacher.parameters()).device
    segments, left_out = [], []
    with torch.no_grad():
        for batch in tqdm(data.decode_loader(part), desc=f"{part}: aligning", unit="batch"):
            batch = batch.to(device)
            encoder_out, lens, _ = teacher.encoder(batch.feature, batch.feature_lens)
            log_probs = teacher.ctc_head(encoder_out).log_softmax(-1)
            first, last = ctc_align(log_probs, lens, batch.y, batch.y_lens, teacher.blank_id)
            aligned = _segments(batch, first, last, teacher.encoder.subsampling_factor, tokenizer)
            left_out += sorted(set(batch.cut_ids) - {segment.id for segment in aligned})
            segments += aligned
    if left_out:
        what = "%s: %d transcripts cannot be aligned, as with more tokens than frames (e.g. %s)"
        logging.warning(what, part, len(left_out), left_out[0])
    return segments


def _segments(
    batch: Batch, first: Tensor, last: Tensor, subsampling_factor: int, tokenizer: Tokenizer
) -> list[SupervisionSegment]:
    segments, seconds = [], subsampling_factor * FRAME_SHIFT
    for cut, tokens, begins, ends in zip(batch.cuts, batch.y.tolist(), first.tolist(), last.tolist()):
        words, spans = cut_text(cut).split(), []
        for token, begin, end in zip(tokens, begins, ends):
            if begin < 0:
                break
            if tokenizer.pieces[token].startswith(WORD_BEGIN) or not spans:
                spans.append((begin, end))
            spans[-1] = (spans[-1][0], end)
        if len(spans) != len(words):
            continue
        items = [
            AlignmentItem(word, round(begin * seconds, 3), round((end + 1 - begin) * seconds, 3))
            for word, (begin, end) in zip(words, spans)
        ]
        segment = SupervisionSegment(cut.id, cut.supervisions[0].recording_id, 0.0, cut.duration, text=cut_text(cut))
        segments.append(segment.with_alignment("word", items))
    return segments


def _write(segments: list[SupervisionSegment], path: Path) -> None:
    """Under a temporary name first; several systems that are decoded side by side write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    SupervisionSet.from_segments(segments).to_file(partial)
    os.replace(partial, path)


def measure_delays(
    said: WordTimes,
    decoded: Decoded,
    searches: Sequence[str],
    tokenizer: Tokenizer,
    subsampling_factor: int,
    out_dir: Path,
    part: str,
) -> dict[str, dict[str, float]]:
    """When the words of the first pass appear, by search, and icefall's `symbol-delay-summary-` files of it.

    Args:
      said: of the part; empty: nothing is measured.
    """
    found: dict[str, dict[str, float]] = {}
    for search in searches if said else ():
        hyps = first_pass_words(decoded, search, tokenizer, subsampling_factor)
        delay = describe_delays(word_delays(said, hyps))
        if delay is None:
            continue
        found[search] = delay.model_dump()
        write_delay_summary(out_dir / f"symbol-delay-summary-{part}-{search}.txt", search, delay)
        what = "%s, %s: the last token of a word comes %.2f s after its end (median; 90%% %.2f, 99%% %.2f)"
        logging.info(what, part, search, delay.p50, delay.p90, delay.p99)
    return found
