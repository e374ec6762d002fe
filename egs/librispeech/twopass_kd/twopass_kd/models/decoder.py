"""RNN-T prediction networks. Their search state is a tuple of tensors with the batch in dimension 0."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twopass_kd.config.schema import DecoderConfig
from twopass_kd.models.encoder import set_forget_gate_bias

State = tuple[Tensor, ...]


class StatelessDecoder(nn.Module):
    """Embedding and a causal convolution over the last `context_size` tokens (Ghodsi et al. 2020).

    Attribute names (`embedding`, `conv`, `context_size`, `blank_id`) are icefall's.
    """

    def __init__(self, cfg: DecoderConfig, vocab_size: int, blank_id: int) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.context_size = cfg.context_size
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, cfg.dim)
        self.conv = nn.Conv1d(cfg.dim, cfg.dim, kernel_size=cfg.context_size, bias=False)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """y: (N, U) int64 tokens, blank first. Returns (N, U, dim), or (N, U - context_size + 1, dim) unpadded."""
        if need_pad:
            y = F.pad(y, (self.context_size - 1, 0), value=self.blank_id)
        out = self.conv(self.embedding(y).transpose(1, 2)).transpose(1, 2)
        return self.dropout(F.relu(out))

    def context_tables(self) -> Tensor:
        """What each token adds to the convolution at each place of a context, (context_size, V, dim)."""
        return self.embedding.weight @ self.conv.weight.permute(2, 1, 0)

    def of_contexts(self, contexts: Tensor, tables: Tensor) -> Tensor:
        """The output after contexts (N, context_size) int64, (N, dim), without dropout. tables: `context_tables()`."""
        return F.relu(sum(table[tokens] for table, tokens in zip(tables, contexts.t())))

    def init_state(self, batch_size: int) -> State:
        """State before the first token: `context_size - 1` blanks, (N, context_size - 1) int64."""
        device = self.embedding.weight.device
        return (torch.full((batch_size, self.context_size - 1), self.blank_id, dtype=torch.int64, device=device),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token (N,) int64 for each hypothesis: (N, dim) and the new state."""
        context = torch.cat([state[0], tokens.unsqueeze(1)], dim=1)
        return self.forward(context, need_pad=False).squeeze(1), (context[:, 1:],)


class LstmDecoder(nn.Module):
    """Embedding and LSTM over all tokens so far, as in the paper."""

    context_size = 1  # blanks before the first token

    def __init__(self, cfg: DecoderConfig, vocab_size: int, blank_id: int) -> None:
        super().__init__()
        self.dim = cfg.dim
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, cfg.dim)
        self.lstm = nn.LSTM(cfg.dim, cfg.dim, cfg.num_layers, batch_first=True)
        self.dropout = nn.Dropout(cfg.dropout)
        set_forget_gate_bias(self.lstm)

    def forward(self, y: Tensor) -> Tensor:
        """y: (N, U) int64 tokens, blank first. Returns (N, U, dim)."""
        return self.dropout(self.lstm(self.embedding(y))[0])

    def init_state(self, batch_size: int) -> State:
        """Zero hidden and cell, each (N, num_layers, dim)."""
        zeros = self.embedding.weight.new_zeros(batch_size, self.lstm.num_layers, self.dim)
        return zeros, zeros.clone()

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token (N,) int64 for each hypothesis: (N, dim) and the new state."""
        hidden, cell = (s.transpose(0, 1).contiguous() for s in state)
        out, (hidden, cell) = self.lstm(self.embedding(tokens).unsqueeze(1), (hidden, cell))
        return self.dropout(out.squeeze(1)), (hidden.transpose(0, 1), cell.transpose(0, 1))


def build_decoder(cfg: DecoderConfig, vocab_size: int, blank_id: int) -> nn.Module:
    """The prediction network that `cfg.kind` names (checked by the config)."""
    return {"stateless": StatelessDecoder, "lstm": LstmDecoder}[cfg.kind](cfg, vocab_size, blank_id)
