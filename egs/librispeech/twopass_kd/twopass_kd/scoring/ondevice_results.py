"""On-device measurements (stage 10's `ondevice.json`): checked, then as sentences and table cells for the reports.

Imports neither torch nor k2.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twopass_kd.files.read import find_problem
from twopass_kd.scoring.schemas import ON_DEVICE
from twopass_kd.scoring.significance import describe

OnDevice = dict[str, Any]

_log = logging.getLogger(__name__)

RUNTIME_TITLES = {
    "pytorch": "PyTorch",
    "onnx": "ONNX",
    "onnx-int8": "ONNX int8",
    "sherpa-onnx": "sherpa-onnx",
    "sherpa-onnx-int8": "sherpa-onnx int8",
}
METHOD_TITLES = {"greedy_search": "greedy", "modified_beam_search": "beam search"}
_PASS_TITLES = {"greedy_search": "greedy", "first_pass": "first pass", "two_pass": "two-pass"}
COST_GROUPS = (  # (heading, headings below it): the columns of `cost_cells`
    ("MB on disk", ()),
    ("real-time factor", tuple(_PASS_TITLES.values())),
    ("chunk, ms", ("p50", "p95")),
    ("final, ms", ("p50", "p95")),
    ("second pass", ()),
    ("peak MB", ()),
)


def check_on_device(
    content: Any, path: Path, decoded: Mapping[str, Mapping[str, Any]], sets: Sequence[str]
) -> OnDevice | None:
    """What stage 10 measured, where it is of what is there now; else None, with one line in the log that says so.

    Args:
      content: what `path` (an `ondevice.json`) holds.
      decoded: the decode.json of each decoded system: the identity of its checkpoint, and how it was decoded.
      sets: the test sets of the config, which stage 10 decodes.
    Raises:
      ValueError: if the content is malformed, naming file, field and stage.
    """
    problem = find_problem(content, ON_DEVICE)
    if problem is None:
        unknown = [row["runtime"] for row in content["rows"] if row["runtime"] not in RUNTIME_TITLES]
        problem = f"`runtime` ({unknown[0]}) must be one of {', '.join(RUNTIME_TITLES)}" if unknown else None
        problem = problem or (None if content["rows"] else "`rows` ([]) must have at least one")
    if problem is not None:
        raise ValueError(f"{path}: {problem}; run stage 10 again")
    for row in content["rows"]:
        now = decoded.get(row["system"], {})
        if row["identity"] != now.get("identity"):
            _log.warning("%s: is of another %s than there is now; left out, run stage 10 again", path, row["system"])
            return None
        for key, value in content["settings"].get(row["system"], {}).items():
            if key in now and now[key] != value:
                _log.warning("%s: is of another %s than stage 8 has now; left out, run stage 10 again", path, key)
                return None
        missing = [name for name in sets if name not in row["wer"]]
        if missing:
            _log.warning("%s: not measured on %s; left out, run stage 10 again", path, ", ".join(missing))
            return None
    return content


def how_measured(on_device: OnDevice) -> str:
    """What was measured and how, in one paragraph."""
    threads = on_device["threads"]
    decoded = ", ".join(f"{name} ({seconds / 60:.0f} min)" for name, seconds in on_device["decoded_seconds"].items())
    return (
        f"{threads} thread{'' if threads == 1 else 's'}, batch 1, on {on_device['timed_utterances']} utterances of "
        f"{on_device['set']} ({on_device['timed_seconds']:.0f} s of audio), from audio to text in chunks of "
        f"{on_device['chunk_ms']:g} ms; WER on {decoded}. MB on disk: the files that the runtime needs. "
        "Chunk: from the arrival of a chunk to its partial text, with the first pass's beam search. Final: from the "
        "end of speech to the final text. Second pass: its compute against the first pass's. Peak MB: resident memory "
        "of a fresh process. sherpa-onnx has no second pass, so needs no attention decoder on disk; its audio ends in "
        "as much silence as makes it decode everything. Features are computed from the audio; those that stage 8 reads "
        "are stored with loss, so that its WER differs a little."
    )


def long_audio_line(on_device: OnDevice) -> str:
    """Peak memory over long audio."""
    measured = on_device["long_audio"]
    cells = (f"{peak:.1f} MB for {minutes:g} min" for minutes, peak in zip(measured["minutes"], measured["peak_mb"]))
    return f"Peak resident memory while streaming one long recording: {', '.join(cells)}."


def streaming_lines(on_device: OnDevice) -> list[str]:
    """How streaming in float32 compares with offline decoding, for each system."""
    lines = []
    for system, by_set in on_device["streaming"].items():
        same = sum(found["same_greedy"] for found in by_set.values())
        total = sum(found["utterances"] for found in by_set.values())
        worst = max(found["encoder_difference"] for found in by_set.values())
        lines.append(
            f"{system}, streaming ONNX against offline PyTorch: same greedy text for {same} of {total} utterances of "
            f"{', '.join(by_set)}; encoder outputs differ by {worst:.1e} at most"
        )
    return lines


def size_line(on_device: OnDevice) -> str | None:
    """The int8 student's bytes against the teacher's in fp32; None without both."""
    ratio = on_device["int8"].get("student", {}).get("size_ratio")
    if not ratio:
        return None
    return f"student int8 on disk: {ratio:.3f} of the teacher's fp32 bytes, 1/{1 / ratio:.1f} (aim: at most 1/6)"


def quantization_lines(on_device: OnDevice) -> list[str]:
    """Which layers of each system are not in int8, and what the choice was made on."""
    lines = []
    for system, choice in on_device["quantization"].items():
        wer, left_out = choice["wer"], choice["left_out"]
        lines.append(
            f"{system} int8: {len(left_out)} of {choice['layers']} layers left in float32"
            f"{' (' + ', '.join(left_out) + ')' if left_out else ''}, chosen on {', '.join(choice['dev_parts'])}: WER "
            f"{wer['fp32']:.2f}% in float32, {wer['all_int8']:.2f}% with all in int8, {wer['int8']:.2f}% as exported"
        )
    return lines


def int8_differences(on_device: OnDevice) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(system, set, pass, paired bootstrap of int8 minus fp32) of every comparison."""
    return [
        (system, set_name, pass_name, result)
        for system, by_set in on_device["int8"].items()
        for set_name, by_pass in by_set.items()
        if isinstance(by_pass, dict)
        for pass_name, result in by_pass.items()
    ]


