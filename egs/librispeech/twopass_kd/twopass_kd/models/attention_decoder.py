"""The LAS attention decoder: second pass over the output of the shared encoder."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from twopass_kd.config.schema import AttentionDecoderConfig
from twopass_kd.models.encoder import set_forget_gate_bias


class AttentionDecoder(nn.Module):
    """Optional extra encoder layers, an LSTM over the token prefix, attention over the encoder, an output layer.

    After Chan et al. 2016 (Listen, Attend and Spell), but the context vector is not fed back into the LSTM:
    all positions are computed in one call, for training and for rescoring alike.
    """

    def __init__(self, cfg: AttentionDecoderConfig, encoder_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_layers: nn.LSTM | None = None
        memory_dim = encoder_dim
        if cfg.encoder_layers:
            hidden = cfg.dim // 2 if cfg.encoder_bidirectional else cfg.dim
            self.encoder_layers = nn.LSTM(
                encoder_dim, hidden, cfg.encoder_layers, batch_first=True, bidirectional=cfg.encoder_bidirectional
            )
            set_forget_gate_bias(self.encoder_layers)
            memory_dim = hidden * (2 if cfg.encoder_bidirectional else 1)
        self.embedding = nn.Embedding(vocab_size, cfg.dim)
        self.lstm = nn.LSTM(cfg.dim, cfg.dim, cfg.num_layers, batch_first=True)
        self.attention = nn.MultiheadAttention(
            cfg.dim, cfg.num_heads, kdim=memory_dim, vdim=memory_dim, batch_first=True
        )
        self.hidden = nn.Linear(2 * cfg.dim, cfg.dim)
        self.output_linear = nn.Linear(cfg.dim, vocab_size)
        self.dropout = nn.Dropout(cfg.dropout)
        set_forget_gate_bias(self.lstm)

    def forward(self, encoder_out: Tensor, encoder_out_lens: Tensor, y: Tensor) -> Tensor:
        """Teacher-forced logits of every next token.

        Args:
          encoder_out: (B, T, encoder_dim), of the shared encoder.
          encoder_out_lens: (B,) int64, frames after subsampling; 0 counts as 1, for there must be one to attend to.
          y: (B, U) or (B, N, U) int64, prefixes that begin with sos; N hypotheses of each utterance are scored
            against its one encoder output. Padding may be any token: a position sees only those before it.
        Returns:
          Logits (not log-probs), (B, U, V) or (B, N, U, V): at position u for token u + 1.
        """
        encoder_out_lens = encoder_out_lens.clamp(min=1)
        memory = self._memory(encoder_out, encoder_out_lens)
        batch, num_positions = y.size(0), y.size(-1)
        query = self.lstm(self.dropout(self.embedding(y.reshape(-1, num_positions))))[0]
        query = query.reshape(batch, -1, query.size(-1))
        padding = torch.arange(memory.size(1), device=y.device) >= encoder_out_lens.unsqueeze(1)
        context = self.attention(query, memory, memory, key_padding_mask=padding, need_weights=False)[0]
        hidden = torch.tanh(self.hidden(self.dropout(torch.cat([query, context], dim=-1))))
        logits = self.output_linear(self.dropout(hidden))
        return logits.reshape(*y.shape, -1)

    def _memory(self, encoder_out: Tensor, encoder_out_lens: Tensor) -> Tensor:
        if self.encoder_layers is None:
            return encoder_out
        packed = pack_padded_sequence(encoder_out, encoder_out_lens.cpu(), batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(self.encoder_layers(packed)[0], batch_first=True, total_length=encoder_out.size(1))
        return out[0]
