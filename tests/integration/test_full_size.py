"""The LibriSpeech configurations with their full-size models on a CPU: a step of distillation, the estimate, and all
stages of run.sh on seconds of noise in LibriSpeech's folders."""

import importlib.util
import json
import random
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from run_sh import RECIPE, environment, ok
from small_corpus import write_musan, write_utterance
from twopass_kd.config.load import load_config
from twopass_kd.models.encoder import num_output_frames
from twopass_kd.training.distributed import Ranks
from twopass_kd.training.estimate import build_objective
from twopass_kd.training.optimizer_step import OptimizerStep
from twopass_kd.training.step_cost import random_utterances

pytestmark = pytest.mark.slow

CONFS = ("librispeech_100h", "librispeech_960h")
HAS_K2 = importlib.util.find_spec("k2") is not None


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
    step = OptimizerStep(model, objective, optimizer, cfg.train, ranks)
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


def write_librispeech(root: Path, conf: str) -> None:
    """`root/LibriSpeech` with all parts of a configuration, and `root/musan`: noise, and words for 500 BPE pieces."""
    corpus = load_config(RECIPE / "conf" / f"{conf}.yaml").corpus
    rng = random.Random(0)
    syllables = [consonant + vowel for consonant in "BDFGKLMNPRSTVWZ" for vowel in "AEIOU"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(96)]
    for number, part in enumerate([*corpus.train_parts, *corpus.dev_parts, *corpus.test_parts]):
        for i in range(6 // len(corpus.train_parts) if part in corpus.train_parts else 2):
            words = words[16:] + words[:16]  # six utterances have all of them
            name = f"{10 * number + i % 2}-{number}-{i:04d}"
            write_utterance(root / "LibriSpeech" / part, name, " ".join(words[:16]), seconds=1.6)
    write_musan(root / "musan")


# Each takes a minute or two of both cores. So the stack of k2 walks them, without the baseline, which is the student's
# size again; tests/integration/test_all_stages.py walks all phases, and the second stack, through all stages, in small.
@pytest.mark.skipif(not HAS_K2, reason="the other stack walks the full sizes")
@pytest.mark.parametrize("conf", ["librispeech_100h", "librispeech_960h"])
def test_all_stages(conf, tmp_path):
    """Gigabytes, which are gone at the end."""
    cfg = load_config(RECIPE / "conf" / f"{conf}.yaml")
    write_librispeech(tmp_path, conf)
    small = ["train.ref_duration=16", "train.num_workers=0", "decode.bootstrap_samples=100",
             "export.timed_utterances=1", "export.long_minutes=[0.05, 0.1]"]  # fmt: skip
    small += [f"phases.{phase}.{key}=1" for phase in cfg.phases for key in ("num_epochs", "average")]
    with tempfile.TemporaryDirectory(dir=tmp_path) as exp_dir:
        options = ["--corpus-dir", tmp_path / "LibriSpeech", "--data-dir", tmp_path / "data", "--exp-dir", exp_dir]
        said = ok("--conf", conf, "--baseline", "false", *options, *small, timeout=3000)
        experiment = Path(exp_dir) / conf
        phases = [phase for phase in cfg.phases if not phase.startswith("student_copy/")]
        for phase in phases:
            assert (experiment / phase / "final.pt").is_file()
            rows = [json.loads(line) for line in (experiment / phase / "metrics.jsonl").read_text().splitlines()]
            assert rows[-1]["split"] == "valid" and rows[-1]["step"] >= 2
        results = json.loads((experiment / "results.json").read_text())
        assert [stage["stage"] for stage in results["stages"]] == list(range(11))
        sizes = {system["name"]: system["params"]["total"] for system in results["systems"]}
        assert set(sizes) == {report for phase in phases if (report := cfg.phases[phase].report_as)}
        assert sizes["teacher"] > 80e6 and results["compression"]["params"] >= cfg.min_reduction
        for system in results["systems"]:
            assert set(system["wer"]) == {*cfg.corpus.dev_parts, *cfg.corpus.test_parts}
        for system in ("teacher", "student"):
            exported = json.loads((experiment / "export" / system / "export.json").read_text())
            assert all(check["same_greedy"] == check["utterances"] == 2 for check in exported["streaming"].values())
        assert len(results["on_device"]["rows"]) == 10
        for counts in results["on_device"]["agreement"]["student"]["fp32"].values():
            assert counts["same"] == counts["of"] == 4
        assert results["on_device"]["int8"]["student"]["size_ratio"] < 1 / 6
        for name in ("report.md", "report.html"):
            assert "sherpa-onnx" in (experiment / name).read_text()
        assert f"report:  {experiment}/report.html" in said
