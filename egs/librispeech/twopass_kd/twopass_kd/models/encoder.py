"""The shared streaming encoder: convolutional subsampling, then residual LSTM blocks."""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from twopass_kd.config.schema import EncoderConfig

States = Tuple[Tensor, Tensor]


class GlobalMVN(nn.Module):
    """Mean and variance normalisation with statistics of the training set, kept as buffers in the model."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("inv_std", torch.ones(num_features))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the per-bin mean and standard deviation, both (num_features,)."""
        self.mean.copy_(mean)
        self.inv_std.copy_(1.0 / std.clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.inv_std


class Conv2dSubsampling(nn.Module):
    """Two strided convolutions that shorten time by `factor` (4 or 6), without padding in time.

    Output frame t sees input frames `factor * t` to `factor * t + 6`, whatever chunks the input comes in;
    so a streaming encoder that keeps the last 7 - factor frames equals the offline one.
    """

    # The context that a chunk must carry: an output frame needs this many input frames.
    receptive_field = 7

    def __init__(self, num_features: int, factor: int, channels: int, dim: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, stride=(factor // 2, 2)),
            nn.ReLU(),
        )
        freq = ((num_features - 1) // 2 - 1) // 2
        self.out = nn.Linear(channels * freq, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, num_features) -> (N, num_output_frames(T), dim)."""
        x = self.conv(x.unsqueeze(1))
        n, c, t, f = x.shape
        return self.out(x.transpose(1, 2).reshape(n, t, c * f))


def num_output_frames(x_lens: Tensor, factor: int) -> Tensor:
    """Frames after subsampling by `factor` of inputs of `x_lens` frames (0 where the input is too short)."""
    rest = torch.clamp(x_lens - Conv2dSubsampling.receptive_field, min=-factor)
    return torch.div(rest, factor, rounding_mode="floor") + 1


class LstmBlock(nn.Module):
    """LayerNorm -> LSTM -> Linear -> dropout, added to the input."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.linear = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        set_forget_gate_bias(self.lstm)

    def forward(self, x: Tensor, states: Optional[States] = None) -> Tuple[Tensor, States]:
        """x: (N, T, dim); states: two tensors (1, N, dim) or None for zeros."""
        out, states = self.lstm(self.norm(x), states)
        return x + self.dropout(self.linear(out)), states


def set_forget_gate_bias(lstm: nn.LSTM) -> None:
    """Forget gates start open (bias 1, Jozefowicz et al. 2015), which small corpora need to converge."""
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if "bias" in name:
                bias.zero_()
                if "bias_ih" in name:
                    hidden = bias.numel() // 4
                    bias[hidden : 2 * hidden] = 1.0


class Encoder(nn.Module):
    """Unidirectional LSTM encoder on fbank features; its state is two tensors (L, N, dim), as sherpa-onnx has it."""

    def __init__(self, cfg: EncoderConfig, num_features: int) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.num_layers = cfg.num_layers
        self.mvn = GlobalMVN(num_features)
        self.subsampling = Conv2dSubsampling(num_features, cfg.subsampling_factor, cfg.conv_channels, cfg.dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(LstmBlock(cfg.dim, cfg.dropout) for _ in range(cfg.num_layers))
        self.norm = nn.LayerNorm(cfg.dim)

    @property
    def subsampling_factor(self) -> int:
        return self.subsampling.factor

    def init_states(self, batch_size: int) -> States:
        """Zero states (L, N, dim) for a new stream."""
        weight = self.norm.weight
        zeros = weight.new_zeros(self.num_layers, batch_size, self.dim)
        return zeros, zeros.clone()

    def forward(self, x: Tensor, x_lens: Tensor, states: Optional[States] = None) -> Tuple[Tensor, Tensor, States]:
        """Encode whole utterances, or the next chunk of each stream.

        Args:
          x: (N, T, num_features) float, log-mel fbank; what lies beyond `x_lens` is never read by valid frames.
          x_lens: (N,) int64, frames before subsampling.
          states: hidden and cell, each (L, N, dim); None starts from zeros.
        Returns:
          encoder_out (N, T', dim), its lengths (N,) int64 in frames after subsampling, and the new states.
        Raises:
          ValueError: if the longest input is too short for one output frame.
        """
        if x.size(1) < Conv2dSubsampling.receptive_field:
            raise ValueError(
                f"`x` has {x.size(1)} frames, but one output frame needs {Conv2dSubsampling.receptive_field}; "
                "leave such short utterances out (corpus.min_duration)"
            )
        x = self.dropout(self.subsampling(self.mvn(x)))
        hidden: list[Tensor] = []
        cell: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            layer_states = None if states is None else (states[0][i : i + 1], states[1][i : i + 1])
            x, (h, c) = layer(x, layer_states)
            hidden.append(h)
            cell.append(c)
        out_lens = num_output_frames(x_lens, self.subsampling.factor)
        return self.norm(x), out_lens, (torch.cat(hidden), torch.cat(cell))
