"""Exported files against the model that they come from, and what an export leaves on disk."""

import json
import os
import shutil
import stat
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile
import torch
from lhotse import CutSet, load_manifest

from small_export import PHASE, SYSTEM, exportable_experiment
from tiny import NUM_FEATURES, PIECES, TINY_CONF, lively, noise, tiny_model
from twopass_kd.bin.export import export
from twopass_kd.config.schema import AttentionDecoderConfig, ConfigError
from twopass_kd.export import ExportError
from twopass_kd.export.onnx_files import check_onnx, export_onnx, run_onnx, wrappers
from twopass_kd.export.quantization import quantizable_layers
from twopass_kd.export.streaming import check_streaming, load_utterances
from twopass_kd.export.torchscript import check_torchscript, export_torchscript
from twopass_kd.export.weights import load_exported_weights
from twopass_kd.models.attention_decoder import AttentionDecoder
from twopass_kd.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from twopass_kd.ondevice.runtime import ModelError, OnnxRuntime, attention_inputs
from twopass_kd.ondevice.stream import StreamingRecognizer, open_runtime
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.nbest import Hypothesis
from twopass_kd.search.rescoring import attention_log_probs

PARTS = ("encoder", "decoder", "joiner", "attention_decoder")
NO_METADATA = {part: {} for part in PARTS}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(cfg, data_dir, exp_dir, folder) of a finished export."""
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path_factory.mktemp("export"))
    return cfg, data_dir, exp_dir, export(cfg, SYSTEM, data_dir, exp_dir)


def attention_of(**changes):
    """A tiny model whose attention decoder has other shapes."""
    model = tiny_model()
    torch.manual_seed(1)
    model.attention_decoder = AttentionDecoder(AttentionDecoderConfig(**{"dim": 8, "num_heads": 2, **changes}), 16, 12)
    return model.eval()


@pytest.mark.parametrize(
    "model",
    [
        tiny_model(factor=6),
        tiny_model(factor=4, dropout=0.3),
        attention_of(dim=16, num_heads=4, num_layers=2),  # keys as wide as queries: torch packs their weights
        attention_of(encoder_layers=2),
        attention_of(encoder_layers=1, encoder_bidirectional=False),
    ],
    ids=["factor 6", "dropout", "packed weights", "two bidirectional layers", "one layer"],
)
def test_onnx_files_equal_the_model(model, tmp_path):
    differences = export_onnx(model, True, tmp_path, NO_METADATA)
    assert sorted(differences) == sorted(f"{part}.onnx" for part in PARTS) and max(differences.values()) < 1e-5
    assert not model.training  # torch's exporter would leave it so

    x = torch.randn(2, 47, NUM_FEATURES, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        memory, lens, _ = model.encoder(x, torch.tensor([47, 47]))
    states = tuple(model.encoder.init_states(2))
    encoder_out, *_, got = run_onnx(tmp_path / "encoder.onnx", (x, *states))
    np.testing.assert_allclose(got, memory.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder_out, model.joiner.encoder_proj(memory).detach().numpy(), atol=1e-5)

    hyps = [[5, 3, 7, 4], [], [11]]
    inputs = map(torch.from_numpy, attention_inputs(hyps))
    log_prob = run_onnx(tmp_path / "attention_decoder.onnx", (memory[:1], *inputs))[0]
    nbest = [Hypothesis(tokens, 0.0, []) for tokens in hyps]
    want = attention_log_probs(model, memory[:1], lens[:1], [nbest], 1, 1)[0]
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)


def test_onnx_decoder_and_joiner_equal_the_model(tmp_path):
    model = tiny_model()
    export_onnx(model, False, tmp_path, NO_METADATA)
    y = torch.tensor([[0, 0], [4, 9], [9, 4]])
    decoder_out = run_onnx(tmp_path / "decoder.onnx", (y,))[0]
    with torch.no_grad():
        want = model.joiner.decoder_proj(model.decoder(y, need_pad=False).squeeze(1))
        logits = model.joiner(want, want, project_input=False)
    np.testing.assert_allclose(decoder_out, want.numpy(), atol=1e-6)
    got = run_onnx(tmp_path / "joiner.onnx", (want, want))[0]
    np.testing.assert_allclose(got, logits.numpy(), atol=1e-6)
    assert not (tmp_path / "attention_decoder.onnx").exists()


def test_an_lstm_decoder_cannot_be_exported():
    with pytest.raises(ConfigError, match="decoder.kind=stateless"):
        wrappers(tiny_model(decoder="lstm"), second_pass=True)


@pytest.mark.parametrize("part", PARTS)
def test_a_file_of_another_model_is_found_out(part, tmp_path):
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    export_onnx(other, True, tmp_path, NO_METADATA)
    with pytest.raises(ExportError, match=rf"{part}\.onnx must equal .* differs by \d"):
        check_onnx(model, wrappers(model, True)[part], tmp_path / f"{part}.onnx")


def test_a_file_that_gives_no_numbers_is_found_out(tmp_path):
    model = tiny_model()
    export_onnx(model, False, tmp_path, NO_METADATA)
    proto = onnx.load(str(tmp_path / "joiner.onnx"))
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(weight.dims), np.nan, np.float32), weight.name))
    onnx.save(proto, str(tmp_path / "joiner.onnx"))
    with pytest.raises(ExportError, match="joiner.onnx"):
        check_onnx(model, wrappers(model, False)["joiner"], tmp_path / "joiner.onnx")


def test_export_leaves_what_it_promises(exported):
    cfg, _, exp_dir, folder = exported
    assert folder == exp_dir / cfg.name / "export" / SYSTEM
    names = {f"{part}{suffix}" for part in PARTS for suffix in (".onnx", ".int8.onnx")}
    names |= {"tokens.txt", "cpu_jit.pt", "weights.safetensors", "config.yaml", "export.json"}
    assert {p.name for p in folder.iterdir()} == names
    assert [p.name for p in folder.parent.iterdir()] == [SYSTEM]  # no temporary folder
    assert all(stat.S_IMODE(p.stat().st_mode) & 0o044 == 0o044 for p in folder.iterdir())

    summary = json.loads((folder / "export.json").read_text())
    content = load_checkpoint(exp_dir / cfg.name / PHASE / "final.pt")
    assert {k: summary[k] for k in ("system", "phase", "identity", "weights_digest")} == {
        "system": SYSTEM,
        "phase": PHASE,
        "identity": content["identity"],
        "weights_digest": content["weights_digest"],
    }
    assert summary["files"] == {name: (folder / name).stat().st_size for name in names - {"export.json"}}
    assert max(summary["checks"].values()) < 1e-4 and len(summary["checks"]) == 6
    assert list(summary["streaming"]) == cfg.corpus.test_parts
    for streaming in summary["streaming"].values():
        assert streaming["utterances"] == streaming["same_greedy"] == 4 and streaming["different"] == []
        assert 0 < streaming["encoder_difference"] < 1e-4
    assert {"wer", "layers", "scan", "left_out", "utterances", "dev_parts"} <= set(summary["int8"])
    assert summary["int8"]["utterances"] == 4


def test_export_metadata_is_sherpa_onnx_s(exported):
    folder = exported[3]
    metadata = {
        part: {p.key: p.value for p in onnx.load(str(folder / f"{part}.onnx")).metadata_props} for part in PARTS
    }
    encoder = {
        "model_type": "lstm",
        "version": "1",
        "model_author": "twopass_kd",
        "decode_chunk_len": "24",
        "T": "25",
        "num_encoder_layers": "1",
        "d_model": "16",
        "rnn_hidden_size": "16",
    }
    assert encoder.items() <= metadata["encoder"].items()
    assert {"vocab_size": str(len(PIECES)), "context_size": "2"}.items() <= metadata["decoder"].items()
    assert metadata["joiner"]["joiner_dim"] == "32"
    assert {"rescore_weight": "0.5", "length_reward": "0.25"}.items() <= metadata["attention_decoder"].items()
    for part in PARTS:
        int8 = {p.key: p.value for p in onnx.load(str(folder / f"{part}.int8.onnx")).metadata_props}
        assert {**metadata[part], "precision": "int8"}.items() <= int8.items()


def test_files_of_the_other_precision_or_of_other_settings_are_told(exported, tmp_path):
    folder = exported[3]
    shutil.copytree(folder, tmp_path / "mixed")
    shutil.copyfile(folder / "joiner.int8.onnx", tmp_path / "mixed" / "joiner.onnx")
    with pytest.raises(ModelError, match="joiner.onnx must be the float32 file, but it is the int8 one"):
        OnnxRuntime(tmp_path / "mixed")
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path, ["export.chunk_size=2"], utterances=1)
    other = export(cfg, SYSTEM, data_dir, exp_dir)  # the same weights
    shutil.copyfile(folder / "joiner.onnx", tmp_path / "mixed" / "joiner.onnx")
    shutil.copyfile(other / "attention_decoder.onnx", tmp_path / "mixed" / "attention_decoder.onnx")
    with pytest.raises(ModelError, match="attention_decoder.onnx is not of the same export"):
        OnnxRuntime(tmp_path / "mixed")


@pytest.mark.parametrize("int8", [False, True])
def test_an_exported_folder_recognises_like_its_checkpoint(exported, int8):
    cfg, _, exp_dir, folder = exported
    results = []
    for runtime in (open_runtime(exp_dir / cfg.name / PHASE), OnnxRuntime(folder, int8=int8)):
        assert (runtime.info.beam, runtime.info.nbest) == (cfg.decode.beam, cfg.decode.nbest)
        recognizer = StreamingRecognizer(runtime)
        stream = recognizer.create_stream()
        stream.accept_waveform(noise(2.5, seed=9))
        stream.input_finished()
        results.append(recognizer.finalize(stream))
    assert results[0].text and all(np.isfinite(a.attention_log_prob) for a in results[1].nbest)
    if not int8:
        assert results[0].tokens == results[1].tokens and results[0].timestamps == results[1].timestamps


def test_streaming_that_differs_from_offline_is_found_out(exported):
    cfg, data_dir, exp_dir, folder = exported
    model, _ = load_model(exp_dir / cfg.name / PHASE / "final.pt")
    runtime = OnnxRuntime(folder)
    cuts = load_manifest(data_dir / "fbank" / f"librispeech_cuts_{cfg.corpus.test_parts[0]}.jsonl.gz")
    utterances = load_utterances(cuts.with_recording_path_prefix(data_dir.parent), runtime.info)
    with torch.no_grad():
        model.joiner.output_linear.bias[7] += 50.0  # another search, the same encoder
        streaming = check_streaming(model, runtime, utterances)
        assert streaming.same_greedy == 0 and len(streaming.different) == 4
        model.encoder.norm.bias[0] += 1.0
    with pytest.raises(ExportError, match="encoder.onnx in chunks .* on utt-"):
        check_streaming(model, runtime, utterances)
    with torch.no_grad():
        model.encoder.norm.bias[0] = float("nan")
    with pytest.raises(ExportError, match="differs by inf"):
        check_streaming(model, runtime, utterances)


def test_exported_tokens_drop_disambiguation_symbols(exported):
    cfg, data_dir, _, folder = exported
    lang = data_dir / f"lang_bpe_{cfg.tokens.vocab_size}" / "tokens.txt"
    assert (folder / "tokens.txt").read_bytes() == lang.read_bytes()
    before = lang.read_bytes()
    lang.write_bytes(before + b"#0 40\n#1 41\n")
    try:
        assert (export(cfg, SYSTEM, data_dir, exported[2]) / "tokens.txt").read_bytes() == before
    finally:
        lang.write_bytes(before)


def test_export_without_a_second_pass(tmp_path):
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path, second_pass=False, utterances=2)
    folder = export(cfg, SYSTEM, data_dir, exp_dir)
    assert not list(folder.glob("attention_decoder*"))
    assert not any(OnnxRuntime(folder, int8=int8).info.second_pass for int8 in (False, True))
    int8 = json.loads((folder / "export.json").read_text())["int8"]
    assert int8["layers"] == sum(len(quantizable_layers(path)) for path in folder.glob("*r.onnx")) > 0


def test_audio_that_is_not_finite_is_named(tmp_path):
    _, data_dir, _ = exportable_experiment(tmp_path, utterances=2)
    (path,) = (tmp_path / "audio" / "dev-clean").glob("utt-1.*")
    samples, rate = soundfile.read(path)
    samples[100] = np.nan
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")
    cuts = CutSet.from_file(data_dir / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz")
    info = SimpleNamespace(num_features=80, sampling_rate=rate)
    with pytest.raises(ValueError, match="the audio of cut utt-1 must be finite, but has NaN or infinity"):
        load_utterances(cuts.with_recording_path_prefix(tmp_path), info)


def test_a_failed_export_leaves_the_old_one(exported, tmp_path):
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path, utterances=2)
    audio = sorted((tmp_path / "audio").rglob("*.flac"))
    kept = audio[0].read_bytes()
    audio[0].write_bytes(b"")  # found late: the float32 files are written by then
    with pytest.raises(ValueError, match="the audio of cut utt-0 cannot be read"):
        export(cfg, SYSTEM, data_dir, exp_dir)
    assert not list((exp_dir / cfg.name / "export").iterdir())

    audio[0].write_bytes(kept)
    folder = export(cfg, SYSTEM, data_dir, exp_dir)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    audio[0].write_bytes(b"")
    with pytest.raises(ValueError):
        export(cfg, SYSTEM, data_dir, exp_dir)
    assert [p.name for p in folder.parent.iterdir()] == [SYSTEM]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_export_names_what_is_wrong_and_what_to_do(tmp_path):
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path, utterances=1)
    with pytest.raises(ConfigError, match="`--system` .nobody. must be one of .*student"):
        export(cfg, "nobody", data_dir, exp_dir)
    with pytest.raises(FileNotFoundError, match="stage 4 makes it"):
        export(cfg, "teacher", data_dir, exp_dir)

    decode_json = exp_dir / cfg.name / "decode" / SYSTEM / "decode.json"
    good = json.loads(decode_json.read_text())
    decode_json.write_text(json.dumps({**good, "identity": "of an older training"}))
    with pytest.raises(ValueError, match="identity of an older training.*stage 8"):
        export(cfg, SYSTEM, data_dir, exp_dir)
    decode_json.write_text("{")
    with pytest.raises(ValueError, match="must be JSON.*stage 8"):
        export(cfg, SYSTEM, data_dir, exp_dir)
    decode_json.unlink()
    with pytest.raises(FileNotFoundError, match="stage 8 makes it"):
        export(cfg, SYSTEM, data_dir, exp_dir)

    path = exp_dir / cfg.name / PHASE / "final.pt"
    save_checkpoint({**load_checkpoint(path), "tokens_digest": "0" * 64}, path)
    with pytest.raises(ConfigError, match="trained with other tokens"):
        export(cfg, SYSTEM, data_dir, exp_dir)


def test_export_from_the_command_line(exported, tmp_path):
    cfg, data_dir, exp_dir, _ = exported
    command = [sys.executable, "-m", "twopass_kd.bin.export", "--conf", str(TINY_CONF), "--data-dir", str(data_dir)]
    command += ["--exp-dir", str(exp_dir), f"tokens.vocab_size={len(PIECES)}", "export.chunk_size=3", "--system"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, SYSTEM], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([*command, SYSTEM], env=env, capture_output=True, text=True, timeout=300)
    assert "is exported already" in again.stderr and "int8, WER of" not in again.stderr
    assert "int8, WER of 4 dev utterances" in done.stderr
    assert "Warning" not in done.stderr and "pre-processing" not in done.stderr
    failed = subprocess.run([*command, "nobody"], env=env, capture_output=True, text=True, timeout=300)
    assert failed.returncode == 1 and "`--system` (nobody)" in failed.stderr and "Traceback" not in failed.stderr


def icefall_greedy_search(model, encoder_out, encoder_out_lens):
    """What icefall's programs do with such a file, written anew: one utterance at a time, one symbol a frame."""
    hyps = []
    for frames, length in zip(encoder_out, encoder_out_lens.tolist()):
        hyp = [model.decoder.blank_id] * model.decoder.context_size
        for frame in frames[:length]:
            context = torch.tensor([hyp[-model.decoder.context_size :]])
            decoder_out = model.decoder(context, need_pad=torch.tensor([False])).squeeze(1)
            token = int(model.joiner(frame[None], decoder_out).argmax())
            if token not in (model.decoder.blank_id, 2):
                hyp.append(token)
        hyps.append(hyp[model.decoder.context_size :])
    return hyps


