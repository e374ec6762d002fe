"""A real Slurm of two nodes on the loopback address, in a folder of its own: munged, slurmctld, two slurmd."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
# Credentials that expire early: a requeued job waits until its old one has.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=30
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (tests/install_programs.sh installs them, as root)"
    return None if os.geteuid() == 0 else "slurmd must be started by root"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Use as a context; `environment` lets sbatch and the others find it.

    Args:
      folder: a new one, with a short path (munge's socket lies in it).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool-n0", "spool-n1"):
            (self.folder / name).mkdir()
        os.chmod(self.folder, 0o755)  # munge refuses folders that others may write to
        controller_port, *ports = _free_ports(3)
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 State=UNKNOWN"
            for i, port in enumerate(ports)
        ]
        conf = CONF.format(
            host=host, controller_port=controller_port, folder=self.folder, user="root", nodes="\n".join(nodes)
        )
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        try:
            self._start(
                "munged",
                "--foreground",
                f"--key-file={key}",
                *(f"--{what}-file={self.folder}/munged.{what}" for what in ("log", "pid", "seed")),
                f"--socket={self.folder}/munge.socket",
            )
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for name in ("n0", "n1"):
                self._start("slurmd", "-D", "-N", name)
            self._wait(lambda: self.call("sinfo", "-h", "-N", "-t", "idle", "-p", "main").count("\n") == 2, "slurmd")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()

    def call(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(list(map(str, command)), env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}-{len(self._processes)}.out", "w") as log:
            program = shutil.which(command[0], path=PATH)
            self._processes.append(
                subprocess.Popen([program, *command[1:]], env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def _wait(self, ready, who: str) -> None:
        end = time.monotonic() + 30
        while not ready():
            if time.monotonic() > end or any(p.poll() is not None for p in self._processes):
                logs = "".join(f"--- {p.name}\n{p.read_text()}" for p in sorted(self.folder.glob("*.out")))
                raise RuntimeError(f"{who} does not come up\n{logs}")
            time.sleep(0.1)
