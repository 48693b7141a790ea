"""`idp` and Python as a user has them, in processes of their own, without reading the libraries anew for each.

Run as a program this serves: it reads the libraries once and forks a process for each command. `Forkserver` asks it.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import partialmethod
from pathlib import Path

LIBRARIES = (
    "matplotlib.pyplot", "mlflow", "numba", "pyarrow.parquet", "ray.tune", "sqlalchemy", "torch._dynamo",
    "datagen.expert.grid", "orchestrator.campaign.run", "orchestrator.cli.main", "orchestrator.cluster.jobs",
    "orchestrator.cluster.trials", "orchestrator.report.page", "orchestrator.tracking.tracker",
    "orchestrator.trial.train", "planners.compiled.conv_gru.autograd", "planners.conformance.cores",
)  # fmt: skip
UNSET = ("PYTHONPATH", "PYTHONWARNINGS")
"""What the tests' own process has and a user's has not."""


class Child:
    """What was started, as `subprocess.Popen` has it.

    Args:
        asking: Where the server says its number, then how it ended.
    """

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking
        self.pid = int(self._line(None))
        self.returncode: int | None = None

    def _line(self, timeout: float | None) -> bytes:
        self._asking.settimeout(timeout)
        said = b""
        while not said.endswith(b"\n"):
            part = self._asking.recv(1)
            assert part, "the forkserver has ended"
            said += part
        return said

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended, once it has."""
        if self.returncode is None:
            try:
                self.returncode = int(self._line(timeout))
            except TimeoutError:
                raise subprocess.TimeoutExpired("idp", timeout or 0.0) from None
            self._asking.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return how it ended, None where it has not."""
        if self.returncode is None and select.select([self._asking], [], [], 0.0)[0]:
            self.wait()
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)


class Forkserver:
    """Runs commands, several at once if need be.

    Args:
        folder: Where its socket is; a short path.
        environment: What every command has in its environment, beside what the tests have.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name not in UNSET}
        self.environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | (environment or {})
        self._socket = str(folder / "idp.socket")
        command = [sys.executable, __file__, self._socket]
        self._process = subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"

    def __call__(self, *words, cwd=None, env=None, timeout=280.0, python=""):
        """Run a command line of `idp` and return how it ended, as `subprocess.run` does.

        Args:
            words: The command line after `idp`.
            cwd: The folder to run it in; the tests' own without one.
            env: What differs in its environment.
            timeout: Seconds after which it is killed, which is an error.
            python: A program to run in place of `idp`.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = self.start(*words, cwd=cwd, env=env, python=python, stdout=out.fileno(), stderr=err.fileno())
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                raise
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        return subprocess.CompletedProcess(["idp", *words], code, *texts)

    def start(self, *words, stderr, stdout=subprocess.DEVNULL, cwd=None, env=None, python=""):
        """Start a command line of `idp`, first of a session and a group of its own, and return its `Child`.

        Args:
            words: The command line after `idp`.
            stderr: Number of the file that it writes its errors to.
            stdout: That of its output.
            cwd: The folder to run it in; the tests' own without one.
            env: What differs in its environment.
            python: A program to run in place of `idp`.
        """
        words = [str(word) for word in words]
        asked = {"words": words, "python": python, "cwd": str(cwd or Path.cwd()), "env": self.environment | (env or {})}
        asking = socket.socket(socket.AF_UNIX)
        asking.connect(self._socket)
        with open(os.devnull, "wb") as nowhere:
            out = nowhere.fileno() if stdout == subprocess.DEVNULL else stdout
            asking.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [out, stderr]))])
            asking.sendall(json.dumps(asked).encode() + b"\n")
        return Child(asking)

    def close(self) -> None:
        """End it; what it has started and is still running goes on."""
        self._process.communicate(timeout=60)


def serve(place: str) -> None:
    """Fork a process for each that asks, until standard input ends."""
    gc.disable()  # until all is read
    for library in LIBRARIES:
        __import__(library)
    from orchestrator.report.keeper import FreshReport
    from orchestrator.storage.code import code_hash, whole_code

    code_hash(), whole_code()  # read once, as the libraries are: every command would find the same
    _compile()
    FreshReport._write_elsewhere = partialmethod(_write_report, elsewhere=FreshReport._write_elsewhere)
    gc.enable()
    gc.collect()
    gc.freeze()  # what the collector never looks at is shared with each process for good
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that see to a command
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        print("ready", flush=True)
        poll = select.poll()
        poll.register(sys.stdin)
        poll.register(listening)
        while sys.stdin.fileno() not in [number for number, _ in poll.poll()]:
            asking, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _see_to(asking)
            asking.close()


def _compile() -> None:
    """Draw a map and plan on it, so that numba has set itself up, and the kernels of most sweeps are loaded.

    Nothing here takes a gradient: torch refuses to do that on both sides of a fork.
    """
    from datagen.tasks.navigation import draw
    from datagen.tasks.registry import DatasetSpec
    from orchestrator.trial.trained import solve
    from planners.planner import build_planner
    from planners.specs import PlannerSpec

    planner = build_planner(PlannerSpec(core="vin", hidden_channels=8, q_channels=4, k_fwd=2))
    solve(planner, draw(DatasetSpec(map_size=9, test=1), "test", 0, 1), k=2)


def _see_to(asking: socket.socket) -> None:
    """Run what is asked for in a further process, and answer with its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, ancillary, _, _ = asking.recvmsg(1, socket.CMSG_SPACE(2 * 4))
    files = array.array("i", ancillary[0][2])
    with asking.makefile("r") as lines:
        asked = json.loads(lines.readline())
    child = os.fork()
    if child == 0:
        asking.close()
        os.setsid()
        for file, number in zip((os.open(os.devnull, os.O_RDONLY), *files), (0, 1, 2), strict=True):
            os.dup2(file, number)
        # Those of the server know of its own files whether one can go back in them.
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        _run(asked)
    asking.sendall(b"%d\n" % child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asking.sendall(b"%d\n" % code)
    os._exit(0)


def _write_report(report, running, patience, *, elsewhere) -> None:
    """Write the last version of a report in this process, which need not read the libraries for it as another would."""
    from orchestrator.report.keeper import ReportError
    from orchestrator.report.page import write_report

    if running:
        return elsewhere(report, running, patience)
    try:
        write_report(report._sweep, report._storage, command=report._command, running=False)
    except Exception as error:
        raise ReportError(f"the report could not be written: {type(error).__name__}: {error}") from error


def _run(asked: dict) -> None:
    from orchestrator.cli.main import main

    code = 1
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # though nohup has started the tests
    try:
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        # As `python -m orchestrator` has it.
        sys.path[:0] = [asked["cwd"], *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = ["idp", *asked["words"]]
        if asked["python"]:
            exec(asked["python"], {"__name__": "__main__"})
            code = 0
        else:
            code = main(asked["words"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    serve(sys.argv[1])