@torch.no_grad()
@pytest.mark.parametrize("names", [("x", "x_lens"), ("features", "feature_lengths")])
def test_torchscript_decodes_in_icefalls_way(names, tmp_path):
    model = lively(tiny_model(dropout=0.2), scale=6.0)
    assert export_torchscript(model, tmp_path / "cpu_jit.pt") < 1e-5
    scripted = torch.jit.load(str(tmp_path / "cpu_jit.pt"))
    scripted.eval()
    x, x_lens = torch.randn(3, 90, NUM_FEATURES, generator=torch.Generator().manual_seed(0)), torch.tensor([90, 61, 9])
    encoder_out, lens = scripted.encoder(**dict(zip(names, (x, x_lens))))
    got = icefall_greedy_search(scripted, encoder_out, lens)
    memory, memory_lens, _ = model.encoder(x, x_lens)
    assert got == [nbest[0].tokens for nbest in greedy_search(model, memory, memory_lens)]
    assert any(got)
    assert scripted.decoder.vocab_size == model.vocab_size
    y = x_lens[:, None] % model.vocab_size
    encoder_out = scripted.joiner.encoder_proj(encoder_out[:, :1])
    logits = scripted.joiner(encoder_out, scripted.joiner.decoder_proj(scripted.decoder(y)), project_input=False)
    assert torch.allclose(logits, model.joiner(memory[:, :1], model.decoder(y)), atol=1e-5)


