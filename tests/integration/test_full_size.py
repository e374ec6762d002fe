"""The full-size models of the LibriSpeech configurations take real training steps, on short audio."""

import subprocess

import pytest
import torch
from torch.optim import AdamW

from run_sh import RECIPE, environment
from twopass_kd.config.load import load_config
from twopass_kd.models.encoder import num_output_frames
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.estimate import build_objective, random_utterances
from twopass_kd.training.optimizer_step import OptimizerStep

pytestmark = pytest.mark.slow

CONFS = ("librispeech_100h", "librispeech_960h")


@pytest.mark.parametrize("conf", CONFS)
def test_student_kd_takes_two_steps(conf):
    cfg = load_config(RECIPE / "conf" / f"{conf}.yaml", ["train.precision=float32"])
    torch.manual_seed(0)
    ranks = Ranks()
    ranks.device = torch.device("cpu")
    objective = build_objective(cfg, "student/rnnt_kd", ranks.device)
    model, teacher = objective.model.train(), objective.teacher
    sizes = [m.deployed_parameters()["total"] for m in (teacher, model)]
    assert sizes[0] > 80e6 and 0.55 < 1 - sizes[1] / sizes[0] < 0.6
    before = {name: p.clone() for name, p in model.named_parameters()}
    teacher_before = {name: p.clone() for name, p in teacher.named_parameters()}

    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    step = OptimizerStep(model, objective, optimizer, cfg.train.precision, 2.0, None, ranks)
    batch = random_utterances(cfg, 2, seconds=2.0)
    num_frames = int(num_output_frames(batch.feature_lens, model.encoder.subsampling_factor).sum())
    first, second = (step([batch], num_frames, n)[0] for n in range(2))

    assert set(first.terms) == {"simple", "pruned", "ctc", "transducer_kd"}
    for losses in (first, second):
        assert all(torch.isfinite(value).all() for value in losses.terms.values())
    assert second.total.sum() < first.total.sum()  # the same batch again
    learnt = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert learnt == {"encoder", "decoder", "joiner", "simple_am_proj", "simple_lm_proj", "ctc_head"}
    assert all(torch.equal(p, teacher_before[name]) and p.grad is None for name, p in teacher.named_parameters())


def test_estimate_of_the_largest_config():
    program = ["python3", "-m", "twopass_kd.bin.estimate", "--conf", "conf/librispeech_960h.yaml", "--world-size", "8"]
    command = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *program]
    done = subprocess.run(command, cwd=RECIPE, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    hours = float(done.stdout.split("Total: ")[1].split()[0].replace(",", ""))
    assert 10 < hours < 10_000
    assert all(f"\n{phase} " in done.stdout for phase in load_config(RECIPE / "conf/librispeech_960h.yaml").phases)
