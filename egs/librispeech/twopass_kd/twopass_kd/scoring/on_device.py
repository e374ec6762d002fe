"""On-device measurements (stage 10's `ondevice.json`): read and checked, then as sentences and table cells.

Imports neither torch nor k2.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from twopass_kd.files.decode_json import DecodeJson, Decoding, Pass
from twopass_kd.files.json_model import read_json
from twopass_kd.files.ondevice_json import Agreement, DeviceRow, Difference, OnDeviceJson, RuntimeName
from twopass_kd.scoring.verdicts import describe

_log = logging.getLogger(__name__)

METHOD_TITLES = {"greedy_search": "greedy", "modified_beam_search": "beam search"}
COST_GROUPS = (  # (heading, headings below it): the columns of `cost_cells`
    ("MB on disk", ()),
    ("real-time factor", tuple(name.title for name in Pass)),
    ("chunk, ms", ("p50", "p95")),
    ("final, ms", ("p50", "p95")),
    ("second pass", ()),
    ("peak MB", ()),
)


def read_on_device(path: Path, decoded: Mapping[str, DecodeJson], sets: Sequence[str]) -> OnDeviceJson | None:
    """What stage 10 measured, where it did and it is of what is there now; else None, with a line in the log.

    Args:
      path: an `ondevice.json`; one that is not there is no error, and nothing is logged.
      decoded: the decoded systems.
      sets: the test sets of the config, which stage 10 decodes.
    Raises:
      ValueError: if the file is malformed, naming file, field and stage.
    """
    if not path.is_file():
        return None
    found = read_json(path, OnDeviceJson, "run stage 10 again")
    outdated = _why_outdated(found, decoded, sets)
    if outdated:
        _log.warning("%s: %s; left out, run stage 10 again", path, outdated)
    return None if outdated else found


def _why_outdated(found: OnDeviceJson, decoded: Mapping[str, DecodeJson], sets: Sequence[str]) -> str | None:
    for row in found.rows:
        now = decoded.get(row.system)
        if now is None or row.identity != now.identity:
            return f"is of another {row.system} than there is now"
        used = found.settings.get(row.system, now)
        for key in Decoding.model_fields:
            if getattr(used, key) != getattr(now, key):
                return f"is of another {key} than stage 8 has now"
        missing = [name for name in sets if name not in row.wer]
        if missing:
            return f"not measured on {', '.join(missing)}"
    return None


def how_measured(on_device: OnDeviceJson) -> str:
    """What was measured and how, in one paragraph."""
    threads = on_device.threads
    decoded = ", ".join(f"{name} ({seconds / 60:.0f} min)" for name, seconds in on_device.decoded_seconds.items())
    return (
        f"{threads} thread{'' if threads == 1 else 's'}, batch 1, on {on_device.timed_utterances} utterances of "
        f"{on_device.set} ({on_device.timed_seconds:.0f} s of audio), from audio to text in chunks of "
        f"{on_device.chunk_ms:g} ms; WER on {decoded}. MB on disk: the files that the runtime needs. "
        "Chunk: from the arrival of a chunk to its partial text, with the first pass's beam search. Final: from the "
        "end of speech to the final text. Second pass: its compute against the first pass's. Peak MB: resident memory "
        "of a fresh process. sherpa-onnx has no second pass, so needs no attention decoder on disk; its audio ends in "
        "as much silence as makes it decode everything. Features are computed from the audio; those that stage 8 reads "
        "are stored with loss, so that its WER differs a little."
    )


def long_audio_line(on_device: OnDeviceJson) -> str:
    """Peak memory over long audio."""
    measured = on_device.long_audio
    cells = (f"{peak:.1f} MB for {minutes:g} min" for minutes, peak in zip(measured.minutes, measured.peak_mb))
    return f"Peak resident memory while streaming one long recording: {', '.join(cells)}."


def streaming_lines(on_device: OnDeviceJson) -> list[str]:
    """How streaming in float32 compares with offline decoding, for each system."""
    lines = []
    for system, by_set in on_device.streaming.items():
        same = sum(found.same_greedy for found in by_set.values())
        total = sum(found.utterances for found in by_set.values())
        worst = max(found.encoder_difference for found in by_set.values())
        lines.append(
            f"{system}, streaming ONNX against offline PyTorch: same greedy text for {same} of {total} utterances of "
            f"{', '.join(by_set)}; encoder outputs differ by {worst:.1e} at most"
        )
    return lines


def smallest_system(on_device: OnDeviceJson) -> str | None:
    """The one with the fewest bytes in int8; None where only the teacher was measured."""
    bytes_in_int8 = {row.system: row.bytes for row in on_device.rows if row.runtime == RuntimeName.ONNX_INT8}
    return min(bytes_in_int8.keys() - {"teacher"}, key=lambda name: (bytes_in_int8[name], name), default=None)


def size_line(on_device: OnDeviceJson) -> str | None:
    """The smallest system's bytes in int8 against the teacher's in fp32; None without both."""
    system = smallest_system(on_device)
    if system not in on_device.int8 or not on_device.int8[system].size_ratio:
        return None
    ratio = on_device.int8[system].size_ratio
    return f"{system} int8 on disk: {ratio:.3f} of the teacher's fp32 bytes, 1/{1 / ratio:.1f} (aim: at most 1/6)"


def quantization_lines(on_device: OnDeviceJson) -> list[str]:
    """Which layers of each system are not in int8, and what the choice was made on."""
    lines = []
    for system, choice in on_device.quantization.items():
        wer, left_out = choice.wer, choice.left_out
        lines.append(
            f"{system} int8: {len(left_out)} of {choice.layers} layers left in float32"
            f"{' (' + ', '.join(left_out) + ')' if left_out else ''}, chosen on {', '.join(choice.dev_parts)}: WER "
            f"{wer.fp32:.2f}% in float32, {wer.all_int8:.2f}% with all in int8, {wer.int8:.2f}% as exported"
        )
    return lines


def int8_differences(on_device: OnDeviceJson) -> list[tuple[str, str, Pass, Difference]]:
    """(system, set, pass, paired bootstrap of int8 minus fp32) of every comparison."""
    return [
        (system, set_name, pass_name, result)
        for system, compared in on_device.int8.items()
        for set_name, by_pass in compared.sets.items()
        for pass_name, result in by_pass.items()
    ]


def agreements(on_device: OnDeviceJson) -> list[tuple[str, str, str, Agreement]]:
    """(system, precision, method, counts) of sherpa-onnx against the recipe's own search."""
    return [
        (system, precision, method, counts)
        for system, by_precision in on_device.agreement.items()
        for precision, by_method in by_precision.items()
        for method, counts in by_method.items()
    ]


