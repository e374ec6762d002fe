"""Stage 10, second half: measure the exported systems on this machine, one thread each, as a device would run them.

Real-time factor, latency, memory and word error rate on PyTorch, onnxruntime and sherpa-onnx, in float32 and int8;
whether int8 costs words; whether sherpa-onnx finds the same words as we do; memory over half an hour of audio.
Leaves <exp-dir>/<conf>/ondevice.json, and the texts and recogs files in <exp-dir>/<conf>/export/measured/.
"""

import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twopass_kd.config.cli import exit_status, experiment_parser
from twopass_kd.config.environment import log_environment, setup_logging
from twopass_kd.config.load import experiment_folder, largest_subsampling_factor, load_config
from twopass_kd.config.schema import Config, ConfigError
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import cut_text
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.device_benchmark.jobs import Job, decode_all, find_jobs, measure_all, read_exports
from twopass_kd.device_benchmark.utterances import Utterance, write_utterances
from twopass_kd.files.decode_json import Pass
from twopass_kd.files.json_model import write_json
from twopass_kd.files.ondevice_json import Agreement, DeviceRow, Int8Comparison, LongAudio, OnDeviceJson, RuntimeName
from twopass_kd.scoring.wer import Transcript, paired_bootstrap, write_decoding_results


def list_utterances(cfg: Config, data_dir: Path) -> list[Utterance]:
    """The utterances of the test parts; of a part longer than `export.decoded_seconds` evenly spaced ones.

    Raises:
      FileNotFoundError: if cuts are missing, or naming the cut whose audio file is.
    """
    data = AsrDataModule(cfg, data_dir, open_tokenizer(cfg, data_dir), largest_subsampling_factor(cfg))
    found: list[Utterance] = []
    for part in cfg.corpus.test_parts:
        utterances = []
        for cut in data.cuts([part]):
            sources = cut.recording.sources if cut.has_recording else []
            source = next((source for source in sources if cut.channel in source.channels), None)
            if source is None or source.type != "file" or not Path(source.source).is_file():
                raise FileNotFoundError(
                    f"cut {cut.id} of {part}: its audio ({source and source.source}) must be a file that is there; "
                    "bring it back, or run stages 0 to 2 again"
                )
            channel = source.channels.index(cut.channel)
            where = (str(source.source), cut.start, cut.duration)
            utterances.append(Utterance(cut.id, part, *where, cut_text(cut), channel))
        found += _evenly_spaced(utterances, cfg.export.decoded_seconds)
    return found


