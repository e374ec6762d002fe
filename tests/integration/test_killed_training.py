"""Trainings that are killed, stopped, or run out of disk go on and end bit for bit as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from run_sh import RECIPE, TINY, environment
from twopass_kd.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

KILLS = 10
EPOCHS = 12
PHASE = "teacher/rnnt"
SETTINGS = [f"phases.{PHASE}.num_epochs={EPOCHS}", "train.max_duration=8", "train.save_every_n=2", "seed=3"]


@pytest.fixture(scope="module")
def data_dir(tiny_data):
    return tiny_data.data_dir


class Run:
    """A training command in an experiment folder of its own."""

    def __init__(self, data_dir, exp_dir, world_size=1, num_workers=0):
        self.folder = exp_dir / "tiny" / PHASE
        train = ["python3", "-m", "twopass_kd.bin.train", "--conf", TINY, "--phase", PHASE, "--data-dir", data_dir,
                 "--exp-dir", exp_dir, "--world-size", world_size, *SETTINGS,
                 f"train.num_workers={num_workers}"]  # fmt: skip
        self.command = ["bash", "-c", '. ./path.sh && exec "$@"', "-", *map(str, train)]

    def start(self):
        env = {**environment(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command, cwd=RECIPE, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def finish(self):
        process = self.start()
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        return output

    def start_and_wait_for_steps(self):
        """A process that has gone some steps beyond where the last one ended."""
        before = self.newest()
        process = self.start()
        end = time.monotonic() + 120
        while self.newest() == before:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(process.communicate(timeout=5)[0])
            time.sleep(0.02)
        return process

    def wait_until_it_writes(self):
        end = time.monotonic() + 5
        while not any(name.endswith(".pt.tmp") for name in os.listdir(self.folder)) and time.monotonic() < end:
            pass

    def newest(self):
        """The step number of the newest checkpoint."""
        names = [p.stem.split("-")[1] for p in self.folder.glob("checkpoint-*.pt")]
        return max(map(int, names), default=0)

    def digest(self):
        return load_checkpoint(self.folder / "final.pt")["weights_digest"]

    def valid_epochs(self):
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [m["epoch"] for m in map(json.loads, lines) if m["split"] == "valid"]


@pytest.fixture(scope="module", params=[(1, 0), (2, 2)], ids=["1 rank", "2 ranks, 2 workers each"])
def whole(request, data_dir, tmp_path_factory):
    """Ranks, workers, and the digest that an undisturbed run ends with."""
    world_size, num_workers = request.param
    run = Run(data_dir, tmp_path_factory.mktemp("whole"), world_size, num_workers)
    run.finish()
    return world_size, num_workers, run.digest()


def test_killed_at_random_moments_ends_bit_for_bit_the_same(whole, data_dir, tmp_path):
    """SIGKILL to all processes at once: some steps after a checkpoint, and every third time while one is written."""
    world_size, num_workers, digest = whole
    run = Run(data_dir, tmp_path, world_size, num_workers)
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    kills = 0
    while kills < KILLS and not (run.folder / "final.pt").exists():
        process = run.start_and_wait_for_steps()
        if kills % 3 == 0:
            run.wait_until_it_writes()
        else:
            time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
        kills += 1
    assert kills == KILLS, "the training is too short to be killed so often"
    run.finish()
    assert run.digest() == digest, f"killed at moments of seed {seed}"
    assert run.valid_epochs() == list(range(1, EPOCHS + 1))
    assert not list(run.folder.glob("*.tmp")) and not list(run.folder.glob("checkpoint-*"))


def test_stopped_by_sigterm_saves_and_goes_on(whole, data_dir, tmp_path):
    world_size, num_workers, digest = whole
    run = Run(data_dir, tmp_path, world_size, num_workers)
    process = run.start_and_wait_for_steps()
    os.killpg(process.pid, signal.SIGTERM)  # to launcher, ranks and workers, as Slurm does
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "state saved at step" in output, output
    assert f"resuming from {run.folder}/checkpoint-" in run.finish()
    assert run.digest() == digest


def test_a_rank_that_dies_ends_the_job_and_is_named(data_dir, tmp_path):
    run = Run(data_dir, tmp_path, world_size=2)
    process = run.start_and_wait_for_steps()
    processes = psutil.Process(process.pid).children(recursive=True)
    (rank_1,) = (p for p in processes if p.environ().get("RANK") == "1")
    killed_at = time.monotonic()
    rank_1.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and time.monotonic() - killed_at < 60
    assert "rank 1 was killed by SIGKILL" in output and f"{run.folder}/train-rank1.log" in output
    assert (run.folder / "train-rank1.log").is_file()
    assert len(processes) >= 2 and not any(p.is_running() for p in processes)


def test_stopped_with_three_ranks_ends_bit_for_bit_the_same(data_dir, tmp_path):
    """Three numbers can be added in several orders; DistributedDataParallel changes its own after its first step."""
    runs = [Run(data_dir, tmp_path / name, world_size=3) for name in ("whole", "stopped")]
    runs[0].finish()
    process = runs[1].start_and_wait_for_steps()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    runs[1].finish()
    assert runs[0].digest() == runs[1].digest()


def test_a_run_goes_on_with_smaller_batches_and_fewer_ranks(data_dir, tmp_path):
    """As after running out of memory."""
    run = Run(data_dir, tmp_path, world_size=2)
    process = run.start_and_wait_for_steps()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    smaller = Run(data_dir, tmp_path)
    smaller.command += ["train.max_duration=4", "train.accum_grad=2"]
    output = smaller.finish()
    assert "resuming from" in output and "2 ranks with batches of 8 s before, now 1 with 4 s" in output
    assert run.valid_epochs() == list(range(1, EPOCHS + 1))
    again = smaller.start()
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "is trained already" in output
    run.command += ["train.max_duration=7"]  # a finished phase is one of other settings
    assert "moved to" in run.finish()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk must be mounted, which takes root")
def test_full_disk_keeps_the_last_checkpoint_and_goes_on_when_there_is_room(whole, data_dir, tmp_path):
    world_size, num_workers, digest = whole
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        run = Run(data_dir, disk, world_size, num_workers)
        process = run.start_and_wait_for_steps()
        with open(disk / "other", "wb") as f:  # somebody else fills the disk
            try:
                while True:
                    f.write(bytes(1 << 16))
                    f.flush()
            except OSError:
                pass
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and "No space left on device" in output and "disk" in output, output
        assert load_checkpoint(run.folder / f"checkpoint-{run.newest()}.pt")["step"] == run.newest()
        (disk / "other").unlink()
        run.finish()
        assert run.digest() == digest
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
