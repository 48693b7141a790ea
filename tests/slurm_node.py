"""A Slurm cluster of one node, of Debian's packages slurm-wlm and munge, with GPUs that are counted and not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cluster import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
GPUS = 2
PATIENCE = 60.0

CONFIGURATION = """
ClusterName=idp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# cred_expire is how long a job that is queued again waits, 120 s by itself.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
KillWait=10
MinJobAge=600
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=lab Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Return why there can be no Slurm here, empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of one's own needs Linux and root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge (make slurm-test does)"
    return ""


class SlurmNode:
    """The daemons, all of whose files are in one folder, so that no Slurm of the machine is touched.

    Args:
        folder: A new folder with a short name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this process, with which this Slurm is found; a job gets them too."""
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        return {**os.environ, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until the node takes jobs."""
        self.folder.chmod(0o755)  # munge's socket is everybody's
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        fields = {
            "host": socket.gethostname().partition(".")[0],
            "ports": free_ports(2),
            "folder": self.folder,
            "cpus": os.cpu_count(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21,
            "gpus": GPUS,
        }
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**fields))
        for number in range(GPUS):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        at = {name: self.folder / f"munge.{name}" for name in ("socket", "key", "log", "pid", "seed")}
        words = [f"--{name}-file={path}" for name, path in at.items() if name != "socket"]
        self._start("munged", "--foreground", "--force", f"--socket={at['socket']}", *words)
        _wait(at["socket"].exists, "munge answers", self.folder)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", fields["host"])
        _wait(lambda: self.say("sinfo", "--noheader", "-o", "%T").split()[:1] == ["idle"], "a node", self.folder)

    def say(self, *command: str) -> str:
        """Run one of Slurm's programs and return what it prints; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout.strip() if done.returncode == 0 else ""

    def submit(self, *words: str | Path, folder: Path) -> str:
        """Submit a job and return its number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, words)],
            env=self.environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def state(self, job: str) -> str:
        """Return a job's state, such as PENDING, RUNNING, COMPLETED."""
        return self.say("squeue", "--noheader", "--states=all", "--jobs", job, "-o", "%T")

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self.say("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )


@contextlib.contextmanager
def slurm_node(folder: Path) -> Iterator[SlurmNode]:
    """A Slurm cluster until the end of the block."""
    node = SlurmNode(folder)
    try:
        node.start()
        yield node
    finally:
        node.stop()


def _wait(done, what: str, folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.out")))
            raise TimeoutError(f"no {what} after {PATIENCE:g} s:\n{logs}")
        time.sleep(0.1)
