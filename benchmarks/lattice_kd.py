"""What distillation over the lattice costs: on the pruned band, on the full lattice, and as part of a training step.

    python benchmarks/lattice_kd.py

1. Heads only: from projected encoder and decoder outputs of student and teacher to the gradients of the student's,
   through both joiners, the transducer loss and the KD loss. The band's time includes the simple loss that chooses it;
   the full lattice needs none. `plain` rows compute the KD term with torch's own functions, to show what the
   closed-form gradient saves.
2. A training step of the models of a config: with KD, without, and the teacher's forward pass alone.

Times are medians over rounds in which the variants take turns. Memory is measured in a process for each variant: the
peak of the resident set during one step, minus its size before it (Linux: VmHWM, reset through /proc/self/clear_refs).
"""

import argparse
import os
import platform
from collections.abc import Callable

import torch
from common import Step, in_new_process, make_parser, median_seconds, peak_extra_bytes, read_config, training_step
from torch import Tensor
from torch.nn import functional as F

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.losses.band import prune_ranges, select_band, valid_nodes
from twopass_kd.losses.rnnt_backend import use_backend
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.losses.transducer_kd import transducer_kd_loss
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.training.objective import Objective
from twopass_kd.training.step_cost import random_utterances

TARGETS = {"time": 1 / 5, "memory": 1 / 4, "step": 1.15}


class Heads:
    """Random projected encoder and decoder outputs, joiner weights, and the steps that are compared on them."""

    def __init__(self, args: argparse.Namespace, rnnt_type: str) -> None:
        torch.manual_seed(args.seed)
        B, T, S, V, J = args.batch_size, args.num_frames, args.num_positions - 1, args.vocab_size, args.joiner_dim
        self.prune_range, self.rnnt_type = args.prune_range, rnnt_type
        self.symbols = torch.randint(1, V, (B, S))
        self.boundary = make_boundary(torch.full((B,), T), torch.full((B,), S))
        self.whole = torch.arange(S + 1).expand(B, T, -1).contiguous()
        self.student = [torch.randn(B, T, J, requires_grad=True), torch.randn(B, S + 1, J, requires_grad=True)]
        self.simple = [torch.randn(B, T, V, requires_grad=True), torch.randn(B, S + 1, V, requires_grad=True)]
        self.teacher = [torch.randn(B, T, J), torch.randn(B, S + 1, J)]
        self.output_linear = torch.nn.Linear(J, V)
        self.teacher_output_linear = torch.nn.Linear(J, V).requires_grad_(False)

    def variants(self) -> dict[str, Step]:
        """Name -> one forward and backward pass."""
        return {
            "band": lambda: self.band(self._kd),
            "band, plain": lambda: self.band(self._plain_kd),
            "full lattice": lambda: self.full(self._kd),
            "full lattice, plain": lambda: self.full(self._plain_kd),
        }

    def band(self, kd: Callable[..., Tensor]) -> None:
        simple, arcs = simple_transducer_loss(*self.simple, self.symbols, self.boundary, rnnt_type=self.rnnt_type)
        ranges = prune_ranges(*arcs, self.boundary, self.prune_range)
        with torch.no_grad():
            am, lm = self.teacher
            teacher = self.teacher_output_linear(torch.tanh(am.unsqueeze(2) + select_band(lm, ranges)))
        am, lm = self.student
        self._finish(simple, am.unsqueeze(2) + select_band(lm, ranges), teacher, ranges, kd)

    def full(self, kd: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            am, lm = self.teacher
            teacher = self.teacher_output_linear(torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)))
        am, lm = self.student
        self._finish(torch.zeros(1), am.unsqueeze(2) + lm.unsqueeze(1), teacher, self.whole, kd)

    def _finish(self, simple: Tensor, summed: Tensor, teacher: Tensor, ranges: Tensor, kd: Callable) -> None:
        logits = self.output_linear(torch.tanh(summed))
        loss = pruned_transducer_loss(logits, self.symbols, ranges, self.boundary, rnnt_type=self.rnnt_type)
        (loss.sum() + simple.sum() + kd(logits, teacher, ranges).sum()).backward()

    def _kd(self, student: Tensor, teacher: Tensor, ranges: Tensor) -> Tensor:
        return transducer_kd_loss(student, teacher, ranges, self.boundary)

    def _plain_kd(self, student: Tensor, teacher: Tensor, ranges: Tensor) -> Tensor:
        """The loss in a few lines of torch."""
        kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        valid = valid_nodes(ranges, self.boundary)
        arcs = self.boundary[:, 2] + self.boundary[:, 3]
        return (kl * valid).sum((1, 2)) / valid.sum((1, 2)) * arcs


