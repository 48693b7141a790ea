"""Backup and restore on a real PostgreSQL; `docker` is a stand-in that runs on this machine what is for a container."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVER = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
DOCKER = """#!/usr/bin/env bash
# compose COMMAND [OPTIONS] SERVICE WORDS...
echo "$*" >> "$LOG"
case "$2" in
version | up | stop) exit 0 ;;
exec | run)
    shift 2
    while [[ $1 == -* ]]; do shift; done
    shift
    words=("${@//\\/artifacts/$ARTIFACTS}")
    [ "$1" != pg_isready ] || exit 0
    [ "${FAILS:-none}" = none ] || [[ "$*" != *"$FAILS"* ]] || exit 1
    exec "${words[@]}" ;;
esac
exit 3
"""


class Stack:
    """The scripts, with a database, artifacts, a storage and settings of their own."""

    def __init__(self, scratch: Path, socket: Path) -> None:
        self.tree, self.artifacts, self.storage = scratch / "tree", scratch / "artifacts", scratch / "storage"
        (self.tree / "docker" / "secrets").mkdir(parents=True)
        for name in ("backup", "restore", "stack", "secrets", "whole", "rehearse", "nightly"):
            shutil.copy(ROOT / "docker" / f"{name}.sh", self.tree / "docker")
        for folder in (self.artifacts, self.storage, scratch / "bin"):
            folder.mkdir()
        owner = os.getuid() or 1000
        (self.tree / ".env").write_text(f"IDP_UID={owner}\nIDP_GID={owner}\nIDP_STORAGE={self.storage}\n")
        (scratch / "bin" / "docker").write_text(DOCKER)
        (scratch / "bin" / "docker").chmod(0o755)
        assert SERVER is not None
        self.log, self.socket = scratch / "log", socket
        self.environment = {
            **os.environ,
            "PATH": f"{scratch / 'bin'}:{SERVER.parent}:{os.environ['PATH']}",
            "PGHOST": str(socket),
            "ARTIFACTS": str(self.artifacts),
            "LOG": str(self.log),
        }

    def script(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.tree / "docker" / words[0]), *words[1:]]
        return subprocess.run(command, env={**self.environment, **environment}, capture_output=True, text=True)

    def sql(self, text: str) -> str:
        command = ["psql", "-U", "mlflow", "-d", "mlflow", "-Atqc", text]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def fill(self, word: str) -> None:
        self.sql(f"DROP TABLE IF EXISTS runs; CREATE TABLE runs AS SELECT '{word}' AS name, generate_series(1, 5000)")
        (self.artifacts / "1").mkdir(exist_ok=True)
        (self.artifacts / "1" / "report.html").write_text(word)
        (self.artifacts / f"only-{word}").write_text(word)
        (self.storage / "trials").mkdir(exist_ok=True)
        (self.storage / "trials" / "result.json").write_text(word)

    def content(self) -> tuple[str, set[tuple[str, str]]]:
        unpacked = self.artifacts / ".restored"  # by a restore that failed later; the next one begins with its removal
        paths = [p for p in self.artifacts.rglob("*") if p.is_file() and not p.is_relative_to(unpacked)]
        rows = self.sql("SELECT name || count(*) FROM runs GROUP BY name")
        return rows, {(path.relative_to(self.artifacts).as_posix(), path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def socket(tmp_path_factory):
    if SERVER is None:
        pytest.skip("no PostgreSQL server here")
    account = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    as_user = {"user": account.pw_uid, "group": account.pw_gid} if os.getuid() == 0 else {}
    # A socket's name must be short, and the server does not run as root.
    place = Path("/tmp", f"idp-pg-{os.getpid()}")
    place.mkdir(mode=0o755)
    os.chown(place, account.pw_uid, account.pw_gid)
    options = {"capture_output": True, "check": True, "cwd": "/", **as_user}
    try:
        data = str(place / "data")
        subprocess.run([SERVER, "-D", data, "-U", "mlflow", "--auth", "trust", "--no-sync"], **options)
        control = [SERVER.with_name("pg_ctl"), "-D", data, "-w", "-l", str(place / "log")]
        listen = f"-c listen_addresses='' -c fsync=off -k {place}"
        subprocess.run([*control, "-o", listen, "start"], **{**options, "capture_output": False})
        try:
            subprocess.run([SERVER.with_name("createdb"), "-h", place, "-U", "mlflow", "mlflow"], check=True)
            yield place
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **options)
    finally:
        shutil.rmtree(place)


@pytest.fixture
def stack(tmp_path, socket):
    stack = Stack(tmp_path, socket)
    assert stack.script("secrets.sh").returncode == 0
    stack.fill("saved")
    backed_up = stack.script("backup.sh", str(tmp_path / "backup"))
    assert backed_up.returncode == 0, backed_up.stderr
    stack.fill("later")
    stack.log.unlink()
    return stack


@pytest.mark.slow
def test_a_backup_comes_back_on_the_same_machine_and_on_a_new_one(stack, tmp_path):
    done = stack.script("restore.sh", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    expected = ("saved5000", {("1/report.html", "saved"), ("only-saved", "saved")})
    assert stack.content() == expected
    assert (stack.storage / "trials" / "result.json").read_text() == "later"  # there is one: it is not touched
    shutil.rmtree(stack.storage)
    shutil.rmtree(stack.tree / "docker" / "secrets")
    (stack.tree / ".env").unlink()
    stack.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    done = stack.script("restore.sh", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert stack.content() == expected
    assert [path.name for path in stack.storage.iterdir()] == ["trials"]
    assert (stack.storage / "trials" / "result.json").read_text() == "saved"
    assert stack.log.read_text().splitlines()[-1] == "compose up -d"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", ["mlflow.dump", "artifacts.tar", "storage.tar"])
def test_a_damaged_backup_costs_nothing(stack, tmp_path, name, checksums):
    before = stack.content()
    whole = (tmp_path / "backup" / name).read_bytes()
    if not checksums:  # as of an earlier version
        (tmp_path / "backup" / "SHA256SUMS").unlink()
    for damaged in (whole[: len(whole) * 2 // 3], whole[: len(whole) // 3], whole[:512], b"", b"no" * 1024):
        (tmp_path / "backup" / name).write_bytes(damaged)
        refused = stack.script("restore.sh", str(tmp_path / "backup"))
        assert refused.returncode == 2 and "nothing that was here has changed" in refused.stderr.splitlines()[-1]
        assert stack.content() == before
        assert not stack.log.exists() or "stop" not in stack.log.read_text()


@pytest.mark.parametrize("name", ["mlflow.dump", "artifacts.tar", "env", "secrets/ray_token"])
def test_a_single_flipped_bit_is_found(stack, tmp_path, name):
    before = stack.content()
    flip(tmp_path / "backup" / name)
    refused = stack.script("restore.sh", str(tmp_path / "backup"))
    assert refused.returncode == 2 and "not what was saved" in refused.stderr
    assert stack.content() == before and not stack.log.exists()


@pytest.mark.parametrize("name", ["mlflow.dump", "artifacts.tar", "env", "secrets"])
def test_half_a_backup_is_refused(stack, tmp_path, name):
    before, path = stack.content(), tmp_path / "backup" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused = stack.script("restore.sh", str(tmp_path / "backup"))
    assert refused.returncode == 2 and f"no {name}" in refused.stderr
    assert stack.content() == before


@pytest.mark.parametrize("step", ["mkdir .restored", "single-transaction"])
def test_a_step_that_fails_leaves_the_database_as_it_was(stack, tmp_path, step):
    before = stack.content()[0]
    failed = stack.script("restore.sh", str(tmp_path / "backup"), FAILS=step)
    assert failed.returncode != 0 and "the database is as it was" in failed.stderr
    assert stack.content()[0] == before
    assert stack.script("restore.sh", str(tmp_path / "backup")).returncode == 0
    assert stack.content() == ("saved5000", {("1/report.html", "saved"), ("only-saved", "saved")})


def test_a_dump_that_the_database_refuses_is_rolled_back(stack, tmp_path):
    # What is in another schema is not removed, and stands in the way in the middle of the dump.
    stack.sql("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.runs (name text)")
    backup = tmp_path / "two"
    assert stack.script("backup.sh", str(backup)).returncode == 0
    before = stack.content()
    failed = stack.script("restore.sh", str(backup))  # schema "elsewhere" already exists
    assert failed.returncode != 0 and "already exists" in failed.stderr
    assert stack.content() == before
    stack.sql("DROP SCHEMA elsewhere CASCADE")


def test_a_backup_is_made_while_sweeps_add_artifacts_and_not_without_them(stack, tmp_path):
    over, folder = threading.Event(), stack.artifacts / "1"

    def sweep():
        for number in itertools.count():
            if over.is_set():
                return
            (folder / str(number % 2)).mkdir()
            (folder / str(number % 2)).rmdir()

    (folder / "weights").write_bytes(bytes(2**24))  # takes tar some time
    running = threading.Thread(target=sweep)
    running.start()
    try:
        done = stack.script("backup.sh", str(tmp_path / "busy"))
    finally:
        over.set()
        running.join()
    assert done.returncode == 0 and "file changed as we read it" in done.stderr, done.stderr
    (folder / "weights").unlink()
    assert stack.script("restore.sh", str(tmp_path / "busy")).returncode == 0
    assert ("1/report.html", "later") in {(name, text) for name, text in stack.content()[1] if name != "1/weights"}
    failed = stack.script("backup.sh", str(tmp_path / "none"), FAILS="--exclude")  # as where no container runs
    assert failed.returncode != 0 and not (tmp_path / "none").exists()


def databases(stack):
    return stack.sql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate")


def test_a_restore_is_rehearsed_and_touches_nothing(stack, tmp_path):
    before = stack.content(), databases(stack), sorted(stack.storage.rglob("*"))
    done = stack.script("rehearse.sh", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert "1 tables with 5000 runs, 2 artifacts, 1 results: it can be restored" in done.stdout
    assert (stack.content(), databases(stack), sorted(stack.storage.rglob("*"))) == before
    log = stack.log.read_text()
    assert "--dbname mlflow" not in log and " stop " not in log and "idp_rehearsal" in log


@pytest.mark.parametrize("checksums", [True, False])
def test_a_rehearsal_finds_what_a_restore_would(stack, tmp_path, checksums):
    dump = tmp_path / "backup" / "mlflow.dump"
    dump.write_bytes(dump.read_bytes()[:-400])
    if not checksums:
        (tmp_path / "backup" / "SHA256SUMS").unlink()
    refused = stack.script("rehearse.sh", str(tmp_path / "backup"))
    assert refused.returncode == 2 and "rehearse: " in refused.stderr.splitlines()[-1]
    assert "idp_rehearsal" not in databases(stack)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def night(day: int, tail: str = "") -> str:
    return f"idp-2026010{day}T033000Z{tail}"


def test_every_night_a_backup_and_the_oldest_goes_when_the_new_one_has_been_rehearsed(stack, tmp_path):
    folder = tmp_path / "nights"
    for name in (night(1), night(2), night(3), "mine", "idp-other", "idp-other.part"):
        (folder / name).mkdir(parents=True)
    done = stack.script("nightly.sh", str(folder), "2")
    assert done.returncode == 0, done.stderr
    left = names(folder)
    assert left[0] == night(3) and left[2:] == ["idp-other", "idp-other.part", "mine"] and len(left) == 5
    assert (folder / left[1] / "SHA256SUMS").exists() and "." not in left[1]


def test_what_can_not_be_rehearsed_pushes_nothing_out(stack, tmp_path):
    folder = tmp_path / "nights"
    for name in (night(1), night(2), night(3, ".unrehearsed")):
        (folder / name).mkdir(parents=True)
    failed = stack.script("nightly.sh", str(folder), "2", FAILS="pg_restore")
    assert failed.returncode != 0 and "mlflow.dump can't be restored" in failed.stderr
    kept = names(folder)  # of those, the latest: each is as large as the storage
    assert kept[:2] == [night(1), night(2)] and len(kept) == 3 and kept[2].endswith("Z.unrehearsed")
    (folder / kept[2]).rename(folder / night(3, ".unrehearsed"))
    done = stack.script("nightly.sh", str(folder), "2")
    assert done.returncode == 0, done.stderr
    assert names(folder)[0] == night(2) and len(names(folder)) == 2 and "." not in names(folder)[1]


def test_a_night_removes_what_earlier_ones_left_that_ended_in_the_middle(stack, tmp_path):
    folder = tmp_path / "nights"
    for tail in (".part", ".rehearsal", ".unrehearsed.part", ".unrehearsed.rehearsal"):
        (folder / night(1, tail)).mkdir(parents=True)
    failed = stack.script("nightly.sh", str(folder), FAILS="pg_dump")
    assert failed.returncode != 0 and names(folder) == [] and failed.stdout.count(" removed") == 4


def test_two_nights_at_once_do_not_remove_each_others(stack, tmp_path):
    at_work = subprocess.Popen(["flock", stack.tree / "docker", "sleep", "60"])
    try:
        until = time.monotonic() + 30
        while subprocess.run(["flock", "--nonblock", stack.tree / "docker", "true"]).returncode == 0:
            assert time.monotonic() < until
        refused = stack.script("nightly.sh", str(tmp_path / "nights"))
        assert refused.returncode == 2 and "another one is at work" in refused.stderr
    finally:
        at_work.kill()
        at_work.wait()


@pytest.mark.parametrize("step", ["pg_dump", "tar -C", "no secrets"])
def test_a_backup_that_fails_leaves_nothing_on_a_disk_that_may_be_full(stack, tmp_path, step):
    if step == "no secrets":
        shutil.rmtree(stack.tree / "docker" / "secrets")
    failed = stack.script("backup.sh", str(tmp_path / "backups" / "two"), FAILS=step)
    assert failed.returncode != 0 and names(tmp_path / "backups") == []


@pytest.mark.parametrize("options", [[], ["--without-storage"]])
def test_no_backup_goes_into_the_storage_which_every_job_can_read(stack, tmp_path, options):
    (tmp_path / "link").symlink_to(stack.storage)
    before = sorted(stack.storage.rglob("*"))
    for target in (stack.storage / "backup", stack.storage / "new" / "backup", tmp_path / "link" / "backup"):
        refused = stack.script("backup.sh", str(target), *options)
        assert refused.returncode == 2 and f"is in the storage, {stack.storage}: name" in refused.stderr
    for folder in (stack.storage, stack.storage / "nights"):
        refused = stack.script("nightly.sh", str(folder), "3", *options)
        assert refused.returncode == 2 and "is in the storage" in refused.stderr
    assert sorted(stack.storage.rglob("*")) == before and not stack.log.exists()


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("backup.sh", [], "backup: expected FOLDER [--without-storage]"),
        ("backup.sh", ["--without-storage", "NEW"], "backup: expected FOLDER [--without-storage]"),
        (
            "backup.sh",
            ["NEW", "--without_storage"],
            "backup: --without_storage: expected --without-storage, or nothing",
        ),
        ("backup.sh", ["NEW", ""], "backup: : expected --without-storage, or nothing"),
        ("backup.sh", ["NEW", "--without-storage", "NEW2"], "backup: expected FOLDER [--without-storage]"),
        ("nightly.sh", ["NEW", "0"], "nightly: 0: expected how many backups to keep"),
        ("nightly.sh", ["NEW", "--without-storage"], "nightly: --without-storage: expected how many backups to keep"),
        ("nightly.sh", ["NEW", "3", "--whatever"], "backup: --whatever: expected --without-storage, or nothing"),
        ("nightly.sh", ["NEW", "3", "--without-storage", "4"], "nightly: expected FOLDER [KEEP] [--without-storage]"),
        ("rehearse.sh", ["OLD", "--quick"], "rehearse: expected FOLDER, a backup of docker/backup.sh"),
        ("restore.sh", ["OLD", "--dry-run"], "restore: expected FOLDER, a backup of docker/backup.sh"),
        ("restore.sh", ["--help"], "restore: expected FOLDER, a backup of docker/backup.sh"),
    ],
)
def test_a_word_that_is_not_known_is_refused_before_anything_is_done(stack, tmp_path, script, words, said):
    paths = {"NEW": str(tmp_path / "new"), "NEW2": str(tmp_path / "new2"), "OLD": str(tmp_path / "backup")}
    refused = stack.script(script, *(paths.get(word, word) for word in words))
    assert refused.returncode == 2 and refused.stderr == f"{said}\n"
    assert not stack.log.exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "written", ['"STORAGE"', "'STORAGE'", "STORAGE # the lab's disk", '"STORAGE" # NFS', "STORAGE  "]
)
def test_a_setting_is_read_as_compose_reads_it(stack, tmp_path, written):
    env = stack.tree / ".env"
    env.write_text(env.read_text().replace(str(stack.storage), written.replace("STORAGE", str(stack.storage))))
    assert stack.script("secrets.sh").returncode == 0 and not (stack.tree / '"').exists()
    done = stack.script("backup.sh", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["tar", "-tf", tmp_path / "two" / "storage.tar"], capture_output=True, text=True).stdout
    assert "./trials/result.json" in listed


def test_a_storage_that_is_not_there_is_named(stack, tmp_path):
    shutil.rmtree(stack.storage)
    refused = stack.script("backup.sh", str(tmp_path / "two"))
    assert refused.returncode == 2 and not (tmp_path / "two").exists()
    assert refused.stderr == f"backup: .env: IDP_STORAGE is {stack.storage}: expected a folder that is there\n"


def test_a_rehearsal_needs_room_beside_the_backup_and_says_so(stack, tmp_path):
    seen = {}
    for name, tar in (("full", "echo no space left >&2; exit 2"), ("enough", 'exec "$TAR" "$@"')):
        # Only where it unpacks: the checks before it read.
        (tmp_path / "bin" / "tar").write_text(
            f'#!/bin/bash\n[[ $3 == *x* ]] || exec "$TAR" "$@"\necho "$2" >> "$LOG.at"\n{tar}\n'
        )
        (tmp_path / "bin" / "tar").chmod(0o755)
        seen[name] = stack.script("rehearse.sh", str(tmp_path / "backup"), TAR=shutil.which("tar"), TMPDIR="/nowhere")
    assert seen["full"].returncode == 2
    assert "artifacts.tar can't be unpacked beside it, which takes" in seen["full"].stderr.splitlines()[-1]
    assert seen["enough"].returncode == 0, seen["enough"].stderr
    at = Path(f"{stack.log}.at").read_text().splitlines()
    assert {Path(path).parent for path in at} == {tmp_path / "backup.rehearsal"}
    assert not (tmp_path / "backup.rehearsal").exists()


def test_on_a_new_machine_the_saved_settings_and_token_come_back_and_what_stands_in_the_way_is_named(stack, tmp_path):
    secrets, env = stack.tree / "docker" / "secrets", stack.tree / ".env"
    token = (secrets / "ray_token").read_text()
    env.write_text(env.read_text() + "WORKER_CPUS=3\n")
    shutil.rmtree(secrets)
    assert stack.script("secrets.sh").returncode == 0  # which is not what a new machine begins with
    done = stack.script("restore.sh", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    for name, here in (("env", ".env"), ("secrets", "docker/secrets")):
        assert f"{here} is here already and stays as it is" in done.stderr
        assert str(tmp_path / "backup" / name) in done.stderr
    assert (secrets / "ray_token").read_text() != token
    shutil.rmtree(secrets)
    shutil.copy(tmp_path / "backup" / "env", env)  # as the page says
    done = stack.script("restore.sh", str(tmp_path / "backup"))
    assert done.returncode == 0 and "stays as it is" not in done.stderr
    assert (secrets / "ray_token").read_text() == token
