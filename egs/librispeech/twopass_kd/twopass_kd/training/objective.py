"""The wiring of one phase: which loss terms a batch gives, from which models. Only this module knows all losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twopass_kd.config.schema import KdConfig, LossConfig
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.losses.attention_kd import attention_kd_loss
from twopass_kd.losses.band import prune_ranges, select_band
from twopass_kd.losses.ctc import ctc_loss
from twopass_kd.losses.precision import autocast
from twopass_kd.losses.rnnt_backend import use_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.losses.transducer_kd import transducer_kd_loss
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.training.frozen_encoder import FrozenEncoder
from twopass_kd.training.padded_rows import encode

EncoderOut = tuple[Tensor, Tensor]  # (B, T, C) and (B,) int64 lengths
TRANSDUCER_TERMS = ("simple", "pruned", "transducer_kd")
ATTENTION_TERMS = ("attention", "attention_kd")


@dataclass
class Losses:
    """What `Objective` returns.

    Attributes:
      terms: loss term -> (B,) float32, one value per utterance in nats, not scaled.
      total: (B,) float32, the scaled sum: what is minimised.
      num_frames: () int64, encoder frames in the batch, by which the trainer normalises.
    """

    terms: dict[str, Tensor]
    total: Tensor
    num_frames: Tensor


class Objective:
    """Computes the loss terms with non-zero scale, and nothing that only the others need.

    Args:
      model: the model that learns; parts without `requires_grad` run without building a graph.
      loss_scales: term (see `config.LOSS_TERMS`) -> scale.
      loss: settings of the task losses.
      kd: settings of the distillation losses.
      sos_id, eos_id: of the attention decoder.
      teacher: a frozen model in eval mode; needed by the `*_kd` terms.
    Raises:
      ValueError: where `loss.backend` cannot run on the device of `model`.
    """

    def __init__(
        self,
        model: TwoPassModel,
        loss_scales: dict[str, float],
        loss: LossConfig,
        kd: KdConfig,
        sos_id: int,
        eos_id: int,
        teacher: TwoPassModel | None = None,
    ) -> None:
        use_backend(loss.backend, next(model.parameters()).device)
        self.model = model
        self.scales = {term: scale for term, scale in loss_scales.items() if scale != 0}
        self.loss = loss
        self.delay_penalty = loss.delay_penalty  # the trainer has none until the scales are full
        self.kd = kd
        self.sos_id, self.eos_id = sos_id, eos_id
        distils = any(term.endswith("_kd") for term in self.scales)
        self.teacher = teacher if distils else None  # a phase may also just start from a copy of it
        encoder_learns = any(p.requires_grad for p in model.encoder.parameters())
        self.frozen_encoder = None if encoder_learns else FrozenEncoder(model.encoder)
        self.teacher_encoder = FrozenEncoder(teacher.encoder) if distils else None

    @contextmanager
    def _teaching(self, batch: Batch) -> Iterator[None]:
        """The teacher runs in inference mode, in its own precision where it has one."""
        precision = self.kd.teacher_precision
        with torch.inference_mode():
            if precision is None:
                yield
            else:
                with autocast(batch.feature.device, precision):
                    yield

    def __call__(self, batch: Batch) -> Losses:
        """All terms of one batch; see `Losses`."""
        if self.frozen_encoder is not None:
            encoder_out, encoder_out_lens = self.frozen_encoder(batch)
        else:
            encoder_out, encoder_out_lens = encode(self.model.encoder, batch.feature, batch.feature_lens)
        teacher_out: EncoderOut | None = None
        if self.teacher_encoder is not None:
            with self._teaching(batch):
                teacher_out = self.teacher_encoder(batch)

        terms: dict[str, Tensor] = {}
        if any(term in self.scales for term in TRANSDUCER_TERMS):
            terms.update(self._transducer(batch, encoder_out, encoder_out_lens, teacher_out))
        if "ctc" in self.scales:
            log_probs = self.model.ctc_head(encoder_out).log_softmax(-1)
            terms["ctc"] = ctc_loss(log_probs, encoder_out_lens, batch.y, batch.y_lens, self.model.blank_id)
        if any(term in self.scales for term in ATTENTION_TERMS):
            terms.update(self._attention(batch, encoder_out, encoder_out_lens, teacher_out))
        total = sum(self.scales[name] * value for name, value in terms.items())
        return Losses(terms, total, encoder_out_lens.sum())

    def _transducer(
        self, batch: Batch, encoder_out: Tensor, encoder_out_lens: Tensor, teacher_out: EncoderOut | None
    ) -> dict[str, Tensor]:
        model, symbols = self.model, batch.y
        boundary = make_boundary(encoder_out_lens, batch.y_lens)
        sos_y = F.pad(symbols, (1, 0), value=model.blank_id)
        decoder_out = model.decoder(sos_y)

        simple, arcs = simple_transducer_loss(
            model.simple_am_proj(encoder_out),
            model.simple_lm_proj(decoder_out),
            symbols,
            boundary,
            blank_id=model.blank_id,
            lm_only_scale=self.loss.lm_only_scale,
            am_only_scale=self.loss.am_only_scale,
            rnnt_type=self.loss.rnnt_type,
            delay_penalty=self.delay_penalty,
        )
        ranges = prune_ranges(*arcs, boundary, self.loss.prune_range)
        logits = self._band_logits(model, encoder_out, decoder_out, ranges)
        lattice = (symbols, ranges, boundary, model.blank_id, self.loss.rnnt_type)

        terms = {"simple": simple}
        if "pruned" in self.scales:
            terms["pruned"] = pruned_transducer_loss(logits, *lattice, delay_penalty=self.delay_penalty)
        if "transducer_kd" in self.scales:
            with self._teaching(batch):
                teacher_encoder_out = match_frames(*teacher_out, encoder_out.size(1), self.kd.frame_shift)
                teacher_decoder_out = self.teacher.decoder(sos_y)
                teacher_logits = self._band_logits(self.teacher, teacher_encoder_out, teacher_decoder_out, ranges)
            terms["transducer_kd"] = transducer_kd_loss(logits, teacher_logits, ranges, boundary, self.kd.temperature)
        return terms

    def _band_logits(self, model: TwoPassModel, encoder_out: Tensor, decoder_out: Tensor, ranges: Tensor) -> Tensor:
        am = model.joiner.encoder_proj(encoder_out).unsqueeze(2)  # (B, T, 1, C)
        lm = select_band(model.joiner.decoder_proj(decoder_out), ranges)  # (B, T, s_range, C)
        return model.joiner(am, lm, project_input=False)

    def _attention(
        self, batch: Batch, encoder_out: Tensor, encoder_out_lens: Tensor, teacher_out: EncoderOut | None
    ) -> dict[str, Tensor]:
        inputs, targets = make_attention_targets(batch.y, batch.y_lens, self.sos_id, self.eos_id)
        logits = self.model.attention_decoder(encoder_out, encoder_out_lens, inputs)
        terms = {}
        if "attention" in self.scales:
            terms["attention"] = attention_loss(logits, targets, self.loss.label_smoothing)
        if "attention_kd" in self.scales:
            with self._teaching(batch):
                teacher_logits = self.teacher.attention_decoder(*teacher_out, inputs)
            terms["attention_kd"] = attention_kd_loss(
                logits, teacher_logits, batch.y_lens + 1, self.kd.attention_temperature
            )
        return terms


def match_frames(teacher_out: Tensor, teacher_lens: Tensor, num_frames: int, frame_shift: int) -> Tensor:
    """The teacher's output on the student's frames: frame t of each utterance is the teacher's t - `frame_shift`.

    Where the teacher has no such frame, its first or last one. The teacher may have a frame more or less than the
    student, as subsamplings of one factor differ in how they end.

    Args:
      teacher_out: (B, T', C).
      teacher_lens: (B,) int64, frames of each utterance.
      num_frames: T, of the student's output.
      frame_shift: in frames after subsampling; above 0 delays the teacher.
    Returns:
      (B, T, C).
    Raises:
      ValueError: if T and T' differ by more than one frame.
    """
    if abs(num_frames - teacher_out.size(1)) > 1:
        raise ValueError(
            f"teacher ({teacher_out.size(1)} frames) must give as many frames as the student ({num_frames}), or one "
            "more or less; use a teacher with the student's frame rate"
        )
    frames = torch.arange(num_frames, device=teacher_out.device) - frame_shift
    index = torch.minimum(frames.clamp(min=0).unsqueeze(0), (teacher_lens - 1).clamp(min=0).unsqueeze(1))
    return teacher_out.gather(1, index.unsqueeze(2).expand(-1, -1, teacher_out.size(2)))
