"""An encoder that does not learn: run without a graph, its outputs kept in memory where that pays."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from twopass_kd.data.asr_dataset import Batch
from twopass_kd.training.padded_rows import encode


class FrozenEncoder:
    """Maps a batch to encoder output and lengths, without gradient.

    After `keep`, utterances that are trained on are looked up, by their ids, instead of encoded. That needs features
    that are the same in every epoch (no augmentation) and memory for the whole corpus: 2 bytes times frames times C for
    each utterance, which suits small corpora only.

    Args:
      encoder: frozen; put into eval mode.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder.eval()
        self.cache: dict[str, Tensor] = {}

    def keep(self, batch: Batch) -> None:
        """Encode a batch and keep the result in float16.

        The batches must come in the same order every time: what is kept, and so the training, is then the same bit for
        bit in a run that was resumed.
        """
        out, lens = self._encode(batch)
        for cut_id, row, n in zip(batch.cut_ids, out, lens.tolist()):
            self.cache[cut_id] = row[:n].half()

    def __call__(self, batch: Batch, cached: bool = True) -> tuple[Tensor, Tensor]:
        """Encoder output of a batch.

        Args:
          cached: whether it is of the utterances that are kept, if any are; another one may have the id of one.
        Returns:
          (B, T, C) float32 and (B,) int64 lengths, in frames after subsampling; padding may be any number.
        """
        if not (self.cache and cached):
            return self._encode(batch)
        rows = [self.cache[cut_id] for cut_id in batch.cut_ids]
        lens = torch.tensor([len(row) for row in rows], device=rows[0].device)
        return pad_sequence(rows, batch_first=True).float(), lens

    @torch.no_grad()
    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return encode(self.encoder, batch.feature, batch.feature_lens)