def agreements(on_device: OnDevice) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(system, precision, method, {"same", "of", "different"}) of sherpa-onnx against the recipe's own search."""
    return [
        (system, precision, method, counts)
        for system, by_precision in on_device["agreement"].items()
        for precision, by_method in by_precision.items()
        for method, counts in by_method.items()
    ]


def percent_same(counts: Mapping[str, Any]) -> str:
    """`99.8%`, rounded down: 100% is all of them."""
    return f"{int(1000 * counts['same'] / max(counts['of'], 1)) / 10:.1f}%"


def int8_sentences(on_device: OnDevice) -> list[tuple[str, str]]:
    """(system, sentence) on the WER of int8 against fp32, in the words of the other verdicts."""
    return [
        (system, describe(f"{system} int8 vs fp32, {pass_name.replace('_', '-')}, {set_name}", result))
        for system, set_name, pass_name, result in int8_differences(on_device)
    ]


def sentences(on_device: OnDevice) -> list[str]:
    """Size, int8 against fp32, and agreement with sherpa-onnx, one computed sentence each: of the student, for the
    terminal."""
    lines = [line for line in (size_line(on_device),) if line is not None]
    lines += [sentence for system, sentence in int8_sentences(on_device) if system == "student"]
    for system, precision, method, counts in agreements(on_device):
        if system == "student":
            lines.append(
                f"sherpa-onnx against our search on the same padded audio, student {precision}, "
                f"{METHOD_TITLES.get(method, method)}: same text for {percent_same(counts)} "
                f"({counts['same']} of {counts['of']})"
            )
    return lines


def cost_cells(row: Mapping[str, Any], empty: str = "-") -> list[str]:
    """Size, speed, delay and memory of a row, in the columns of `COST_GROUPS`."""
    final, share = row["final_ms"] or {}, row["second_pass_share"]
    return [
        f"{row['bytes'] / 1e6:.2f}",
        *(_number(row["rtf"][p], 4, empty) for p in _PASS_TITLES),
        *(_number(row["chunk_ms"][p], 1, empty) for p in ("p50", "p95")),
        *(_number(final.get(p), 1, empty) for p in ("p50", "p95")),
        empty if share is None else f"+{100 * share:.0f}%",
        f"{row['peak_mb']:.1f}",
    ]


def wer_cells(row: Mapping[str, Any], set_name: str, empty: str = "-") -> list[str]:
    """WER in percent of greedy search, first pass and two-pass."""
    return [_number(row["wer"][set_name][p], 2, empty) for p in _PASS_TITLES]


def summary_rows(on_device: OnDevice, set_name: str) -> list[list[str]]:
    """The compact table of the terminal, its header first."""
    rows = [["system", "runtime", "MB", "WER 1st", "WER 2-pass", "RTF 1st", "RTF 2-pass", "chunk ms", "final ms"]]
    rows[0].append("peak MB")
    for row in on_device["rows"]:
        size, _, first, two, *times, _, peak = cost_cells(row)
        chunk, final = ("-" if "-" in pair else "/".join(pair) for pair in (times[:2], times[2:]))
        cells = [row["system"], row["runtime"], size, *wer_cells(row, set_name)[1:], first, two, chunk, final, peak]
        rows.append(cells)
    return rows


def _number(value: float | None, digits: int, empty: str) -> str:
    return empty if value is None else f"{value:.{digits}f}"
