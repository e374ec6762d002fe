"""Timing, memory and texts of one runtime in its own process, and the comparison that stage 10 makes of them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet

import twopass_kd
from small_export import SYSTEM, exportable_experiment
from twopass_kd.bin import benchmark_device
from twopass_kd.bin.export import export
from twopass_kd.config.schema import ConfigError
from twopass_kd.device_benchmark.decode_sets import decode_sets
from twopass_kd.device_benchmark.jobs import MeasureError, find_jobs, read_exports, run_kept
from twopass_kd.device_benchmark.long_audio import long_recording, stream_long
from twopass_kd.device_benchmark.measure import Timing, time_utterances
from twopass_kd.device_benchmark.recipe_recognizer import RecipeRecognizer
from twopass_kd.device_benchmark.sherpa import num_feature_frames, padding_for_sherpa
from twopass_kd.device_benchmark.utterances import Utterance, read_audio, read_utterances, write_utterances
from twopass_kd.files.decode_json import CheckpointDecoding
from twopass_kd.files.json_model import read_json
from twopass_kd.files.ondevice_json import OnDeviceJson
from twopass_kd.ondevice.stream import open_runtime
from twopass_kd.scoring.on_device import read_on_device

SETS = ("test-clean", "test-other")
PACKAGE = Path(twopass_kd.__file__).parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(cfg, data_dir, exp_dir, folder, list of utterances) of an exported system with audio."""
    overrides = [f"export.systems=[{SYSTEM}]", "export.timed_utterances=2"]
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path_factory.mktemp("ondevice"), overrides)
    folder = export(cfg, SYSTEM, data_dir, exp_dir)
    path = data_dir.parent / "utterances.jsonl"
    write_utterances(benchmark_device.list_utterances(cfg, data_dir), path)
    return cfg, data_dir, exp_dir, folder, path


