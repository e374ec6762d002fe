"""The two-pass model: one shared encoder, an RNN-T and a LAS attention decoder on it. It knows nothing of training."""

from torch import nn

from twopass_kd.config.schema import ModelConfig
from twopass_kd.models.attention_decoder import AttentionDecoder
from twopass_kd.models.decoder import build_decoder
from twopass_kd.models.encoder import Encoder
from twopass_kd.models.joiner import Joiner

DEPLOYED_PARTS = ("encoder", "decoder", "joiner", "attention_decoder")


class TwoPassModel(nn.Module):
    """Parts: `encoder`, `decoder`, `joiner` (first pass), `attention_decoder` (second pass).

    `simple_am_proj`, `simple_lm_proj` (which choose k2's pruned band) and `ctc_head` serve training only.
    """

    def __init__(
        self, cfg: ModelConfig, num_features: int, vocab_size: int, blank_id: int = 0, unk_id: int = 2
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.blank_id = blank_id
        self.unk_id = unk_id  # a search never says it: to every search it is a blank
        self.encoder = Encoder(cfg.encoder, num_features)
        self.decoder = build_decoder(cfg.decoder, vocab_size, blank_id)
        self.joiner = Joiner(cfg.encoder.dim, cfg.decoder.dim, cfg.joiner_dim, vocab_size)
        self.attention_decoder = AttentionDecoder(cfg.attention_decoder, cfg.encoder.dim, vocab_size)
        self.simple_am_proj = nn.Linear(cfg.encoder.dim, vocab_size)
        self.simple_lm_proj = nn.Linear(cfg.decoder.dim, vocab_size)
        self.ctc_head = nn.Linear(cfg.encoder.dim, vocab_size)

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of each part, under the names that `phases.*.train` uses."""
        parts = {name: [getattr(self, name)] for name in DEPLOYED_PARTS}
        return {**parts, "simple_heads": [self.simple_am_proj, self.simple_lm_proj], "ctc_head": [self.ctc_head]}

    def deployed_parameters(self) -> dict[str, int]:
        """Number of parameters of each deployed part, and `total`."""
        counts = {name: sum(p.numel() for p in getattr(self, name).parameters()) for name in DEPLOYED_PARTS}
        return {**counts, "total": sum(counts.values())}

    def deployed_bytes(self) -> dict[str, int]:
        """Bytes of the parameters and buffers of each deployed part, and `total`."""
        sizes = {
            name: sum(t.numel() * t.element_size() for t in getattr(self, name).state_dict().values())
            for name in DEPLOYED_PARTS
        }
        return {**sizes, "total": sum(sizes.values())}
