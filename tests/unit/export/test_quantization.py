"""int8 files, and the choice of the layers that stay in float32."""

import json
import logging

import numpy as np
import onnx
import pytest
import torch
from lhotse import load_manifest

from small_export import SYSTEM, exportable_experiment, write_cuts
from tiny import tiny_model
from twopass_kd.bin.export import export
from twopass_kd.export.onnx_files import check_finite, export_onnx, run_onnx
from twopass_kd.export.quantization import quantizable_layers, quantize
from twopass_kd.export.scan import DevDecoder, choose_layers, log_choice
from twopass_kd.export.streaming import load_utterances
from twopass_kd.ondevice.runtime import OnnxRuntime
from twopass_kd.ondevice.stream import StreamingRecognizer
from twopass_kd.scoring.wer import corpus_wer

PARTS = ("encoder", "decoder", "joiner", "attention_decoder")
MODEL = dict(dim=64, vocab_size=300)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model = tiny_model(encoder_layers=1, **MODEL)
    export_onnx(model, True, folder, {part: {"export_id": "abc"} for part in PARTS})
    return model, folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of an export, its dev utterances, its cuts by path relative to `data`)."""
    root = tmp_path_factory.mktemp("export")
    cfg, data_dir, exp_dir = exportable_experiment(root)
    folder = export(cfg, SYSTEM, data_dir, exp_dir)
    cuts = load_manifest(data_dir / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz").with_recording_path_prefix(root)
    return folder, load_utterances(cuts, OnnxRuntime(folder).info), cuts


def weights(path):
    """name -> array of all weights with two dimensions or more."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    return {name: a for name, a in arrays.items() if a.ndim > 1 and a.size >= 256}


def test_quantizable_layers_are_those_with_weights(files):
    layers = [layer for part in PARTS for layer in quantizable_layers(files[1] / f"{part}.onnx")]
    assert layers == [
        "encoder/subsampling.out",
        "encoder/layers.0.lstm",
        "encoder/layers.0.linear",
        "encoder/layers.1.lstm",
        "encoder/layers.1.linear",
        "encoder/encoder_proj",
        "decoder/embedding",
        "decoder/conv",
        "decoder/decoder_proj",
        "joiner/output_linear",
        *(f"attention_decoder/{name}" for name in _in_order_of(files[1] / "attention_decoder.onnx")),
    ]
    assert {"attention_decoder/encoder_layers", "attention_decoder/key", "attention_decoder/lstm"} <= set(layers)


def _in_order_of(path):
    return [layer.split("/")[1] for layer in quantizable_layers(path)]


@pytest.mark.parametrize("part", PARTS)
def test_quantize_everything(files, part, tmp_path):
    model, folder = files
    source, target = folder / f"{part}.onnx", tmp_path / f"{part}.int8.onnx"
    quantize(source, target, keep=set())
    check_finite(model, target)
    for name, array in weights(target).items():
        if "conv" not in name and array.dtype == np.float32:
            assert array.shape[0] == 1 or array.ndim == 4, name  # biases of LSTMs, the subsampling's convolutions
        if array.dtype == np.int8:
            assert np.abs(array).max() <= 64, name  # 7 bits
    assert any(array.dtype in (np.int8, np.uint8) for array in weights(target).values())
    assert target.stat().st_size < 0.75 * source.stat().st_size
    metadata = {p.key: p.value for p in onnx.load(str(target)).metadata_props}
    assert metadata["export_id"] == "abc" and metadata["precision"] == "int8"


def test_quantized_outputs_are_near_the_model(files, tmp_path):
    model, folder = files
    quantize(folder / "encoder.onnx", tmp_path / "encoder.int8.onnx", keep=set())
    x = torch.randn(1, 63, 16, generator=torch.Generator().manual_seed(0))
    inputs = (x, *model.encoder.init_states(1))
    exact, near = (run_onnx(path, inputs)[3] for path in (folder / "encoder.onnx", tmp_path / "encoder.int8.onnx"))
    relative = np.abs(exact - near).mean() / np.abs(exact).mean()
    assert 0 < relative < 0.05