def test_torchscript_of_another_model_is_found_out(tmp_path):
    export_torchscript(tiny_model(seed=1), tmp_path / "cpu_jit.pt")
    with pytest.raises(ExportError, match="cpu_jit.pt must equal"):
        check_torchscript(tiny_model(seed=0), tmp_path / "cpu_jit.pt")


def test_exported_weights_are_the_model_bit_for_bit(exported):
    cfg, _, exp_dir, folder = exported
    model, content = load_model(exp_dir / cfg.name / PHASE / "final.pt")
    loaded, info = load_exported_weights(folder)
    assert not loaded.training
    assert {k: v.numpy().tobytes() for k, v in loaded.state_dict().items()} == {
        k: v.numpy().tobytes() for k, v in model.state_dict().items()
    }
    assert info == {k: content[k] for k in ("phase", "vocab_size", "identity", "tokens_digest", "weights_digest")}


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors must exist"),
        (lambda f: _cut(f / "weights.safetensors"), "cut short"),
        (lambda f: _flip_last_byte(f / "weights.safetensors"), "damaged"),
        (lambda f: _replace(f / "config.yaml", "dim: 16", "dim: 8"), "does not fit"),
        (lambda f: _replace(f / "config.yaml", "student/deep:", "student/other:"), "must have the phase student/deep"),
    ],
    ids=["missing", "cut", "flipped", "other sizes", "other phases"],
)
def test_damaged_weights_are_an_error(exported, tmp_path, damage, says):
    for name in ("weights.safetensors", "config.yaml"):
        (tmp_path / name).write_bytes((exported[3] / name).read_bytes())
    damage(tmp_path)
    with pytest.raises(ExportError, match=says):
        load_exported_weights(tmp_path)


def test_a_folder_mixed_of_two_exports_is_not_opened(exported, tmp_path):
    other, data_dir, exp_dir = exportable_experiment(tmp_path, overrides=["models.student.joiner_dim=16"], utterances=1)
    folder = export(other, SYSTEM, data_dir, exp_dir)
    (folder / "joiner.onnx").write_bytes((exported[3] / "joiner.onnx").read_bytes())
    with pytest.raises(ModelError, match="joiner.onnx is not of the same export"):
        OnnxRuntime(folder)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