def run(module, *args):
    """Run a module in a fresh process that says afterwards whether it imported torch."""
    code = (
        f"import sys, runpy; sys.argv = ['x', *{list(map(str, args))!r}]\n"
        f"try:\n    runpy.run_module('twopass_kd.device_benchmark.{module}', run_name='__main__')\n"
        "except SystemExit as e:\n    status = e.code\n"
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules); sys.exit(status)"
    )
    env = {"PYTHONPATH": str(PACKAGE)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("runtime", ["onnx", "onnx-int8", "sherpa-onnx", "sherpa-onnx-int8", "pytorch"])
def test_measure_fresh_process_gives_a_row_and_imports_no_torch(exported, tmp_path, runtime):
    _, _, exp_dir, folder, utterances = exported
    model = next(exp_dir.glob("*/student/deep/final.pt")) if runtime == "pytorch" else folder
    out = tmp_path / "out.json"
    done = run("measure", model, "--runtime", runtime, "--utterances", utterances, "--timed", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    has_torch, has_onnxruntime = done.stdout.split()
    assert has_torch == str(runtime == "pytorch")
    assert has_onnxruntime == str(not runtime.startswith("sherpa"))  # its memory would count as sherpa-onnx's
    measured = json.loads(out.read_text())
    second_pass = not runtime.startswith("sherpa")
    assert [name for name, rtf in measured["rtf"].items() if rtf is None] == ([] if second_pass else ["two_pass"])
    assert all(0 < rtf < 5 for rtf in measured["rtf"].values() if rtf is not None)
    assert 0 < measured["chunk_ms"]["p50"] <= measured["chunk_ms"]["p95"]
    assert 0 < measured["final_ms"]["p50"] <= measured["final_ms"]["p95"]
    assert (measured["second_pass_share"] is not None) == second_pass
    assert 20 < measured["peak_mb"] < (1000 if runtime == "pytorch" else 200)
    assert measured["seconds"] == pytest.approx(sum(u.duration for u in read_utterances(utterances)[:2]))
    assert measured["chunk_duration_ms"] == 240


def test_measure_model_of_the_other_kind_says_so(exported, tmp_path):
    _, _, exp_dir, folder, utterances = exported
    checkpoint = next(exp_dir.glob("*/student/deep/final.pt"))
    for model, runtime, wanted in ((folder, "pytorch", "final.pt"), (checkpoint, "onnx", "an export folder")):
        args = (model, "--runtime", runtime, "--utterances", utterances, "--timed", 1, "--out", tmp_path / "x")
        done = run("measure", *args)
        assert done.returncode == 1 and wanted in done.stderr and runtime in done.stderr, done.stderr


class CountingRecognizer:
    """Decodes whenever a chunk and 25 ms are there; takes no time that matters."""

    info = SimpleNamespace(sampling_rate=16000, chunk_shift=24)

    def create_stream(self):
        return SimpleNamespace(samples=0, decoded=0)

    def accept_waveform(self, stream, samples):
        stream.samples += len(samples)

    def decode_ready(self, stream):
        before, stream.decoded = stream.decoded, max(0, stream.samples - 400) // 3840
        return stream.decoded > before

    def text(self, stream):
        return ""

    def finish(self, stream, num_samples):
        assert num_samples == stream.samples
        return ""


def test_time_utterances_counts_chunks_that_decoded():
    timing = time_utterances(CountingRecognizer(), [np.zeros(16000, np.float32), np.zeros(3000, np.float32)])
    assert (len(timing.chunks), len(timing.finals)) == (4, 2)  # of 5 chunks the first is too short; of 1 chunk none
    assert timing.audio == 19000 / 16000
    assert timing.computing >= sum(timing.chunks) + sum(timing.finals)
    assert Timing(audio=4.0, computing=1.0).rtf == 0.25


def test_num_feature_frames_equals_kaldi_native_fbank():
    for num_samples in (0, 79, 80, 81, 239, 240, 1000, 16000, 16079, 16080, 16081):
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.dither, options.frame_opts.snip_edges = 0.0, False
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(16000, [0.1] * num_samples)
        fbank.input_finished()
        assert num_feature_frames(num_samples, 16000) == fbank.num_frames_ready, num_samples


@pytest.mark.parametrize("factor, chunk_size", [(4, 4), (6, 4), (6, 1), (4, 16)])
def test_padding_for_sherpa_leaves_it_the_frames_that_we_decode(factor, chunk_size):
    shift = factor * chunk_size
    info = SimpleNamespace(sampling_rate=16000, chunk_shift=shift, chunk_frames=7 - factor + shift)
    for num_samples in range(0, 50000, 611):
        padding = padding_for_sherpa(num_samples, info)
        frames = num_feature_frames(num_samples + padding, 16000)
        theirs = 0
        while theirs * shift + info.chunk_frames < frames:  # sherpa-onnx's IsReady
            theirs += 1
        ours = (frames - 7) // factor + 1
        assert theirs * chunk_size == ours
        assert ours >= (num_feature_frames(num_samples, 16000) - 7) // factor + 1  # nothing is cut off
        assert padding <= (shift + 1) * 160 or theirs == 1


def test_own_recognizer_decode_equals_streaming(exported):
    _, _, _, folder, path = exported
    runtime = open_runtime(folder)
    audios = [read_audio(u, 16000) for u in read_utterances(path)[:3]]
    for method, second_pass in (("greedy_search", False), ("modified_beam_search", True)):
        recognizer = RecipeRecognizer(runtime, method, second_pass)
        texts = []
        for samples in audios:
            stream = recognizer.create_stream()
            for i in range(0, len(samples), 3000):
                recognizer.accept_waveform(stream, samples[i : i + 3000])
                recognizer.decode_ready(stream)
            texts.append(recognizer.finish(stream, len(samples)))
        assert any(texts)
        prepared = [recognizer.prepare(samples) for samples in audios]
        assert [final for _, final in recognizer.decode(prepared)] == texts
        assert (recognizer.attention_seconds > 0) == second_pass
    assert runtime.info.second_pass  # left as it was


def test_decode_sets_gives_every_utterance_by_every_pass(exported):
    _, _, _, folder, path = exported
    utterances = read_utterances(path)
    found = decode_sets(folder, "onnx", utterances, ["test-clean"])
    for name in SETS:
        ids = {u.id for u in utterances if u.set == name}
        assert {p: set(texts) for p, texts in found["texts"][name].items()} == dict.fromkeys(
            ("two_pass", "first_pass", "greedy_search"), ids
        )
    assert set(found["padded_texts"]) == {"test-clean"}
    assert set(found["padded_texts"]["test-clean"]) == {"greedy_search", "first_pass"}


def test_utterances_bad_list_or_audio_are_named(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=f"{path}, line 1"):
        read_utterances(path)
    path.write_text("")
    with pytest.raises(ValueError, match="list.jsonl is empty"):
        read_utterances(path)
    gone = Utterance("utt-7", "dev", str(tmp_path / "gone.flac"), 0.0, 1.0, "A")
    with pytest.raises(ValueError, match="utt-7.*gone.flac"):
        read_audio(gone, 16000)


def test_utterances_texts_may_hold_any_separator(tmp_path):
    utterances = [Utterance("a", "dev", "a.flac", 0.0, 1.0, "A\u2028B\u0085C\u00a0D")] * 2
    write_utterances(utterances, tmp_path / "list.jsonl")
    assert read_utterances(tmp_path / "list.jsonl") == utterances


def test_read_audio_that_is_short_not_finite_or_raw_is_named(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(32000, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "x.raw").write_bytes(bytes(64000))
    for name, says in (
        ("short.wav", r"must have 2 s from 0 s on, all finite, but has 1 s"),
        ("nan.wav", "all finite"),
        ("x.raw", "must be readable audio"),
    ):
        with pytest.raises(ValueError, match=rf"utterance a: .*{name} .*{says}.*stage 1"):
            read_audio(Utterance("a", "dev", str(tmp_path / name), 0.0, 2.0, "A"), 16000)
    exact = Utterance("a", "dev", str(tmp_path / "short.wav"), 0.0, 1.00001, "A")
    assert len(read_audio(exact, 16000)) == 16000


def test_read_audio_takes_the_part_at_the_models_rate(tmp_path):
    tone = np.sin(np.arange(8000) / 20).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "a.wav", np.stack([tone, -tone], axis=1), 8000, subtype="FLOAT")
    utterance = Utterance("a", "dev", str(tmp_path / "a.wav"), 0.25, 0.5, "A")
    assert np.array_equal(read_audio(utterance, 8000), tone[2000:6000])
    assert np.array_equal(read_audio(replace(utterance, channel=1), 8000), -tone[2000:6000])
    assert abs(len(read_audio(utterance, 16000)) - 8000) <= 1


def test_long_recording_is_as_long_as_asked(exported):
    utterances = read_utterances(exported[-1])[:2]
    pieces = list(long_recording(utterances, 7.0, 16000))
    assert sum(map(len, pieces)) == 7 * 16000
    assert np.array_equal(pieces[0], read_audio(utterances[0], 16000)) and not pieces[1].any()
    assert np.array_equal(pieces[2], read_audio(utterances[1], 16000))


def test_stream_long_ends_utterances(exported):
    _, _, _, folder, path = exported
    measured = stream_long(folder, True, read_utterances(path)[:1], 0.5)
    assert measured["minutes"] == 0.5 and measured["num_utterances"] >= 2 and measured["peak_mb"] > 20


def test_list_utterances_missing_audio_names_the_cut(exported):
    cfg, data_dir, *_ = exported
    audio = data_dir.parent / "audio" / "test-other" / "utt-2.flac"
    audio.rename(audio.with_suffix(".away"))
    try:
        with pytest.raises(FileNotFoundError, match="utt-2 of test-other.*utt-2.flac"):
            benchmark_device.list_utterances(cfg, data_dir)
    finally:
        audio.with_suffix(".away").rename(audio)


def test_list_utterances_takes_the_channel_of_the_cut(exported, tmp_path):
    """The first one was measured, whichever the features were of."""
    cfg, data_dir, *_ = exported
    for folder in (data_dir, data_dir.parent / "audio"):
        shutil.copytree(folder, tmp_path / folder.name)
    path = tmp_path / data_dir.name / "fbank" / f"librispeech_cuts_{SETS[0]}.jsonl.gz"
    cuts = CutSet.from_file(path).to_eager()
    audio = str(tmp_path / cuts[0].recording.sources[0].source)
    for cut in cuts:
        cut.channel = 1
        cut.recording.channel_ids = [0, 1, 2]
        cut.recording.sources = [AudioSource("file", [0], "other.wav"), AudioSource("file", [2, 1], audio)]
    cuts.to_file(path)
    found = [u for u in benchmark_device.list_utterances(cfg, tmp_path / data_dir.name) if u.set == SETS[0]]
    assert {(u.audio, u.channel) for u in found} == {(audio, 1)}


def test_list_utterances_long_set_is_thinned_evenly(exported):
    cfg, data_dir, *_ = exported
    everything = benchmark_device.list_utterances(cfg, data_dir)
    assert list(dict.fromkeys(u.set for u in everything)) == list(SETS)  # the first test set is the timed one
    total = sum(u.duration for u in everything if u.set == "test-other")
    less = replace(cfg, export=replace(cfg.export, decoded_seconds=total / 2 + 0.01))
    half = [u.id for u in benchmark_device.list_utterances(less, data_dir) if u.set == "test-other"]
    assert half == ["utt-0", "utt-2"]


def test_read_exports_missing_or_old_export_is_an_error(exported, tmp_path):
    cfg, _, exp_dir, folder, _ = exported
    with pytest.raises(ConfigError, match="export.json must exist; export it again.*--system student"):
        read_exports(cfg, tmp_path)
    marker = exp_dir / cfg.name / "student" / "deep" / "identity"
    marker.write_text("another\n")
    try:
        with pytest.raises(ConfigError, match="trained anew"):
            read_exports(cfg, exp_dir)
    finally:
        marker.unlink()
    decode_json = exp_dir / cfg.name / "decode" / SYSTEM / "decode.json"
    kept = decode_json.read_text()
    decode_json.write_text(kept.replace('"rescore_weight": 0.5', '"rescore_weight": 0.7'))
    try:
        with pytest.raises(ConfigError, match="must have the rescore_weight that stage 8 decoded with now"):
            read_exports(cfg, exp_dir)
    finally:
        decode_json.write_text(kept)
    for path, schema_key in ((folder / "export.json", "identity"), (decode_json, "beam")):
        kept = path.read_text()
        for broken, says in (
            (kept[: len(kept) // 2], "must be JSON"),
            (kept.replace(f'"{schema_key}"', '"x"'), rf"must have .*{schema_key}"),
        ):
            path.write_text(broken)
            try:
                with pytest.raises(ConfigError, match=rf"{path.name}.* {says}"):
                    read_exports(cfg, exp_dir)
            finally:
                path.write_text(kept)
    sizes = {job.runtime: job.bytes() for job in find_jobs(cfg, exp_dir, read_exports(cfg, exp_dir))}
    assert sizes["onnx"] - sizes["sherpa-onnx"] == (folder / "attention_decoder.onnx").stat().st_size
    assert sizes["pytorch"] == next(exp_dir.glob("*/student/deep/final.pt")).stat().st_size


def test_run_kept_reuses_only_what_has_not_changed(exported, tmp_path):
    _, _, _, folder, path = exported
    args = [str(folder), "--utterances", str(path), "--minutes", "0.02"]
    out = tmp_path / "kept.json"
    first = run_kept("twopass_kd.device_benchmark.long_audio", args, out, {"identity": "a"}, quiet=True)
    stamp = out.stat().st_mtime_ns
    assert run_kept("twopass_kd.device_benchmark.long_audio", args, out, {"identity": "a"}, quiet=True) == first
    assert out.stat().st_mtime_ns == stamp
    run_kept("twopass_kd.device_benchmark.long_audio", args, out, {"identity": "b"}, quiet=True)
    assert out.stat().st_mtime_ns > stamp
    with pytest.raises(MeasureError, match=r"exit code 1.*`--minutes` \(-1"):
        run_kept("twopass_kd.device_benchmark.long_audio", [*args[:-1], "-1"], out, {}, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]  # no half-written file


def test_ondevice_writes_what_the_report_reads(exported):
    cfg, data_dir, exp_dir, *_ = exported
    cfg = replace(cfg, export=replace(cfg.export, long_minutes=[0.02, 0.1]))
    path = benchmark_device.measure(cfg, data_dir, exp_dir)
    content = json.loads(path.read_text())
    decoded = read_json(path.parent / "decode" / SYSTEM / "decode.json", CheckpointDecoding, "decode again")
    assert read_on_device(path, {SYSTEM: decoded}, SETS) == OnDeviceJson.model_validate_json(path.read_text())
    rows = {row["runtime"]: row for row in content["rows"]}
    assert len(rows) == 5 and content["set"] == "test-clean" and content["timed_utterances"] == 2
    assert rows["onnx"]["wer"] == rows["pytorch"]["wer"]  # the same model
    assert rows["sherpa-onnx"]["wer"]["test-clean"]["two_pass"] is None
    agreement = content["agreement"][SYSTEM]["fp32"]
    assert all(agreement[m] == {"same": 8, "of": 8, "different": []} for m in ("greedy_search", "modified_beam_search"))
    assert content["int8"][SYSTEM]["size_ratio"] is None  # there is no teacher to compare with
    assert set(content["int8"][SYSTEM]["test-other"]) == {"first_pass", "two_pass"}
    assert content["long_audio"]["minutes"] == [0.02, 0.1]
    assert (path.parent / "export" / "measured" / "student-onnx" / "recogs-test-other-two_pass.txt").is_file()
