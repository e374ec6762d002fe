"""A checkpoint on PyTorch, as the streaming recogniser sees it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from twopass_kd.config.load import config_from_dict
from twopass_kd.files.decode_json import CheckpointDecoding, Decoding
from twopass_kd.files.json_model import read_json
from twopass_kd.losses.attention import attention_loss
from twopass_kd.models.checkpoint import load_model
from twopass_kd.models.decoder import StatelessDecoder
from twopass_kd.models.encoder import Conv2dSubsampling, Encoder
from twopass_kd.ondevice.runtime import ModelError, ModelInfo, States, attention_inputs


def chunk_sizes(encoder: Encoder, chunk_size: int) -> tuple[int, int]:
    """Feature frames that a call of the encoder reads for `chunk_size` outputs, and by which the next call moves on."""
    shift = encoder.subsampling_factor * chunk_size
    return Conv2dSubsampling.receptive_field - encoder.subsampling_factor + shift, shift


class TorchRuntime:
    """A `Runtime` (ondevice/runtime.py) on a checkpoint of the trainer.

    Args:
      checkpoint: e.g. `exp/mini/student/deep/final.pt`. How to search and rescore comes from the decode.json that
        stage 8 left for it; without one from its config and a weight of 0.5, which is logged.
      num_threads: of torch, for the whole process.
      chunk_size: encoder frames for each call; None: `export.chunk_size` of the config it was trained with.
    Raises:
      ModelError: if the model cannot stream (`decoder.kind` lstm) or is no finished one of ours.
      CheckpointError: if the file is no checkpoint.
    """

    def __init__(self, checkpoint: Path, num_threads: int = 1, chunk_size: int | None = None) -> None:
        self._model, content = load_model(checkpoint)
        if not isinstance(self._model.decoder, StatelessDecoder):
            raise ModelError(f"{checkpoint} must have a stateless decoder to stream; train with decoder.kind=stateless")
        if "tokens" not in content:
            raise ModelError(f"{checkpoint} has no tokens, since an older version trained it; train it again")
        torch.set_num_threads(num_threads)
        cfg = config_from_dict(content["config"])
        chunk_frames, chunk_shift = chunk_sizes(self._model.encoder, chunk_size or cfg.export.chunk_size)
        second_pass = "attention_decoder" in content["trained_parts"]
        default = Decoding(beam=cfg.decode.beam, nbest=cfg.decode.nbest, rescore_weight=0.5, length_reward=0.0)
        found = _find_decoding(Path(checkpoint), content["identity"]) or default
        self.info = ModelInfo(
            num_features=cfg.features.num_mel_bins,
            sampling_rate=cfg.features.sampling_rate,
            subsampling_factor=self._model.encoder.subsampling_factor,
            chunk_frames=chunk_frames,
            chunk_shift=chunk_shift,
            context_size=self._model.decoder.context_size,
            vocab_size=self._model.vocab_size,
            tokens=tuple(content["tokens"]),
            second_pass=second_pass,
            rescore_weight=found.rescore_weight if second_pass else 0.0,
            length_reward=found.length_reward if second_pass else 0.0,
            beam=found.beam,
            nbest=found.nbest,
        )

    def init_states(self, batch: int) -> States:
        hidden, cell = self._model.encoder.init_states(batch)
        return hidden.numpy(), cell.numpy()

    @torch.no_grad()
    def encode(self, x: np.ndarray, states: States) -> tuple[np.ndarray, np.ndarray, States]:
        lens = torch.full((len(x),), x.shape[1])
        state = tuple(torch.from_numpy(np.ascontiguousarray(s)) for s in states)
        memory, _, (hidden, cell) = self._model.encoder(torch.from_numpy(x), lens, state)
        encoder_out = self._model.joiner.encoder_proj(memory)
        return encoder_out.numpy(), memory.numpy(), (hidden.numpy(), cell.numpy())

    @torch.no_grad()
    def decode(self, context: np.ndarray) -> np.ndarray:
        out = self._model.decoder(torch.from_numpy(context), need_pad=False).squeeze(1)
        return self._model.joiner.decoder_proj(out).numpy()

    @torch.no_grad()
    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        pair = torch.from_numpy(encoder_out), torch.from_numpy(decoder_out)
        return self._model.joiner(*pair, project_input=False).numpy()

    @torch.no_grad()
    def attention_log_probs(self, memory: np.ndarray, hyps: Sequence[Sequence[int]]) -> np.ndarray:
        inputs, targets = (torch.from_numpy(a) for a in attention_inputs(hyps))
        lens = torch.tensor([len(memory)])
        logits = self._model.attention_decoder(torch.from_numpy(memory)[None], lens, inputs[None])
        return -attention_loss(logits[0], targets).numpy()


def _find_decoding(checkpoint: Path, identity: str) -> Decoding | None:
    """How stage 8 decoded this very checkpoint; None, which is logged, where it did not."""
    # exp/<conf>/<system>/<phase>/final.pt; a checkpoint that was copied elsewhere has no experiment around it.
    experiment = (checkpoint.resolve().parents[2:3] or [checkpoint.parent])[0]
    for path in sorted(experiment.glob("decode/*/decode.json")):
        decoded = read_json(path, CheckpointDecoding, "decode again (stage 8)", ModelError)
        if decoded.identity == identity:
            return decoded
    logging.warning(
        "no decode.json for %s (stage 8 makes it): the second pass gets weight 0.5, not one chosen on dev", checkpoint
    )
    return None
