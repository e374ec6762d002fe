"""Streaming recognition against the offline path, for chunks of any size and streams in company."""

import json
import subprocess
import sys
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny import TINY_CONF, noise, save_tiny_checkpoint
from twopass_kd.ondevice.endpoint import EndpointRules
from twopass_kd.ondevice.features import OnlineFeatures
from twopass_kd.ondevice.runtime import ModelError
from twopass_kd.ondevice.stream import StreamingRecognizer, detokenize, open_runtime
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search
from twopass_kd.search.rescoring import attention_log_probs, rescore_with_attention_decoder

BEAM = 2  # of tests/conf/tiny.yaml


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Model and runtime of one checkpoint."""
    path = tmp_path_factory.mktemp("exp") / "tiny" / "student" / "deep" / "final.pt"
    return save_tiny_checkpoint(path), open_runtime(path)


def features_of(samples):
    features = OnlineFeatures(80, 16000)
    features.accept_waveform(samples)
    features.input_finished()
    return torch.from_numpy(features.read(0, features.num_ready))


def feed(recognizer, stream, samples, chunk):
    for begin in range(0, len(samples), chunk):
        stream.accept_waveform(samples[begin : begin + chunk])
        while recognizer.is_ready(stream):
            recognizer.decode([stream])
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode([stream])


@torch.no_grad()
def offline(model, samples):
    feature = features_of(samples).unsqueeze(0)
    return model.encoder(feature, torch.tensor([feature.size(1)]))[:2]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [320, 1600, 3777, 16000])  # samples: 20 ms to 1 s
@pytest.mark.parametrize("seconds", [0.31, 1.0, 2.345])
def test_streaming_equals_offline(tiny, chunk, seconds):
    model, runtime = tiny
    samples = noise(seconds, seed=int(100 * seconds))
    encoder_out, lens = offline(model, samples)
    for method, search in (("greedy_search", greedy_search), ("modified_beam_search", modified_beam_search)):
        recognizer = StreamingRecognizer(runtime, method)
        stream = recognizer.create_stream()
        feed(recognizer, stream, samples, chunk)
        torch.testing.assert_close(torch.from_numpy(np.concatenate(stream.memory)), encoder_out[0], atol=1e-4, rtol=0)
        nbest = search(model, encoder_out, lens, **({} if method == "greedy_search" else {"beam": BEAM}))[0]
        assert stream.search.best().tokens == nbest[0].tokens
        assert seconds < 1 or nbest[0].tokens


@torch.no_grad()
def test_final_result_equals_offline_rescoring(tiny):
    model, runtime = tiny
    runtime = copy(runtime)
    runtime.info = replace(runtime.info, rescore_weight=0.9)
    recognizer = StreamingRecognizer(runtime)
    changed = 0
    for seed in range(12):
        samples = noise(1.5, seed)
        encoder_out, lens = offline(model, samples)
        nbest = modified_beam_search(model, encoder_out, lens, beam=BEAM, nbest=BEAM)[0]
        attention = attention_log_probs(model, encoder_out, lens, [nbest], 1, 1)[0]
        want = rescore_with_attention_decoder(nbest, attention, 0.9)
        stream = recognizer.create_stream()
        feed(recognizer, stream, samples, 1600)
        result = recognizer.finalize(stream)
        assert result.tokens == [runtime.info.tokens[k] for k in want.tokens]
        assert result.timestamps == pytest.approx([0.06 * t for t in want.frames])
        assert result.is_final and (result.start, result.end) == (0.0, pytest.approx(1.5, abs=0.12))
        assert [a.score for a in result.nbest] == sorted((a.score for a in result.nbest), reverse=True)
        by_text = {a.text: a for a in result.nbest}
        for hyp, log_prob in zip(nbest, attention):
            mine = by_text[detokenize([runtime.info.tokens[k] for k in hyp.tokens])]
            assert (mine.log_prob, mine.attention_log_prob) == pytest.approx((hyp.log_prob, log_prob), abs=1e-3)
        changed += want is not nbest[0]
    assert changed  # otherwise the second pass was not tested


def test_many_streams_in_one_batch_equal_each_alone(tiny):
    recognizer = StreamingRecognizer(tiny[1])
    audio = [noise(s, seed) for seed, s in enumerate((2.0, 0.2, 1.1, 3.0, 0.7))]
    alone = []
    for samples in audio:
        stream = recognizer.create_stream()
        feed(recognizer, stream, samples, 4000)
        alone.append(recognizer.finalize(stream))
    streams = [recognizer.create_stream() for _ in audio]
    for begin in range(0, 48000, 4000):
        for stream, samples in zip(streams, audio):
            if begin < len(samples):
                stream.accept_waveform(samples[begin : begin + 4000])
            else:
                stream.input_finished()
        while any(map(recognizer.is_ready, streams)):
            recognizer.decode(streams)
    for stream, want in zip(streams, alone):
        stream.input_finished()
        got = recognizer.finalize(stream)
        assert (got.tokens, got.timestamps, got.text) == (want.tokens, want.timestamps, want.text)
        assert [a.score for a in got.nbest] == pytest.approx([a.score for a in want.nbest], abs=1e-3)


def test_partials_grow_and_time_stays_that_of_the_audio(tiny):
    recognizer = StreamingRecognizer(tiny[1], "greedy_search")
    stream = recognizer.create_stream()
    stream.accept_waveform(noise(2.0))
    seen = [recognizer.partial(stream).tokens]
    while recognizer.is_ready(stream):
        recognizer.decode([stream])
        seen.append(recognizer.partial(stream).tokens)
    assert seen[0] == [] and len(seen[-1]) > 3
    assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(seen, seen[1:]))  # greedy never revises
    first = recognizer.finalize(stream)
    recognizer.reset(stream)
    stream.accept_waveform(noise(2.0, seed=1))
    stream.input_finished()
    second = recognizer.finalize(stream)
    assert second.start == first.end and first.end < 2.0 and second.end == pytest.approx(4.0, abs=0.12)
    assert second.timestamps[0] >= second.start
    recognizer.reset(stream)  # new audio
    stream.accept_waveform(noise(2.0))
    while recognizer.is_ready(stream):
        recognizer.decode([stream])
    assert recognizer.finalize(stream).tokens == first.tokens


def test_second_utterance_equals_its_audio_alone(tiny):
    model, runtime = tiny
    recognizer = StreamingRecognizer(runtime, "greedy_search")
    stream = recognizer.create_stream()
    samples = noise(3.0, seed=5)
    stream.accept_waveform(samples[:19200])
    for _ in range(3):
        recognizer.decode([stream])
    assert recognizer.is_ready(stream)  # a fourth chunk, which finalize leaves to the next utterance
    assert recognizer.finalize(stream).tokens
    begin = stream.position
    assert begin == 72  # three chunks of the 118 frames that were ready
    recognizer.reset(stream)
    stream.accept_waveform(samples[19200:])
    stream.input_finished()
    got = recognizer.finalize(stream)
    with torch.no_grad():
        feature = features_of(samples)[begin:].unsqueeze(0)
        encoder_out, lens, _ = model.encoder(feature, torch.tensor([feature.size(1)]))
    want = greedy_search(model, encoder_out, lens)[0][0]
    assert got.tokens == [runtime.info.tokens[k] for k in want.tokens]


def test_endpoint_rules():
    rules = EndpointRules()
    assert not rules.reached(2.39, 2.39, any_token=False) and rules.reached(2.4, 2.4, any_token=False)
    assert not rules.reached(9.0, 1.19, any_token=True) and rules.reached(9.0, 1.2, any_token=True)
    assert not rules.reached(5.0, 1.2, any_token=False)
    assert rules.reached(20.0, 0.0, any_token=True)
    with pytest.raises(ValueError, match="`silence` \\(0\\) must be positive"):
        EndpointRules(silence=0)


def test_is_endpoint_counts_silence_since_the_last_token(tiny):
    recognizer = StreamingRecognizer(tiny[1], endpoint=EndpointRules(max_length=1.0))
    stream = recognizer.create_stream()
    assert not recognizer.is_endpoint(stream)
    stream.accept_waveform(noise(1.5))
    lengths = []
    while recognizer.is_ready(stream) and not recognizer.is_endpoint(stream):
        recognizer.decode([stream])
        lengths.append(stream.search.num_frames * 0.06)
    assert recognizer.is_endpoint(stream) and lengths[-1] >= 1.0 > lengths[-2]
    assert not StreamingRecognizer(tiny[1]).is_endpoint(stream)


def test_audio_after_an_endpoint_is_the_next_utterance_even_at_the_end(tiny):
    recognizer = StreamingRecognizer(tiny[1], endpoint=EndpointRules(max_length=1.0))
    stream = recognizer.create_stream()
    stream.accept_waveform(noise(3.5))
    stream.input_finished()  # all at once
    results = []
    while recognizer.is_ready(stream):
        results.append(recognizer.finalize(stream))
        recognizer.reset(stream)
    assert len(results) == 3 and all(r.end - r.start < 1.3 for r in results[:-1])
    assert [r.start for r in results[1:]] == [r.end for r in results[:-1]] and results[-1].end > 3.3
    assert stream.position == 0 and not stream.is_input_finished  # ready for new audio


def test_no_audio_is_an_empty_result(tiny):
    recognizer = StreamingRecognizer(tiny[1])
    stream = recognizer.create_stream()
    stream.accept_waveform(np.zeros(0, np.float32))
    stream.accept_waveform(noise(0.05))  # less than one encoder frame
    stream.input_finished()
    stream.input_finished()
    assert not recognizer.is_ready(stream)
    recognizer.decode([stream])
    result = recognizer.finalize(stream)
    assert (result.text, result.tokens, result.end) == ("", [], 0.0)


def test_misuse_is_told(tiny):
    recognizer = StreamingRecognizer(tiny[1])
    stream = recognizer.create_stream()
    for bad, words in ((np.zeros((2, 5)), "one channel"), (np.array([0.1, np.nan]), "finite")):
        with pytest.raises(ValueError, match=words):
            stream.accept_waveform(bad)
    with pytest.raises(ValueError, match="`samples` .int16. must be floats in .-1, 1.; divide int16 samples by 32768"):
        stream.accept_waveform(np.zeros(100, np.int16))
    with pytest.raises(ValueError, match="has one twice"):
        recognizer.decode([stream, stream])
    stream.input_finished()
    with pytest.raises(ValueError, match="accept_waveform after input_finished"):
        stream.accept_waveform(noise(0.1))
    recognizer.finalize(stream)
    with pytest.raises(ValueError, match="decode after finalize: call reset"):
        recognizer.decode([stream])
    with pytest.raises(ValueError, match="finalize after finalize"):
        recognizer.finalize(stream)
    with pytest.raises(ValueError, match="`method` \\(viterbi\\) must be one of"):
        StreamingRecognizer(tiny[1], "viterbi")


def test_memory_of_features_and_results_is_freed(tiny):
    recognizer = StreamingRecognizer(tiny[1], endpoint=EndpointRules(max_length=2.0))
    stream = recognizer.create_stream()
    kept = []
    for seed in range(20):
        stream.accept_waveform(noise(1.0, seed))
        while recognizer.is_ready(stream):
            recognizer.decode([stream])
        if recognizer.is_endpoint(stream):
            recognizer.finalize(stream)
            recognizer.reset(stream)
        kept.append(sum(map(len, stream.memory)))
    assert max(kept) * 0.06 < 3.1
    with pytest.raises(IndexError, match="removed"):
        stream.features.read(stream.position - 1, 1)


def test_open_runtime_says_what_it_cannot_open(tmp_path):
    for path in (tmp_path / "nothing", tmp_path / "x.onnx"):
        with pytest.raises(ModelError, match="must be an export folder .* or a checkpoint"):
            open_runtime(path)
    (tmp_path / "export" / "student").mkdir(parents=True)
    (tmp_path / "export" / "student" / "encoder.onnx").touch()
    with pytest.raises(ModelError, match="did you mean .*export/student"):
        open_runtime(tmp_path)
    path = tmp_path / "final.pt"
    save_tiny_checkpoint(path, overrides=["models.student.decoder.kind=lstm", "models.teacher.decoder.kind=lstm"])
    with pytest.raises(ModelError, match="stateless decoder"):
        open_runtime(path)
    with pytest.raises(ModelError, match="int8 models are in export folders"):
        open_runtime(path, int8=True)


def test_checkpoint_takes_how_it_was_decoded_from_decode_json(tmp_path, caplog):
    path = tmp_path / "tiny" / "student" / "deep" / "final.pt"
    save_tiny_checkpoint(path)
    assert open_runtime(path).info.rescore_weight == 0.5 and "not one chosen on dev" in caplog.text
    decode_json = tmp_path / "tiny" / "decode" / "student" / "decode.json"
    decode_json.parent.mkdir(parents=True)
    content = {"identity": "student/deep, 0", "beam": 7, "nbest": 5, "rescore_weight": 0.3, "length_reward": 0.1}
    decode_json.write_text(json.dumps(content))
    info = open_runtime(path).info
    assert (info.beam, info.nbest, info.rescore_weight, info.length_reward) == (7, 5, 0.3, 0.1)
    decode_json.write_text("[]")
    with pytest.raises(ModelError, match=r"decode.json \(\[\]\) must be an object; decode again"):
        open_runtime(path)


def test_checkpoint_without_a_second_pass_streams_the_first(tmp_path):
    path = tmp_path / "tiny" / "student" / "rnnt_kd" / "final.pt"
    save_tiny_checkpoint(path, second_pass=False)
    recognizer = StreamingRecognizer(open_runtime(path.parent))
    stream = recognizer.create_stream()
    feed(recognizer, stream, noise(1.0), 1600)
    result = recognizer.finalize(stream)
    assert result.text == result.first_pass_text and {a.attention_log_prob for a in result.nbest} == {None}


def test_stream_and_ondevice_import_no_torch():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *args):\n"
        "        assert name.split('.')[0] not in ('torch', 'k2', 'lhotse'), name\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib, pkgutil, twopass_kd.ondevice.stream, twopass_kd.ondevice as d, twopass_kd.bin.recognize\n"
        "names = [m.name for m in pkgutil.iter_modules(d.__path__) if m.name != 'torch_runtime']\n"
        "for name in names: importlib.import_module('twopass_kd.ondevice.' + name)\n"
        "print(len(names))\n"
    )
    recipe = TINY_CONF.parents[2] / "egs" / "librispeech" / "twopass_kd"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(recipe)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
