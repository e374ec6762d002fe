"""The first pass as one TorchScript file, `cpu_jit.pt`, with icefall's names and calls.

icefall's programs (pruned_transducer_stateless*/jit_pretrained.py, zipformer/jit_pretrained.py) load such a file and
call its `encoder`, `decoder` and `joiner` on whole utterances.
"""

from pathlib import Path
from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twopass_kd.export import ExportError
from twopass_kd.models.encoder import Conv2dSubsampling, Encoder
from twopass_kd.models.two_pass import TwoPassModel

TOLERANCE = 1e-4


class ScriptedEncoder(nn.Module):
    """The encoder on whole utterances, from zero states."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.mvn = encoder.mvn
        self.subsampling = encoder.subsampling
        self.layers = encoder.layers
        self.norm = encoder.norm
        self.factor: int = encoder.subsampling_factor
        self.receptive_field: int = Conv2dSubsampling.receptive_field

    def forward(
        self,
        x: Optional[Tensor] = None,
        x_lens: Optional[Tensor] = None,
        features: Optional[Tensor] = None,
        feature_lengths: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """Encode a batch.

        Args:
          x: (N, T, num_features) float, log-mel fbank.
          x_lens: (N,) int64, frames before subsampling.
          features, feature_lengths: the same two, as icefall's zipformer recipe names them.
        Returns:
          encoder_out (N, T', dim), not projected, and its lengths (N,) int64 in frames after subsampling.
        """
        x = features if x is None else x
        x_lens = feature_lengths if x_lens is None else x_lens
        assert x is not None and x_lens is not None, "`x` and `x_lens` must be given"
        out = self.subsampling(self.mvn(x))
        for layer in self.layers:
            out = layer(out, None)[0]
        rest = torch.clamp(x_lens - self.receptive_field, min=-self.factor)
        return self.norm(out), torch.div(rest, self.factor, rounding_mode="floor") + 1


class ScriptedDecoder(nn.Module):
    """The stateless decoder, with the attributes that icefall's searches read."""

    def __init__(self, model: TwoPassModel) -> None:
        super().__init__()
        self.embedding = model.decoder.embedding
        self.conv = model.decoder.conv
        self.vocab_size: int = model.vocab_size
        self.context_size: int = model.decoder.context_size
        self.blank_id: int = model.decoder.blank_id

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """y: (N, U) int64 tokens, blank first. Returns (N, U, dim), or (N, U - context_size + 1, dim) unpadded.

        -1, with which some of icefall's searches begin, counts as blank.
        """
        y = y.clamp(min=0)
        if need_pad:
            blanks = torch.full((y.size(0), self.context_size - 1), self.blank_id, dtype=y.dtype, device=y.device)
            y = torch.cat([blanks, y], dim=1)
        return F.relu(self.conv(self.embedding(y).transpose(1, 2)).transpose(1, 2))


class ScriptedTransducer(nn.Module):
    """`encoder`, `decoder` and `joiner` under icefall's names; it has no `forward` of its own."""

    def __init__(self, model: TwoPassModel) -> None:
        super().__init__()
        self.encoder = ScriptedEncoder(model.encoder)
        self.decoder = ScriptedDecoder(model)
        self.joiner = model.joiner


def export_torchscript(model: TwoPassModel, path: Path) -> float:
    """Write `cpu_jit.pt` and run it against the model on whole utterances.

    Args:
      model: in eval mode, on the CPU, with a stateless decoder (`onnx_files.wrappers` says so where it has not).
      path: where to.
    Returns:
      The largest absolute difference from the model.
    Raises:
      ExportError: if it is above 1e-4.
    """
    torch.jit.script(ScriptedTransducer(model).eval()).save(str(path))
    return check_torchscript(model, path)


@torch.no_grad()
def check_torchscript(model: TwoPassModel, path: Path) -> float:
    """The largest absolute difference of a TorchScript file from the model on random utterances and tokens.

    Raises:
      ExportError: if it is above 1e-4, or the lengths differ.
    """
    scripted = torch.jit.load(str(path), map_location="cpu")
    worst = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for lens in ([7], [95, 61, 7]):
            x, x_lens = torch.randn(len(lens), max(lens), model.encoder.mvn.mean.numel()), torch.tensor(lens)
            encoder_out, out_lens, _ = model.encoder(x, x_lens)
            got, got_lens = scripted.encoder(x=x, x_lens=x_lens)
            y = torch.randint(model.vocab_size, (len(lens), 5))
            context = y[:, : model.decoder.context_size]
            decoder_out = model.decoder(context, need_pad=False)
            pairs = [
                (got, encoder_out),
                (got_lens, out_lens),
                (scripted.decoder(y), model.decoder(y)),
                (scripted.decoder(context, need_pad=False), decoder_out),
                (scripted.joiner(got[:, :1], decoder_out), model.joiner(encoder_out[:, :1], decoder_out)),
            ]
            for a, b in pairs:
                difference = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
                worst = max(worst, difference) if difference == difference else float("inf")
    if worst > TOLERANCE:
        raise ExportError(f"{Path(path).name} must equal the PyTorch model to {TOLERANCE}, but differs by {worst:.3g}")
    return worst