class TrainingStep:
    """Teacher and student of a config on a random batch, and what a training step of them consists of."""

    def __init__(self, args: argparse.Namespace, cfg: Config) -> None:
        torch.manual_seed(args.seed)
        V, bins = cfg.tokens.vocab_size, cfg.features.num_mel_bins
        seconds = cfg.train.ref_duration / args.utterances
        self.batch = random_utterances(cfg, args.utterances, seconds)
        S = self.batch.y.shape[1]
        self.description = f"{cfg.name}: {args.utterances} x {seconds:.1f} s, {S} tokens each, V={V}"
        self.teacher = TwoPassModel(cfg.models["teacher"], bins, V).eval().requires_grad_(False)
        self.student = TwoPassModel(cfg.models["student"], bins, V).requires_grad_(True)
        scales = {"simple": 0.5, "pruned": 1.0, "ctc": 0.5}
        options = {"loss": cfg.loss, "kd": cfg.kd, "sos_id": 1, "eos_id": 1, "teacher": self.teacher}
        plain = Objective(self.student, scales, **options)
        with_kd = Objective(self.student, {**scales, "transducer_kd": 1.0}, **options)
        self.plain, self.with_kd = (training_step(self.student, o, self.batch) for o in (plain, with_kd))
        # The teacher's forward pass works on a band of the same size as the student's.
        num_frames = self.teacher.encoder(self.batch.feature[:1], self.batch.feature_lens[:1])[0].shape[1]
        first = torch.linspace(0, S + 1 - cfg.loss.prune_range, num_frames).long()
        ranges = first.unsqueeze(-1) + torch.arange(cfg.loss.prune_range)
        self.ranges = ranges.expand(args.utterances, -1, -1).contiguous()

    def variants(self) -> dict[str, Step]:
        """Name -> one step."""
        return {
            "student step with KD": self.with_kd,
            "student step": self.plain,
            "teacher forward": self._teacher_forward,
        }

    @torch.no_grad()
    def _teacher_forward(self) -> None:
        encoder_out = self.teacher.encoder(self.batch.feature, self.batch.feature_lens)[0]
        decoder_out = self.teacher.decoder(F.pad(self.batch.y, (1, 0)))
        joiner = self.teacher.joiner
        am = joiner.encoder_proj(encoder_out).unsqueeze(2)
        joiner(am, select_band(joiner.decoder_proj(decoder_out), self.ranges), project_input=False)


def memory_of(name: str, args: argparse.Namespace, rnnt_type: str) -> int:
    """`peak_extra_bytes` of one of the heads' variants, after a smaller step that is not counted."""
    torch.set_num_threads(args.threads)
    warm_up = argparse.Namespace(**{**vars(args), "batch_size": 1, "num_frames": args.num_positions + 10})
    Heads(warm_up, rnnt_type).variants()[name]()
    return peak_extra_bytes(Heads(args, rnnt_type).variants()[name])


def ratio_line(what: str, value: float, target: float) -> str:
    return f"| {what} | {value:.3f} | at most {target:.3f} | {'met' if value <= target else 'MISSED'} |"


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.add_argument("--batch-size", type=int, default=8, help="heads: utterances B")
    p.add_argument("--num-frames", type=int, default=300, help="heads: frames T")
    p.add_argument("--num-positions", type=int, default=60, help="heads: decoder positions U")
    p.add_argument("--vocab-size", type=int, default=500, help="heads: tokens V")
    p.add_argument("--joiner-dim", type=int, default=512, help="heads: joiner size J")
    p.add_argument("--prune-range", type=int, default=5, help="heads: positions per frame")
    p.add_argument("--repeats", type=int, default=3, help="heads: timed rounds")
    p.add_argument("--utterances", type=int, default=16, help="training step: that ref_duration is shared out to")
    p.add_argument("--step-repeats", type=int, default=15, help="training step: timed rounds")
    p.add_argument("--threads", type=int, default=1, help="torch threads")
    p.add_argument("--seed", type=int, default=42, help="of the random inputs")
    return p


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = get_parser().parse_args()
    torch.set_num_threads(args.threads)
    cfg = read_config(args.conf)
    env, backend = describe_environment(), use_backend(cfg.loss.backend)
    print(
        f"torch {env['torch']}, {backend} {env[backend]}, Python {platform.python_version()}, {env['cpu']}, "
        f"{env['cores']} cores, {args.threads} thread(s)\n"
    )
    heads = Heads(args, cfg.loss.rnnt_type)
    seconds = median_seconds(heads.variants(), args.repeats)
    memory = {name: in_new_process(memory_of, name, args, cfg.loss.rnnt_type) for name in heads.variants()}
    print(
        f"Heads: B={args.batch_size} T={args.num_frames} U={args.num_positions} V={args.vocab_size} "
        f"J={args.joiner_dim} s_range={args.prune_range} rnnt_type={heads.rnnt_type}, float32\n"
    )
    print("| KD step | seconds | peak extra memory, MB |\n|---|---|---|")
    for name in seconds:
        print(f"| {name} | {seconds[name]:.3f} | {memory[name] / 1e6:.0f} |")
    del heads

    training = TrainingStep(args, cfg)
    steps = median_seconds(training.variants(), args.step_repeats)
    print(f"\nTraining step of {training.description}\n\n| | seconds |\n|---|---|")
    for name, value in steps.items():
        print(f"| {name} | {value:.4f} |")

    print("\n| ratio | value | target | |\n|---|---|---|---|")
    full = "full lattice"
    what = "time, band with its simple loss / full lattice, which needs no simple loss"
    print(ratio_line(what, seconds["band"] / seconds[full], TARGETS["time"]))
    print(ratio_line("memory, band / full lattice", memory["band"] / memory[full], TARGETS["memory"]))
    step = steps["student step with KD"] / (steps["student step"] + steps["teacher forward"])
    print(ratio_line("KD step / (student step + teacher forward)", step, TARGETS["step"]))


if __name__ == "__main__":
    main()
