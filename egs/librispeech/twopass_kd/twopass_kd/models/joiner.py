"""The joiner: log-odds of the next token out of one encoder frame and one decoder position."""

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """Linear(encoder) + Linear(decoder) -> tanh -> Linear(V). Attribute names are icefall's."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """Combine encoder frames and decoder positions of broadcastable shapes (..., C).

        Args:
          encoder_out: (..., encoder_dim), or (..., joiner_dim) if already projected.
          decoder_out: (..., decoder_dim), or (..., joiner_dim) if already projected.
          project_input: whether the inputs still need `encoder_proj` and `decoder_proj`.
        Returns:
          Logits (not log-probs), (..., V).
        """
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
