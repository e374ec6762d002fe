"""What a TorchScript transducer made by icefall's export.py looks like: what this recipe's teachers rely on."""

import math

import pytest
import torch

SCRIPTED = [
    "zipformer",
    "zipformer_streaming",
    "zipformer7",
    "zipformer7_streaming",
    "conformer",
    "conformer_streaming",
]
LOG_EPS = math.log(1e-10)  # icefall pads features with it
pytestmark = pytest.mark.slow


def zipformer_frames(num_frames):
    return ((num_frames - 7) // 2 + 1) // 2


def conformer_frames(num_frames):
    return ((num_frames - 1) // 2 - 1) // 2


def load(teacher):
    return torch.jit.load(str(teacher.path))


def whole_utterances(model, kind):
    """The call that encodes a batch of whole utterances: (x, x_lens) -> (encoder_out, lens)."""
    if kind == "zipformer7_streaming":
        return model.encoder.non_streaming_forward
    if kind != "zipformer_streaming":
        return model.encoder

    def encode(x, x_lens):
        x, x_lens = model.encoder.encoder_embed(x, x_lens)
        mask = torch.arange(x.size(1)) >= x_lens[:, None]
        x, x_lens = model.encoder.encoder(x.transpose(0, 1), x_lens, mask)
        return x.transpose(0, 1), x_lens

    return encode


@torch.no_grad()
@pytest.mark.parametrize("kind", SCRIPTED)
def test_decoder_and_joiner_of_a_scripted_teacher(icefall_teacher, kind):
    teacher = icefall_teacher(kind)
    model = load(teacher)
    assert not hasattr(model, "forward") and not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.joiner.encoder_proj.weight.shape == (teacher.joiner_dim, teacher.encoder_dim)
    assert model.joiner.decoder_proj.weight.shape == (teacher.joiner_dim, teacher.decoder_dim)
    assert model.joiner.output_linear.weight.shape == (teacher.vocab_size, teacher.joiner_dim)
    decoder = model.decoder
    assert (decoder.context_size, decoder.blank_id, decoder.vocab_size) == (2, 0, teacher.vocab_size)

    y = torch.tensor([[0, 5, 7]])
    decoder_out = decoder(y)
    assert decoder_out.shape == (1, 3, teacher.decoder_dim)
    for need_pad in (False, torch.tensor([False])):
        assert torch.allclose(decoder(y[:, 1:], need_pad=need_pad), decoder_out[:, 2:], atol=1e-6)
    assert torch.allclose(decoder(torch.tensor([[-1, 0]]), need_pad=False), decoder_out[:, :1], atol=1e-6)
    assert not torch.allclose(decoder(torch.tensor([[0, 0]]), need_pad=False), decoder_out[:, :1], atol=1e-2)

    encoder_out = torch.randn(1, 4, 1, teacher.encoder_dim)
    logits = model.joiner(encoder_out, decoder_out[:, None])  # (N, T, U, V)
    assert logits.shape == (1, 4, 3, teacher.vocab_size)
    projected = model.joiner.encoder_proj(encoder_out), model.joiner.decoder_proj(decoder_out[:, None])
    assert torch.equal(model.joiner(*projected, project_input=False), logits)
    assert torch.allclose(model.joiner(encoder_out[:, 1, 0], decoder_out[:, 2]), logits[:, 1, 2], atol=1e-5)
    if kind.startswith("zipformer7"):
        with pytest.raises(torch.jit.Error, match="AssertionError"):
            model.joiner(encoder_out[:, :3, 0], decoder_out)


@torch.no_grad()
@pytest.mark.parametrize("kind", SCRIPTED)
def test_encoder_of_a_scripted_teacher_on_whole_utterances(icefall_teacher, kind):
    teacher = icefall_teacher(kind)
    encode = whole_utterances(load(teacher), kind)
    frames = conformer_frames if kind.startswith("conformer") else zipformer_frames
    g = torch.Generator().manual_seed(0)
    for longest in (9, 13, 95, 96, 97, 98, 99, 100, 101):
        lens = torch.tensor([longest, max(9, longest - 21)])
        encoder_out, out_lens = encode(torch.randn(2, longest, 80, generator=g), lens)
        assert out_lens.tolist() == [frames(n) for n in lens.tolist()]
        assert encoder_out.shape == (2, frames(longest), teacher.encoder_dim)


@torch.no_grad()
@pytest.mark.parametrize("kind", SCRIPTED)
def test_encoder_of_a_scripted_teacher_in_a_padded_batch(icefall_teacher, kind):
    """As the utterance alone, but for frames near its end that look past it.

    A conformer's first convolution pads time with a zero, so that its last frame, and through attention all of them a
    little, depend on what an utterance is padded with.
    """
    encode = whole_utterances(load(icefall_teacher(kind)), kind)
    x = torch.randn(2, 200, 80, generator=torch.Generator().manual_seed(0))
    x[1, 151:] = 0.0 if kind.startswith("conformer") else LOG_EPS
    together, lens = encode(x, torch.tensor([200, 151]))
    alone, _ = encode(x[1:, :151], torch.tensor([151]))
    difference = (together[1, : lens[1]] - alone[0]).abs().amax(dim=1) / alone.abs().max()
    assert float(difference[:-2].max()) < 1e-3 and float(difference.max()) < 0.01


@torch.no_grad()
def test_streaming_zipformer_chunk_by_chunk_is_near_the_whole_utterance(icefall_teacher):
    model = load(icefall_teacher("zipformer_streaming"))
    encoder = model.encoder
    assert (encoder.chunk_size, encoder.left_context_len, encoder.pad_length) == (16, 64, 13)
    x = torch.randn(2, 300, 80, generator=torch.Generator().manual_seed(0))
    whole, lens = whole_utterances(model, "zipformer_streaming")(x, torch.tensor([300, 300]))
    padded = torch.cat([x, torch.full((2, 60, 80), LOG_EPS)], dim=1)
    step, size = 2 * encoder.chunk_size, 2 * encoder.chunk_size + encoder.pad_length
    states = encoder.get_init_states(batch_size=2, device=torch.device("cpu"))
    chunks = []
    for start in range(0, padded.size(1) - size + 1, step):
        chunk = padded[:, start : start + size]
        encoder_out, out_lens, states = encoder(chunk, torch.tensor([size, size]), states)
        assert out_lens.tolist() == [8, 8]
        chunks.append(encoder_out)
    streamed = torch.cat(chunks, dim=1)[:, : whole.size(1)]
    assert lens.tolist() == [73, 73]
    assert float((streamed - whole).abs().max()) < 0.01 * float(whole.abs().max())


@torch.no_grad()
def test_traced_lstm_teacher_is_three_files(icefall_teacher):
    teacher = icefall_teacher("lstm")
    encoder, decoder, joiner = (
        torch.jit.load(str(teacher.path.with_name(f"{part}_jit_trace.pt"))) for part in ("encoder", "decoder", "joiner")
    )
    x_lens = torch.tensor([100, 87])
    encoder_out, lens, _ = encoder(torch.randn(2, 100, 80), x_lens, encoder.get_init_states(2, torch.device("cpu")))
    assert lens.tolist() == [((n - 3) // 2 - 1) // 2 for n in x_lens.tolist()] == [23, 20]
    y = torch.tensor([[0, 5], [5, 7]])
    assert decoder(y, torch.tensor([True])).shape == (2, 1, teacher.decoder_dim)  # need_pad was traced as False
    assert not hasattr(decoder, "context_size")
    logits = joiner(encoder_out[:, :, None], decoder(y, torch.tensor([False]))[:, None])
    assert logits.shape == (2, 23, 1, teacher.vocab_size)
