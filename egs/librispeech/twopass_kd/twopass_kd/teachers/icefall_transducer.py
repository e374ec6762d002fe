"""A transducer of icefall behind the interface of this recipe's own models.

icefall's transducers have a stateless decoder and a joiner that adds two projections. What no file says of them (frame
rate, what pads the decoder's context) is measured here by running them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from twopass_kd.config.schema import ConfigError
from twopass_kd.models.decoder import State
from twopass_kd.models.two_pass import DEPLOYED_PARTS

USED_PARTS = ("encoder", "decoder", "joiner")  # of recipes that have an attention decoder too
_PROBE_FRAMES = (400, 800)  # lengths from which the frame rate is read off
_KNOWN_BINS = (40, 64, 80, 96, 100, 128)


class IcefallTransducer(nn.Module):
    """A transducer of icefall with the interface of `TwoPassModel`'s first pass; for inference.

    Args:
      module: has `encoder`, `decoder` and `joiner`, as icefall's models do; kept as `module`.
      encode: (x (N, T, num_features), x_lens (N,)) -> (encoder_out (N, T', C), its lengths (N,)).
      num_mel_bins: of the features that it is to be tried with.
    Raises:
      ConfigError: if the joiner or decoder is of another kind, or the encoder does not take such features.
    """

    trained_parts = ("encoder", "decoder", "joiner")  # of a `TwoPassModel`, which it can teach

    def __init__(self, module: nn.Module, encode: Callable, num_mel_bins: int, blank_id: int = 0, unk_id: int = 2):
        super().__init__()
        self.module = module
        self.blank_id, self.unk_id = blank_id, unk_id
        self.encoder = _Encoder(encode, num_mel_bins)
        self.decoder = _Decoder(module.decoder, blank_id)
        self.joiner = _Joiner(module.joiner)
        self.vocab_size = self.joiner.output_linear.weight.shape[0]

    def deployed_parameters(self) -> dict[str, int]:
        """Number of parameters of each part as `TwoPassModel` has them, and `total`."""
        return self._sum_up(lambda p: p.numel())

    def deployed_bytes(self) -> dict[str, int]:
        """Bytes of the parameters of each part as `TwoPassModel` has them, and `total`."""
        return self._sum_up(lambda p: p.numel() * p.element_size())

    def _sum_up(self, size: Callable[[Tensor], int]) -> dict[str, int]:
        sums = dict.fromkeys(DEPLOYED_PARTS, 0)
        seen = set()  # the encoder's embedding has two names
        for name, parameter in self.module.named_parameters():
            part = name.split(".")[0]
            part = "encoder" if part == "encoder_embed" else part
            if part in USED_PARTS and parameter.data_ptr() not in seen:
                seen.add(parameter.data_ptr())
                sums[part] += size(parameter)
        return {**sums, "total": sum(sums.values())}


class _Encoder(nn.Module):
    """`forward` as `Encoder` has it; the factor is measured, since no file says it."""

    def __init__(self, encode: Callable, num_mel_bins: int) -> None:
        super().__init__()
        self.encode = encode
        try:
            lens = [self._probe(frames, num_mel_bins) for frames in _PROBE_FRAMES]
        except Exception as e:  # whatever the teacher's own code raises
            takes = [bins for bins in _KNOWN_BINS if self._takes(bins)]
            if takes:
                raise ConfigError(
                    f"`features.num_mel_bins`: the teacher's encoder does not take the student's {num_mel_bins}, but "
                    f"{takes[0]}; they must be equal"
                ) from e
            raise ConfigError(
                f"the teacher's encoder cannot be run on features of shape (1, {_PROBE_FRAMES[0]}, {num_mel_bins}): "
                f"{(str(e).strip() or repr(e)).splitlines()[-1]}"
            ) from e
        # Output frames of so many more input frames.
        self.subsampling_factor = round((_PROBE_FRAMES[1] - _PROBE_FRAMES[0]) / max(1, lens[1] - lens[0]))

    def forward(self, x: Tensor, x_lens: Tensor, states: None = None) -> tuple[Tensor, Tensor, None]:
        with torch.jit.optimized_execution(False):  # or its first calls compile for up to a minute
            encoder_out, encoder_out_lens = self.encode(x, x_lens)
        return encoder_out, encoder_out_lens.to(torch.int64), None

    @torch.no_grad()
    def _probe(self, frames: int, num_mel_bins: int) -> int:
        """The length of the output for so many frames of features."""
        return int(self(torch.zeros(1, frames, num_mel_bins), torch.tensor([frames]))[1][0])

    def _takes(self, num_mel_bins: int) -> bool:
        try:
            return self._probe(_PROBE_FRAMES[0], num_mel_bins) > 0
        except Exception:
            return False


class _Decoder(nn.Module):
    """A stateless decoder, with `step` as ours has it."""

    def __init__(self, decoder: nn.Module, blank_id: int) -> None:
        super().__init__()
        self.decoder = decoder
        if not hasattr(decoder, "context_size"):
            raise ConfigError(
                "the teacher's decoder must be icefall's stateless one, which has a `context_size`; this one has not"
            )
        self.context_size = int(decoder.context_size)
        # What its recipe's searches put before the first token: -1 where the decoder knows it, for a zero vector.
        self.pad_id = -1
        try:
            decoder(torch.tensor([[self.pad_id]]))
        except (IndexError, RuntimeError):
            self.pad_id = blank_id

    def forward(self, y: Tensor) -> Tensor:
        """y: (N, U) int64 tokens, blank first. Returns (N, U, C)."""
        return self.decoder(y)

    def init_state(self, batch_size: int) -> State:
        """State before the first token, (N, context_size - 1) int64."""
        device = next(self.decoder.parameters()).device
        return (torch.full((batch_size, self.context_size - 1), self.pad_id, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token (N,) int64 for each hypothesis: (N, C) and the new state."""
        context = torch.cat([state[0], tokens.unsqueeze(1)], dim=1)
        return self.decoder(context)[:, -1], (context[:, 1:],)


class _Joiner(nn.Module):
    """A joiner whose inputs broadcast, as ours: tanh of the sum of two projections, then Linear(V)."""

    def __init__(self, joiner: nn.Module) -> None:
        super().__init__()
        names = ("encoder_proj", "decoder_proj", "output_linear")
        missing = [name for name in names if not hasattr(joiner, name)]
        if missing:
            raise ConfigError(
                f"the teacher's joiner must have {', '.join(names)}, as icefall's have since "
                f"pruned_transducer_stateless2; this one lacks {', '.join(missing)}"
            )
        self.encoder_proj, self.decoder_proj, self.output_linear = (getattr(joiner, name) for name in names)
        self._check(joiner)

    @torch.no_grad()
    def _check(self, joiner: nn.Module) -> None:
        """That the joiner does no more than `forward` does."""
        encoder_out, decoder_out = (
            torch.randn(2, linear.weight.shape[1]) for linear in (self.encoder_proj, self.decoder_proj)
        )
        try:
            is_ours = torch.allclose(joiner(encoder_out, decoder_out), self(encoder_out, decoder_out), atol=1e-4)
        except Exception:  # whatever the teacher's own code raises
            is_ours = False
        if not is_ours:
            raise ConfigError("the teacher's joiner must be output_linear(tanh(encoder_proj + decoder_proj))")

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """As `Joiner.forward`: logits (..., V)."""
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
