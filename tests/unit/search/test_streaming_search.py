"""The numpy search of devices against the torch searches, whatever the chunks and the company in the batch."""

import numpy as np
import pytest
import torch

from tiny import lively, tiny_model
from twopass_kd.ondevice.search import StreamingSearch
from twopass_kd.search.greedy import greedy_search
from twopass_kd.search.modified_beam import modified_beam_search


class Heads:
    """Decoder and joiner of a torch model; encoder frames come from the test. Counts the calls of the joiner."""

    def __init__(self, model):
        self.model, self.joined = model, 0
        self.info = type("Info", (), {"context_size": model.decoder.context_size})

    @torch.no_grad()
    def decode(self, context):
        out = self.model.decoder(torch.from_numpy(context), need_pad=False).squeeze(1)
        return self.model.joiner.decoder_proj(out).numpy()

    @torch.no_grad()
    def join(self, encoder_out, decoder_out):
        self.joined += 1
        return self.model.joiner(*map(torch.from_numpy, (encoder_out, decoder_out)), project_input=False).numpy()


@torch.no_grad()
def frames_of(model, lengths):
    encoder_out = torch.randn(len(lengths), max(lengths), 16)
    return encoder_out, torch.tensor(lengths), model.joiner.encoder_proj(encoder_out).numpy()


def stream(search, frames, chunk):
    """Each utterance by chunks, all as one batch."""
    states = [search.start() for _ in frames]
    for begin in range(0, max(map(len, frames)), chunk):
        left = [(s, f[begin : begin + chunk]) for s, f in zip(states, frames) if len(f) > begin]
        search.advance(*zip(*left))
    return states


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_streaming_search_equals_the_torch_search(beam, chunk):
    model = lively(tiny_model(seed=beam), scale=2.5)
    lengths = [31, 9, 1, 22]
    encoder_out, lens, projected = frames_of(model, lengths)
    want = modified_beam_search(model, encoder_out, lens, beam=beam, nbest=beam)
    if beam == 1:
        assert [n[0].tokens for n in want] == [n[0].tokens for n in greedy_search(model, encoder_out, lens)]
    search = StreamingSearch(Heads(model), beam)
    got = stream(search, [f[:n] for f, n in zip(projected, lengths)], chunk)
    assert sum(len(n[0].tokens) for n in want) > 10
    for state, nbest, length in zip(got, want, lengths):
        mine = state.nbest(beam)
        assert [(h.tokens, h.frames) for h in mine] == [(h.tokens, h.frames) for h in nbest]
        assert [h.log_prob for h in mine] == pytest.approx([h.log_prob for h in nbest], abs=1e-3)
        assert state.best() == mine[0] and state.num_frames == length


def test_a_full_cache_of_decoder_outputs_changes_nothing(monkeypatch):
    model = lively(tiny_model(seed=3))
    _, _, projected = frames_of(model, [40])
    want = stream(StreamingSearch(Heads(model), 4), [projected[0]], 4)[0].nbest(4)
    monkeypatch.setattr("twopass_kd.ondevice.search._MAX_CACHED_CONTEXTS", 3)
    got = stream(StreamingSearch(Heads(model), 4), [projected[0]], 4)[0].nbest(4)
    assert [(h.tokens, h.frames) for h in got] == [(h.tokens, h.frames) for h in want]
    # Contexts are computed in other company, in which a single thread sums in another order.
    np.testing.assert_allclose([h.log_prob for h in got], [h.log_prob for h in want], rtol=1e-5)


def test_frames_without_new_contexts_need_no_call_of_the_model():
    model = tiny_model()
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 50.0  # nothing but blanks
    heads = Heads(model)
    stream(StreamingSearch(heads, 1), [np.zeros((12, 10), np.float32)], 4)
    assert heads.joined == 3  # one a chunk


def test_beam_must_be_positive():
    with pytest.raises(ValueError, match="`beam` \\(0\\) must be at least 1"):
        StreamingSearch(Heads(tiny_model()), 0)