def test_quantize_keeps_layers_in_float32(files, tmp_path):
    source = files[1] / "encoder.onnx"
    layers = quantizable_layers(source)
    quantize(source, tmp_path / "encoder.int8.onnx", keep={"encoder/layers.0.lstm"})
    operators = {node.name: node.op_type for node in onnx.load(str(tmp_path / "encoder.int8.onnx")).graph.node}
    assert operators[layers["encoder/layers.0.lstm"][0]] == "LSTM"
    assert operators[layers["encoder/layers.1.lstm"][0] + "_quant"] == "DynamicQuantizeLSTM"

    quantize(source, tmp_path / "copy.onnx", keep=set(layers))
    copy, original = onnx.load(str(tmp_path / "copy.onnx")), onnx.load(str(source))
    assert copy.graph == original.graph and copy.metadata_props != original.metadata_props


def test_quantize_keeps_a_gemm_in_float32(files, tmp_path):
    # The quantizer renames them before it looks which it may take.
    source = files[1] / "decoder.onnx"
    layers = set(quantizable_layers(source))
    for layer in ("decoder/conv", "decoder/decoder_proj"):
        quantize(source, tmp_path / "decoder.int8.onnx", keep=layers - {layer})
        operators = [node.op_type for node in onnx.load(str(tmp_path / "decoder.int8.onnx")).graph.node]
        assert operators.count("MatMulInteger") == 1 and "DequantizeLinear" not in operators, layer


