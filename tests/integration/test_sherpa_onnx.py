"""The real sherpa-onnx runs our exports, and finds what our search finds."""

import pytest

from small_export import SYSTEM, exportable_experiment
from tiny import noise
from twopass_kd.bin.export import export
from twopass_kd.device_benchmark.sherpa import METHODS, SherpaRecognizer, pad_for_sherpa
from twopass_kd.ondevice.runtime import OnnxRuntime
from twopass_kd.ondevice.stream import StreamingRecognizer

pytest.importorskip("sherpa_onnx")

AUDIOS = [noise(0.1 + 0.43 * i, seed=i) for i in range(12)]


@pytest.fixture(scope="module", params=[4, 6], ids=["factor 4", "factor 6"])
def folder(request, tmp_path_factory):
    """An export of an untrained model that talks."""
    overrides = [f"models.{which}.encoder.subsampling_factor={request.param}" for which in ("teacher", "student")]
    cfg, data_dir, exp_dir = exportable_experiment(tmp_path_factory.mktemp("sherpa"), [*overrides, "decode.beam=4"])
    return export(cfg, SYSTEM, data_dir, exp_dir)


def by_sherpa(folder, info, method, int8, audios=AUDIOS):
    """The tokens (word marks as ours) and the texts that sherpa-onnx finds."""
    recognizer = SherpaRecognizer(folder, info, method, int8)
    streams = recognizer.decode_streams([recognizer.prepare(samples) for samples in audios])
    tokens = [[t.replace(" ", "\u2581") for t in recognizer.tokens(s)] for s in streams]
    return tokens, [recognizer.text(s) for s in streams]


def by_us(recognizer, audios=AUDIOS):
    """The same with our search, of the audio that sherpa-onnx decodes."""
    results = []
    for samples in audios:
        stream = recognizer.create_stream()
        stream.accept_waveform(pad_for_sherpa(samples, recognizer.info))
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode([stream])
        results.append(recognizer.partial(stream))
    return [r.tokens for r in results], [r.text for r in results]


@pytest.mark.parametrize("method", METHODS)
def test_sherpa_onnx_finds_our_hypotheses(folder, method):
    runtime = OnnxRuntime(folder)
    ours = by_us(StreamingRecognizer(runtime, method))
    assert sum(map(len, ours[0])) > 100 and len({tuple(t) for t in ours[0]}) == len(AUDIOS)  # the models do talk
    assert by_sherpa(folder, runtime.info, method, int8=False) == ours


@pytest.mark.parametrize("method", METHODS)
def test_sherpa_onnx_runs_int8(folder, method):
    # int8 layers scale their input by the largest value in the batch, and ours scores other rows together than
    # sherpa-onnx does, so near ties can fall either way: here one utterance at a time, and nearly all equal.
    runtime = OnnxRuntime(folder, int8=True)
    recognizer = StreamingRecognizer(runtime, method)
    pairs = [(by_us(recognizer, [a]), by_sherpa(folder, runtime.info, method, True, [a])) for a in AUDIOS]
    assert sum(ours == theirs for ours, theirs in pairs) >= 10
    assert any(theirs[1][0] for _, theirs in pairs)


def test_sherpa_onnx_streams_what_it_decodes_at_once(folder):
    info = OnnxRuntime(folder).info
    recognizer = SherpaRecognizer(folder, info, "modified_beam_search")
    for samples in AUDIOS[3:5]:
        stream = recognizer.create_stream()
        for i in range(0, len(samples), 1000):
            recognizer.accept_waveform(stream, samples[i : i + 1000])
            recognizer.decode_ready(stream)
        text = recognizer.finish(stream, len(samples))
        assert text == recognizer.text(recognizer.decode_streams([recognizer.prepare(samples)])[0])


def test_sherpa_recognizer_unknown_method_is_an_error(folder):
    with pytest.raises(ValueError, match=r"`method` \(beam\) must be one of greedy_search, modified_beam_search"):
        SherpaRecognizer(folder, OnnxRuntime(folder).info, "beam")
