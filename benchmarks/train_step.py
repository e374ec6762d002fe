"""Frames per second of a training step, and where its time goes.

    python benchmarks/train_step.py [--conf egs/librispeech/twopass_kd/conf/mini.yaml] [--data-dir DIR]

One batch of random features of the configuration's size (`train.ref_duration` seconds, utterances of `--seconds`) goes
through whole training steps of a teacher phase, of a KD phase and of the second pass; then each part runs alone,
forward and backward, on the same batch, so the parts need not sum exactly to the whole. With `--data-dir` the time to
load a real batch (features from disk, tokens) is measured as well.
"""

import time
from pathlib import Path

import torch
from common import Step, make_parser, median_seconds, read_config, training_step
from torch.nn import functional as F
from torch.optim import AdamW

from twopass_kd.config.environment import describe_environment
from twopass_kd.config.schema import Config
from twopass_kd.data.asr_datamodule import AsrDataModule
from twopass_kd.data.asr_dataset import Batch
from twopass_kd.data.tokenizer import open_tokenizer
from twopass_kd.losses.attention import attention_loss, make_attention_targets
from twopass_kd.losses.band import prune_ranges, select_band
from twopass_kd.losses.ctc import ctc_loss
from twopass_kd.losses.transducer import make_boundary, pruned_transducer_loss, simple_transducer_loss
from twopass_kd.losses.transducer_kd import transducer_kd_loss
from twopass_kd.models.checkpoint import build_model
from twopass_kd.models.two_pass import TwoPassModel
from twopass_kd.training.objective import Objective
from twopass_kd.training.step_cost import random_utterances
from twopass_kd.training.trainer import freeze_all_but


def parts(cfg: Config, model: TwoPassModel, teacher: TwoPassModel, batch: Batch) -> dict[str, Step]:
    """Each part of a KD step alone: name -> a function that runs it once."""
    encoder_out, lens, _ = model.encoder(batch.feature, batch.feature_lens)
    encoder_out = encoder_out.detach()
    boundary = make_boundary(lens, batch.y_lens)
    sos_y = F.pad(batch.y, (1, 0))
    decoder_out = model.decoder(sos_y).detach()

    def simple():
        am, lm = model.simple_am_proj(encoder_out), model.simple_lm_proj(decoder_out)
        return simple_transducer_loss(am, lm, batch.y, boundary, rnnt_type=cfg.loss.rnnt_type)

    ranges = prune_ranges(*simple()[1], boundary, cfg.loss.prune_range)

    def band_logits(of: TwoPassModel, am: torch.Tensor, lm: torch.Tensor) -> torch.Tensor:
        am = of.joiner.encoder_proj(am).unsqueeze(2)
        return of.joiner(am, select_band(of.joiner.decoder_proj(lm), ranges), project_input=False)

    logits = band_logits(model, encoder_out, decoder_out).detach()
    teacher_logits = torch.randn_like(logits)
    optimizer = AdamW(model.parameters(), lr=1e-5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    inputs, targets = make_attention_targets(batch.y, batch.y_lens, 1, 1)

    def pruned() -> None:
        x = logits.clone().requires_grad_()
        pruned_transducer_loss(x, batch.y, ranges, boundary, rnnt_type=cfg.loss.rnnt_type).sum().backward()

    def kd() -> None:
        x = logits.clone().requires_grad_()
        transducer_kd_loss(x, teacher_logits, ranges, boundary).sum().backward()

    def ctc() -> None:
        ctc_loss(model.ctc_head(encoder_out).log_softmax(-1), lens, batch.y, batch.y_lens).sum().backward()

    def attention() -> None:
        attention_loss(model.attention_decoder(encoder_out, lens, inputs), targets).sum().backward()

    def teacher_forward() -> None:
        with torch.inference_mode():
            teacher.encoder(batch.feature, batch.feature_lens)

    return {
        "encoder": lambda: model.encoder(batch.feature, batch.feature_lens)[0].sum().backward(),
        "decoder": lambda: model.decoder(sos_y).sum().backward(),
        "joiner on the band": lambda: band_logits(model, encoder_out, decoder_out).sum().backward(),
        "simple loss": lambda: simple()[0].sum().backward(),
        "pruned loss": pruned,
        "ctc": ctc,
        "transducer KD": kd,
        "teacher's encoder": teacher_forward,
        "attention decoder and loss": attention,
        "optimizer": optimizer.step,
    }


def data_seconds(cfg: Config, data_dir: Path, batches: int = 30) -> float:
    tokenizer = open_tokenizer(cfg, data_dir)
    data = AsrDataModule(cfg, data_dir, tokenizer, cfg.models["student"].encoder.subsampling_factor)
    data.measure_train()
    loader = iter(data.train_loader(epoch=1))
    next(loader)  # fills the sampler's buffer
    begin = time.perf_counter()
    count = sum(1 for _, _ in zip(range(batches), loader))
    return (time.perf_counter() - begin) / max(1, count)


def main(argv: list | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, help="measure loading from here too")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of an utterance")
    parser.add_argument("--repeats", type=int, default=15, help="rounds")
    parser.add_argument("--steps-only", action="store_true", help="leave the parts out")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    cfg = read_config(args.conf, args.overrides)
    torch.manual_seed(0)
    batch = random_utterances(cfg, max(1, int(cfg.train.ref_duration / args.seconds)), args.seconds)
    frames = int(batch.feature_lens.sum())
    models = {which: build_model(cfg, which, cfg.tokens.vocab_size) for which in ("teacher", "student")}
    scales = {"simple": 0.5, "pruned": 1.0, "ctc": 0.5}

    print(f"{describe_environment()}, threads {torch.get_num_threads()}")
    print(f"{cfg.name}: batch of {len(batch.cuts)} x {args.seconds} s = {frames} feature frames\n")
    print(f"{'training step':36s} {'ms':>8s} {'frames/s':>10s}")
    settings = (cfg.loss, cfg.kd, 1, 1)
    frozen = build_model(cfg, "teacher", cfg.tokens.vocab_size).eval().requires_grad_(False)
    second_pass = build_model(cfg, "student", cfg.tokens.vocab_size)
    freeze_all_but(second_pass, second_pass.parts(), ["attention_decoder"])
    variants = {
        "teacher, RNN-T": (models["teacher"], scales, None),
        "student, RNN-T": (models["student"], scales, None),
        "student, RNN-T + KD": (models["student"], {**scales, "transducer_kd": 1.0}, frozen),
        "student, LAS + KD": (second_pass, {"attention": 1.0, "attention_kd": 1.0}, frozen),
    }
    steps = {}
    for name, (model, terms, teacher) in variants.items():
        objective = Objective(model, terms, *settings, teacher=teacher)
        steps[name] = training_step(model, objective, batch)
    for name, seconds in median_seconds(steps, args.repeats).items():
        print(f"{name:36s} {1000 * seconds:8.1f} {frames / seconds:10.0f}")

    if args.steps_only:
        return
    table = parts(cfg, models["student"], frozen, batch)
    times = median_seconds(table, args.repeats)
    if args.data_dir is not None:
        times["data (one real batch)"] = data_seconds(cfg, args.data_dir)
    total = sum(times.values())
    print(f"\n{'part of a student step, alone':36s} {'ms':>8s} {'share':>10s}")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"{name:36s} {1000 * seconds:8.1f} {seconds / total:10.1%}")


if __name__ == "__main__":
    main()