def test_quantize_says_nothing_that_is_known(files, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        quantize(files[1] / "joiner.onnx", tmp_path / "joiner.int8.onnx", keep=set())
    assert caplog.records == []
    logging.getLogger().warning("pre-processing before quantization")  # only while it runs
    assert len(caplog.records) == 1


def costly(costs, words=1000):
    """Decoding in which each int8 layer turns its number of words wrong, and no two the same."""
    ranges, begin = {}, 0
    for layer, cost in costs.items():
        ranges[layer] = range(begin, begin + cost)
        begin += cost

    def decode(int8_layers):
        wrong = {i for layer in int8_layers for i in ranges[layer]} | set(range(words - 50, words))
        return [(f"utt-{i}", ["YES"], ["NO" if i in wrong else "YES"]) for i in range(words)]

    return decode


def test_choose_layers_leaves_out_what_costs_words():
    costs = {"a/harmless": 0, "a/bad": 40, "b/worst": 60, "b/slight": 1}
    choice = choose_layers(list(costs), costly(costs), seed=0, dev_parts=["dev"])
    assert choice.left_out == ["b/worst", "a/bad"]
    assert [(e.layer, e.errors) for e in choice.scan] == list(costs.items())
    assert choice.wer.model_dump() == {"fp32": 5.0, "int8": pytest.approx(5.1), "all_int8": pytest.approx(15.1)}
    assert [len(step.left_out) for step in choice.steps] == [0, 1, 2]
    assert (choice.utterances, choice.words) == (1000, 1000)


def test_choose_layers_keeps_all_where_nothing_is_lost():
    costs = {"a/one": 0, "a/two": 0}
    choice = choose_layers(list(costs), costly(costs), seed=0, dev_parts=["dev"])
    assert choice.left_out == [] and choice.wer.int8 == 5.0 and len(choice.steps) == 1
    assert choice.scan == [] and choice.layers == 2  # no layer was tried alone


def test_choose_layers_leaves_all_out_where_all_cost():
    costs = {"a/one": 100, "a/two": 90}
    choice = choose_layers(list(costs), costly(costs), seed=0, dev_parts=["dev"])
    assert choice.left_out == ["a/one", "a/two"] and choice.wer.int8 == 5.0


def test_log_choice_is_a_table(caplog):
    costs = {"a/harmless": 0, "b/worst": 60}
    with caplog.at_level(logging.INFO):
        log_choice(choose_layers(list(costs), costly(costs), seed=0, dev_parts=["dev"]))
    assert "float32 5.00%, all layers int8 11.00%" in caplog.text
    assert any(r.getMessage().split() == "b/worst 11.00% +60 left out".split() for r in caplog.records)


def test_dev_decoder_is_the_recognizer(exported, tmp_path):
    folder, utterances, cuts = exported
    recognizer = StreamingRecognizer(OnnxRuntime(folder))
    want = {}
    for cut in cuts:
        stream = recognizer.create_stream()
        stream.accept_waveform(cut.load_audio()[0])
        stream.input_finished()
        want[cut.id] = recognizer.finalize(stream).text.split()
    transcripts = DevDecoder(folder, tmp_path, utterances)(frozenset())
    assert {cut_id: hyp for cut_id, _, hyp in transcripts} == want and any(want.values())
    assert {cut_id: ref for cut_id, ref, _ in transcripts} == {c.id: c.supervisions[0].text.split() for c in cuts}


def test_dev_decoder_reuses_only_what_stays_the_same(exported, tmp_path):
    folder, utterances, _ = exported
    (tmp_path / "shared").mkdir()
    shared = DevDecoder(folder, tmp_path / "shared", utterances)
    everything = set(shared.layers)
    choices = [set(), everything, {"encoder/layers.0.lstm"}, {"joiner/output_linear"}, everything - {"decoder/conv"}]
    choices += [{layer for layer in everything if layer.startswith("attention_decoder/")}, set()]
    for i, choice in enumerate(choices):
        (tmp_path / str(i)).mkdir()
        assert shared(choice) == DevDecoder(folder, tmp_path / str(i), utterances)(choice), choice


def test_dev_decoder_measures_the_exported_int8_files(exported, tmp_path):
    folder, utterances, _ = exported
    decoder = DevDecoder(folder, tmp_path, utterances)
    left_out = json.loads((folder / "export.json").read_text())["int8"]["left_out"]
    decoder(set(decoder.layers) - set(left_out))
    for part in PARTS:
        assert (tmp_path / f"{part}.int8.onnx").read_bytes() == (folder / f"{part}.int8.onnx").read_bytes()


def test_load_utterances_takes_as_much_as_it_may(exported):
    folder, utterances, cuts = exported
    info = OnnxRuntime(folder).info
    assert {u.id for u in utterances} == {c.id for c in cuts} and utterances[0].features.shape[1] == 80
    some = load_utterances(cuts, info, max_seconds=3.0)
    assert 0 < len(some) < len(utterances)
    assert sum(len(u.features) for u in some) / 100 <= 3.0 or len(some) == 1
    assert [u.id for u in some] == [u.id for u in load_utterances(cuts, info, max_seconds=3.0)]


def test_load_utterances_errors(exported, tmp_path):
    folder, _, cuts = exported
    info = OnnxRuntime(folder).info
    with pytest.raises(ValueError, match="must have audio"):
        load_utterances(cuts.filter(lambda c: False), info)
    with pytest.raises(ValueError, match="the audio of cut utt-.* cannot be read [^\n]*; bring it back[^\n]*$"):
        load_utterances(cuts.with_recording_path_prefix("/").map(_moved), info)
    write_cuts(tmp_path / "data", "dev", 1, sampling_rate=8000)
    other = load_manifest(tmp_path / "data" / "fbank" / "librispeech_cuts_dev.jsonl.gz")
    with pytest.raises(ValueError, match="cut utt-0 .8000 Hz. must have the model's rate, 16000 Hz"):
        load_utterances(other, info)


def _moved(cut):
    cut.recording.sources[0].source += ".moved"
    return cut


def test_wer_of_the_scan_is_that_of_the_transcripts(exported, tmp_path):
    folder, utterances, _ = exported
    decoder = DevDecoder(folder, tmp_path, utterances)
    choice = choose_layers(decoder.layers, decoder, seed=0, dev_parts=["dev"])
    assert choice.wer.fp32 == corpus_wer(decoder(frozenset())).wer
    int8 = decoder(set(decoder.layers) - set(choice.left_out))
    assert choice.wer.int8 == pytest.approx(corpus_wer(int8).wer)
