"""The encoder: chunk by chunk equals the whole; padding has no influence; lengths are right."""

import pytest
import torch

from tiny import NUM_FEATURES, tiny_model
from twopass_kd.models.encoder import Conv2dSubsampling, num_output_frames


@pytest.mark.parametrize("factor", [4, 6])
@pytest.mark.parametrize("frames_per_chunk", [1, 3])
def test_streaming_equals_offline(factor, frames_per_chunk):
    encoder = tiny_model(factor=factor).encoder
    x = torch.randn(2, 61, NUM_FEATURES)
    whole, lens, _ = encoder(x, torch.tensor([61, 61]))
    states, outputs, shift = encoder.init_states(2), [], factor * frames_per_chunk
    width = Conv2dSubsampling.receptive_field + factor * (frames_per_chunk - 1)
    for begin in range(0, 61 - width + 1, shift):
        chunk = x[:, begin : begin + width]
        out, out_lens, states = encoder(chunk, torch.full((2,), width), states)
        assert out.size(1) == frames_per_chunk == int(out_lens[0])
        outputs.append(out)
    streamed = torch.cat(outputs, dim=1)
    assert streamed.size(1) > 5
    torch.testing.assert_close(streamed, whole[:, : streamed.size(1)], atol=1e-5, rtol=1e-4)
    assert int(lens[0]) == whole.size(1)


@pytest.mark.parametrize("factor", [4, 6])
def test_num_output_frames_equals_what_the_convolutions_give(factor):
    subsampling = Conv2dSubsampling(NUM_FEATURES, factor, channels=2, dim=3)
    for t in range(7, 40):
        got = subsampling(torch.zeros(1, t, NUM_FEATURES)).size(1)
        assert got == int(num_output_frames(torch.tensor(t), factor)), t
    assert num_output_frames(torch.tensor([0, 1, 6]), factor).tolist() == [0, 0, 0]


@pytest.mark.parametrize("factor", [4, 6])
def test_padding_is_never_read_by_valid_frames(factor):
    encoder = tiny_model(factor=factor).encoder
    x = torch.randn(1, 45, NUM_FEATURES)
    alone, lens, _ = encoder(x, torch.tensor([45]))
    padded = torch.cat([x, torch.full((1, 30, NUM_FEATURES), 1e4)], dim=1)
    out, out_lens, _ = encoder(padded, torch.tensor([45]))
    assert out_lens.tolist() == lens.tolist()
    torch.testing.assert_close(out[:, : int(lens)], alone)


def test_too_short_input_is_an_error():
    with pytest.raises(ValueError, match="6 frames"):
        tiny_model().encoder(torch.zeros(1, 6, NUM_FEATURES), torch.tensor([6]))


def test_statistics_normalise_the_features():
    mvn = tiny_model().encoder.mvn
    x = torch.randn(500, NUM_FEATURES) * 5 + 3
    mvn.set_statistics(x.mean(0), x.std(0))
    out = mvn(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(NUM_FEATURES), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(NUM_FEATURES), atol=1e-4, rtol=0)
