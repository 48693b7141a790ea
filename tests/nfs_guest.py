"""Two clients of one NFS at work on one storage, in the machine that nfs.py emulates; as root, who is squashed.

    python tests/nfs_guest.py /mnt/a /mnt/b

Ends with a line of `nfs.PASSED` where every trial was published once, whichever client looks, though the server was
restarted meanwhile; where an owner that was asleep has lost its trial to the other client; and where root, who may
write nothing there, is told so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from nfs import PASSED

from orchestrator.errors import SweepError
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, Owner, Patience, TrialHeld, free
from orchestrator.storage.results import TrialResult

TRIALS = [f"{number:016x}" for number in range(24)]
ASLEEP = "f" * 16
WORKERS = 2
"""Processes for each client."""


def publish(storage: Storage, name: str, instead_of: int = 0, sleepy: bool = False) -> bool:
    """Take a trial, leave what a trial leaves, and publish; return whether this process did."""
    trial = storage.trial(name)
    if trial.read_result() is not None or (not instead_of and not free(trial.latest_lease())):
        return False
    try:
        lease = trial.take(Owner.here(), instead_of)
        try:
            if trial.read_result() is not None:
                return False
            with lease.beating():
                trial.put_curves(lease, b"epochs")
                trial.note(f"by {os.getpid()}")
                if sleepy:
                    print("asleep", flush=True)
                    os.kill(os.getpid(), signal.SIGSTOP)
                trial.publish(lease, TrialResult(trial_id=name, status="OUT_OF_MEMORY", reason=f"by {os.getpid()}"))
        finally:
            lease.release()
    except (TrialHeld, LeaseLost):
        return False
    return True


def work(storage: Storage) -> None:
    """Publish all trials that nobody else does, over and over until every one is there; print which were ours."""
    ours: list[str] = []
    while missing := [name for name in TRIALS if storage.trial(name).read_result() is None]:
        ours += [name for name in missing if publish(storage, name)]
        time.sleep(0.2)
    print(json.dumps(ours))


def start(client: Path, *words: str) -> subprocess.Popen[str]:
    """Start a process of the lab's user."""
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    command = [*user, sys.executable, __file__, str(client / "lab"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def restart_server() -> None:
    subprocess.run(["rpc.nfsd", "0"], check=True)
    time.sleep(5)
    subprocess.run(["rpc.nfsd", "-N", "3", "-G", "10", "-L", "10", "4"], check=True)


def check_together(clients: list[Path]) -> None:
    """Let processes of both clients publish all trials while the server is restarted."""
    workers = [start(client, "work") for client in clients for _ in range(WORKERS)]
    server = Storage(Path("/srv/export/lab"))
    while len(server.results(TRIALS)) < 6:
        time.sleep(0.2)
    print("six trials are published; the server is restarted", flush=True)
    restart_server()
    said = [json.loads(worker.communicate(timeout=600)[0]) for worker in workers]
    counts = Counter(name for names in said for name in names)
    assert counts == dict.fromkeys(TRIALS, 1), f"published other than once: {counts}"
    seen = [{name: Storage(client / "lab").trial(name).read_result() for name in TRIALS} for client in clients]
    assert seen[0] == seen[1] == server.results(TRIALS), "the clients see other results than the server"
    for name in TRIALS:
        found = sorted(path.name.partition("-")[0] for path in server.trial(name).path.iterdir())
        assert found == [".lease", "curves.parquet", "log.txt", "result.json"], (name, found)
        assert len(server.trial(name).log.read_text().splitlines()) == 1, f"{name} was worked on twice"
    print(f"{len(TRIALS)} trials, by process: {[len(names) for names in said]}, the server restarted meanwhile")


def check_sleeper(clients: list[Path]) -> None:
    """An owner on one client that gives no sign of life loses its trial to the other, and not before."""
    sleeper = start(clients[0], "sleep")
    assert sleeper.stdout is not None and sleeper.stdout.readline() == "asleep\n"
    other = start(clients[1], "wait")
    assert json.loads(other.communicate(timeout=120)[0]), "the other client did not take it over"
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.communicate(timeout=120)[0].strip() == "false", "who was asleep has published too"
    print("who was asleep has lost its trial to the other client")


def wait_for_sleeper(storage: Storage) -> bool:
    patience, trial, began = Patience(), storage.trial(ASLEEP), time.monotonic()
    while True:
        held = trial.latest_lease()
        assert held is not None and not free(held)
        if patience.expired(trial.path, held):
            assert time.monotonic() - began >= 6.0
            return publish(storage, ASLEEP, instead_of=held.number)
        time.sleep(0.5)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[2] in ("work", "sleep", "wait"):
        storage, what = Storage(Path(sys.argv[1])), sys.argv[2]
        if what == "work":
            work(storage)
        else:
            print(json.dumps(publish(storage, ASLEEP, sleepy=True) if what == "sleep" else wait_for_sleeper(storage)))
        return
    clients = [Path(word) for word in sys.argv[1:]]
    try:
        Storage(clients[0] / "lab").make()
        raise AssertionError("root may write in spite of root_squash")
    except SweepError as error:
        print(f"root is told: {error}")
    check_together(clients)
    check_sleeper(clients)
    print(PASSED, flush=True)


if __name__ == "__main__":
    main()