def _evenly_spaced(utterances: list[Utterance], max_seconds: float) -> list[Utterance]:
    share = max_seconds / sum(u.duration for u in utterances)
    if share >= 1:
        return utterances
    count = max(1, int(share * len(utterances)))
    return [utterances[i * len(utterances) // count] for i in range(count)]


def measure(cfg: Config, data_dir: Path, exp_dir: Path) -> Path:
    """Measure all exported systems; returns the path of ondevice.json.

    Raises:
      ConfigError: naming the export that is missing or old; if sherpa-onnx is not installed.
      FileNotFoundError: naming the cut whose audio is.
      MeasureError: if a measuring process fails.
    """
    experiment = experiment_folder(cfg, exp_dir)
    out_dir = experiment / "export" / "measured"
    if importlib.util.find_spec("sherpa_onnx") is None:
        raise ConfigError("stage 10 measures sherpa-onnx too, which is not installed; do `pip install sherpa-onnx`")
    exports = read_exports(cfg, exp_dir)
    jobs = find_jobs(cfg, exp_dir, exports)
    utterances = list_utterances(cfg, data_dir)
    path = out_dir / "utterances.jsonl"
    write_utterances(utterances, path)

    sets = list(dict.fromkeys(u.set for u in utterances))
    first_set = [u for u in utterances if u.set == sets[0]]
    measured = measure_all(jobs, path, min(cfg.export.timed_utterances, len(first_set)), out_dir)
    by_name = {job.name: job for job in jobs}
    smallest = min((job for job in jobs if job.runtime == RuntimeName.ONNX_INT8), key=Job.bytes)
    texts, long_audio = decode_all(jobs, path, cfg.corpus.test_parts, smallest, cfg.export.long_minutes, out_dir)

    transcripts = {name: _transcripts(utterances, found["texts"]) for name, found in texts.items()}
    rows = [_row(job, measured[job.name], transcripts[job.name], out_dir / job.name) for job in jobs]
    any_timing = measured[jobs[0].name]
    summary = OnDeviceJson(
        set=sets[0],
        timed_utterances=min(cfg.export.timed_utterances, len(first_set)),
        timed_seconds=any_timing["seconds"],
        threads=1,
        chunk_ms=any_timing["chunk_duration_ms"],
        decoded_seconds={name: sum(u.duration for u in utterances if u.set == name) for name in sets},
        rows=rows,
        agreement={system: _agreement(texts, system) for system in exports},
        int8={system: _int8(cfg, system, by_name, transcripts) for system in exports},
        long_audio=LongAudio(**long_audio),
        settings={system: exported.settings for system, exported in exports.items()},
        quantization={system: exported.int8 for system, exported in exports.items()},
        streaming={system: exported.streaming for system, exported in exports.items()},
    )
    write_json(experiment / "ondevice.json", summary)
    return experiment / "ondevice.json"


def _transcripts(
    utterances: Sequence[Utterance], texts: dict[str, dict[str, dict[str, str]]]
) -> dict[str, dict[str, list[Transcript]]]:
    """set -> pass -> transcripts."""
    by_id = {(u.set, u.id): u.text.split() for u in utterances}
    return {
        name: {
            pass_name: [(i, by_id[name, i], text.split()) for i, text in found.items()]
            for pass_name, found in passes.items()
        }
        for name, passes in texts.items()
    }


def _row(
    job: Job, measured: dict[str, Any], transcripts: dict[str, dict[str, list[Transcript]]], folder: Path
) -> DeviceRow:
    wer = {
        name: {p: write_decoding_results(folder, name, p, passes[p]).wer if p in passes else None for p in Pass}
        for name, passes in transcripts.items()
    }
    kept = ("rtf", "chunk_ms", "final_ms", "second_pass_share", "peak_mb")
    of_job = {"system": job.system, "runtime": job.runtime, "identity": job.identity, "bytes": job.bytes()}
    row = DeviceRow(**of_job, **{key: measured[key] for key in kept}, wer=wer)
    last = row.last_pass
    errors = ", ".join(f"{name} {passes[last]:.2f}%" for name, passes in row.wer.items())
    logging.info(
        "%s: %.2f MB, RTF %.4f, chunk %.2f ms, final %.2f ms, peak %.0f MB; %s WER %s", job.name, row.bytes / 1e6,
        row.rtf[last], row.chunk_ms.p50, row.final_ms.p50, row.peak_mb, last, errors,
    )  # fmt: skip
    return row


def _agreement(texts: dict[str, dict[str, Any]], system: str) -> dict[str, dict[str, Agreement]]:
    """How many utterances of the test sets sherpa-onnx recognises as our search on onnxruntime does.

    Both decode the same audio, padded as sherpa-onnx needs it.
    """
    result: dict[str, dict[str, Agreement]] = {}
    for precision, suffix in (("fp32", ""), ("int8", "-int8")):
        ours = texts[f"{system}-onnx{suffix}"]["padded_texts"]
        theirs = texts[f"{system}-sherpa-onnx{suffix}"]["texts"]
        result[precision] = {}
        for pass_name, method in (("greedy_search", "greedy_search"), ("first_pass", "modified_beam_search")):
            pairs = [(i, t, theirs[s][pass_name][i]) for s, p in ours.items() for i, t in p[pass_name].items()]
            different = [pair for pair in pairs if pair[1] != pair[2]]
            for i, our_text, their_text in different[:10]:
                logging.info(
                    "%s %s %s, %s: ours %r, sherpa-onnx %r", system, precision, method, i, our_text, their_text
                )
            named = [i for i, _, _ in different[:10]]
            result[precision][method] = Agreement(same=len(pairs) - len(different), of=len(pairs), different=named)
    return result


def _int8(
    cfg: Config, system: str, jobs: dict[str, Job], transcripts: dict[str, dict[str, dict[str, list[Transcript]]]]
) -> Int8Comparison:
    """Bytes of int8 over those of the teacher in float32 (null without a teacher), and what int8 does to the WER."""
    teacher = jobs.get("teacher-onnx")
    ratio = jobs[f"{system}-onnx-int8"].bytes() / teacher.bytes() if teacher else None
    full, small = transcripts[f"{system}-onnx"], transcripts[f"{system}-onnx-int8"]
    by_set = {
        name: {
            p: paired_bootstrap(passes[p], small[name][p], cfg.decode.bootstrap_samples, cfg.seed)
            for p in (Pass.FIRST_PASS, Pass.TWO_PASS)
            if p in passes
        }
        for name, passes in full.items()
    }
    return Int8Comparison(size_ratio=ratio, **by_set)


def main() -> int:
    args = experiment_parser(__doc__, example="export.timed_utterances=100").parse_args()
    setup_logging()
    log_environment()
    return exit_status(lambda: measure(load_config(args.conf, args.overrides), args.data_dir, args.exp_dir))


if __name__ == "__main__":
    sys.exit(main())