def percent_same(counts: Agreement) -> str:
    """`99.8%`, rounded down: 100% is all of them."""
    return f"{int(1000 * counts.same / max(counts.of, 1)) / 10:.1f}%"


def int8_sentences(on_device: OnDeviceJson) -> list[tuple[str, str]]:
    """(system, sentence) on the WER of int8 against fp32, in the words of the other verdicts."""
    return [
        (system, describe(f"{system} int8 vs fp32, {pass_name.replace('_', '-')}, {set_name}", result))
        for system, set_name, pass_name, result in int8_differences(on_device)
    ]


def sentences(on_device: OnDeviceJson) -> list[str]:
    """Size, int8 against fp32, and agreement with sherpa-onnx, one computed sentence each: of the smallest
    system, for the terminal."""
    smallest = smallest_system(on_device)
    lines = [line for line in (size_line(on_device),) if line is not None]
    lines += [sentence for system, sentence in int8_sentences(on_device) if system == smallest]
    for system, precision, method, counts in agreements(on_device):
        if system == smallest:
            lines.append(
                f"sherpa-onnx against our search on the same padded audio, {system} {precision}, "
                f"{METHOD_TITLES.get(method, method)}: same text for {percent_same(counts)} "
                f"({counts.same} of {counts.of})"
            )
    return lines


def cost_cells(row: DeviceRow, empty: str = "-") -> list[str]:
    """Size, speed, delay and memory of a row, in the columns of `COST_GROUPS`."""
    final, share = row.final_ms, row.second_pass_share
    return [
        f"{row.bytes / 1e6:.2f}",
        *(_number(row.rtf[name], 4, empty) for name in Pass),
        *(f"{ms:.1f}" for ms in (row.chunk_ms.p50, row.chunk_ms.p95)),
        *(_number(ms, 1, empty) for ms in ((final.p50, final.p95) if final else (None, None))),
        empty if share is None else f"+{100 * share:.0f}%",
        f"{row.peak_mb:.1f}",
    ]


def wer_cells(row: DeviceRow, set_name: str, empty: str = "-") -> list[str]:
    """WER in percent of greedy search, first pass and two-pass."""
    return [_number(row.wer[set_name][name], 2, empty) for name in Pass]


def summary_rows(on_device: OnDeviceJson, set_name: str) -> list[list[str]]:
    """The compact table of the terminal, its header first."""
    rows = [["system", "runtime", "MB", "WER 1st", "WER 2-pass", "RTF 1st", "RTF 2-pass", "chunk ms", "final ms"]]
    rows[0].append("peak MB")
    for row in on_device.rows:
        size, _, first, two, *times, _, peak = cost_cells(row)
        chunk, final = ("-" if "-" in pair else "/".join(pair) for pair in (times[:2], times[2:]))
        cells = [row.system, row.runtime, size, *wer_cells(row, set_name)[1:], first, two, chunk, final, peak]
        rows.append(cells)
    return rows


def _number(value: float | None, digits: int, empty: str) -> str:
    return empty if value is None else f"{value:.{digits}f}"
