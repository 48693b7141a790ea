"""What verbs have in common: the storage and other places that can't be, and commands that are to be typed again."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator.cli.main as cli
from orchestrator.cli.doctor import examine_storage
from orchestrator.cli.main import _parser, main
from orchestrator.command import Command
from orchestrator.environment import number_from_environment
from orchestrator.errors import UserError
from orchestrator.storage import provenance
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.selection import select
from orchestrator.sweep.specs import SweepError, expand

SWEEP = """
name: small
planners:
  vin: {core: vin, adjoint: unrolled}
  id-vin: {core: vin}
  spt: {core: spt, grid: {planner.inject_map: [true, false]}}
data: {train: 64, valid: 32, test: 32}
tasks: [{map_size: 9}]
grid: {k: [5], seed: [0, 1], training.learning_rate: [0.001]}
profiles: {one: {grid: {seed: [0]}}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("IDP_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SWEEP)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


def refused(capsys, *words):
    """Run a command that is to be refused in one line, and return the line."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("idp: ")
    return err


VERBS = (["plan", "small.yaml"], ["table", "small.yaml"], ["run", "small.yaml"], ["gc"], ["doctor"], ["archive", "a"])


@pytest.mark.slow
@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("file", "got a file"),
        ("file/x", "what is above it is none"),
        ("", "expected the name of a folder"),
        ("  ", "expected the name of a folder"),
        ("a\0b", "expected the name of a folder"),
        ("s3://bucket/x", "got an address"),
        ("file:///tmp/x", "got an address"),
        ("~/x", "'~'"),
        ("~root/x", "'~root'"),
        ("/dev/null", "got a file"),
        ("dangling", "a link that leads nowhere"),
        ("a" * 300, "File name too long"),
    ],
)
def test_a_storage_that_can_not_be_is_one_line_and_makes_nothing(folder, capsys, words, storage, told):
    before = sorted(folder.rglob("*"))
    assert told in refused(capsys, *words, "--storage", storage)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", [*VERBS, ["status", "small.yaml"], ["submit", "small.yaml"]], ids=lambda w: w[0])
@pytest.mark.parametrize("storage", ["", "s3://bucket/x", "file"])
def test_the_variable_is_held_to_the_same(folder, capsys, monkeypatch, words, storage):
    monkeypatch.setenv("IDP_STORAGE", storage)
    message = refused(capsys, *words)
    assert "IDP_STORAGE" in message or storage == ""


@pytest.mark.parametrize("verb", ["run", "data"])
def test_a_storage_that_can_not_be_made_is_told_before_ray_starts(folder, capsys, verb):
    assert main([verb, "small.yaml", "--storage", "/proc/here"]) == 2
    err = capsys.readouterr().err
    assert "starting Ray" not in err and err.splitlines()[-1] == "idp: /proc/here: No such file or directory"


def test_a_storage_that_nobody_may_write_to_is_refused_before_a_run(tmp_path, monkeypatch):
    (tmp_path / "trials").mkdir()
    Storage(tmp_path).check_writable()
    Storage(tmp_path / "new" / "one").check_writable()
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "trials")
    with pytest.raises(SweepError, match="trials: nothing can be written there"):
        Storage(tmp_path).check_writable()
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(SweepError, match="nothing can be written there"):
        Storage(tmp_path / "new" / "one").check_writable()


@pytest.mark.parametrize("name", ["IDP_LEASE_SECONDS", "IDP_CACHE_GIB"])
@pytest.mark.parametrize("value", ["", "abc", "-5", "nan", "inf", "1e999", "1 GiB"])
def test_variables_that_are_numbers_are_numbers(folder, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert f"{name}={value!r}: expected a number" in refused(capsys, "plan", "small.yaml")
    assert number_from_environment(name, 60.0) == 60.0


def test_a_lease_of_no_time_is_refused_and_a_cache_of_no_size_is_not(folder, capsys, monkeypatch):
    monkeypatch.setenv("IDP_CACHE_GIB", "0")
    assert main(["plan", "small.yaml", "--json"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("IDP_LEASE_SECONDS", "0")
    assert "above 0" in refused(capsys, "plan", "small.yaml")


@pytest.mark.slow
def test_a_bad_variable_is_no_traceback_at_import(folder):
    command = [sys.executable, "-m", "orchestrator", "plan", "small.yaml"]
    environment = {**os.environ, "IDP_LEASE_SECONDS": "soon", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", ["/storage/trials/x", None])
def test_what_the_operating_system_refuses_is_one_line(folder, capsys, monkeypatch, number, name):
    def fails(*_):
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(cli, "open_sweep", fails)
    message = refused(capsys, "plan", "small.yaml")
    assert os.strerror(number) in message and (name or "in fails") in message


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError("somebody's own"), KeyError("x"), AttributeError("y")]
)
def test_a_bug_still_shows_itself(folder, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(cli, "open_sweep", fails)
    with pytest.raises(type(error)):
        main(["plan", "small.yaml"])


def every_kind(base):
    return [base, *(kind for below in base.__subclasses__() for kind in every_kind(below))]


@pytest.mark.parametrize("kind", every_kind(UserError))
def test_whatever_is_told_to_a_user_is_one_line_of_bounded_length(folder, capsys, monkeypatch, kind):
    def fails(*_):
        raise kind("a\x1b[2J\nfile: " + "x" * 10_000)

    monkeypatch.setattr(cli, "open_sweep", fails)
    message = refused(capsys, "plan", "small.yaml")
    assert r"a\x1b[2J\nfile: xxx" in message and len(message) < 2100


def test_errors_of_every_room_are_told(folder):
    kinds = {kind.__name__ for kind in every_kind(UserError)}
    assert {"SweepError", "ResultError", "StorageFull", "ClusterError", "JobError", "TrackingError"} <= kinds
    assert {"PluginError", "DatasetError"} <= kinds


def test_a_pipe_that_breaks_elsewhere_is_no_success(folder, capsys, monkeypatch):
    def fails(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "open_sweep", fails)
    assert "Broken pipe" in refused(capsys, "plan", "small.yaml")


@pytest.mark.slow
def test_a_full_disk_below_the_output_is_told_and_a_closed_one_is_none(folder):
    command = f"{sys.executable} -m orchestrator plan small.yaml"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    for output, code in (("> /dev/full", 2), (">&-", 0)):
        done = subprocess.run(
            ["bash", "-c", f"{command} {output}"], env=environment, capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == code and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("verb", ["plan", "table"])
def test_a_terminal_that_knows_few_letters_gets_those(folder, monkeypatch, verb):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main([verb, "small.yaml"]) == 0
    assert b"vin" in output.buffer.getvalue()


def test_a_files_name_need_not_be_utf_8(folder, capfdbinary):
    name = os.fsdecode(b"odd\xff.yaml")
    Path(name).write_text(SWEEP)
    for verb in ("plan", "report"):
        assert main([verb, name]) == 0
    (page,) = folder.rglob("report.html")
    assert r"odd\udcff.yaml" in page.read_text()
    Path(name).write_text("name: [")
    assert main(["plan", name]) == 2


def test_examiners_make_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    for words, code in ((["plan", "small.yaml"], 0), (["table", "small.yaml"], 0), (["gc"], 2)):
        assert main([*words, "--storage", "new/one"]) == code
    assert "storage: new/one (there is none yet)" in capsys.readouterr().out
    (finding,) = examine_storage(Storage(Path("new/one")))
    assert (finding.state, finding.what) == ("warning", "there is no new/one yet; the first run makes it")
    main(["status", "small.yaml", "--storage", "new/one", "--address", "http://127.0.0.1:9"])
    assert sorted(folder.rglob("*")) == before


def test_an_empty_table_says_where_it_has_looked(folder, capsys):
    assert main(["table", "small.yaml", "--profile", "one"]) == 0
    assert "--profile one" in (said := capsys.readouterr().err) and "idp-storage" in said


def test_several_only_are_joined(folder, capsys):
    assert (
        main(["plan", "small.yaml", "--json", "--only", "planner=vin", "--only", "planner=id-vin", "--only", "seed=0"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["trials"] == 2


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ("planner=vin,id-vin", 4),
        ("planner = vin , id-vin , seed = 1", 2),
        ("planner.inject_map=true", 2),
        ("planner.inject_map=True", 2),
        ("training.learning_rate=1.0e-3,planner=vin", 2),
        ("k=5,seed=0,1", 8),
    ],
)
def test_only_takes_lists_and_the_spellings_of_a_sweep(folder, only, count):
    assert len(select(expand(load_sweep("small.yaml")), only)) == count


@pytest.mark.parametrize("only", ["seed=true", "k=5,7", "k=010", "planner=vin,,", "=3", "planner=,vin"])
def test_only_refuses_what_no_trial_has(folder, only):
    with pytest.raises(SweepError):
        select(expand(load_sweep("small.yaml")), only)


GIVEN = {
    "--profile": ["one"],
    "--storage": ["else where", "/abs"],
    "--set": ["training.epochs=3", "grid.seed=[0]"],
    "--only": ["planner=vin", "seed=0"],
    "--address": ["10.0.0.7:6379"],
    "--tracking-uri": ["http://lab:5000"],
    "--rerun": ["stale"],
}


@pytest.mark.parametrize(
    "environment", [{}, {"IDP_STORAGE": "/kept", "MLFLOW_TRACKING_URI": "http://x", "RAY_ADDRESS": "h:1"}]
)
@pytest.mark.parametrize("left_out", [None, *GIVEN])
def test_no_option_of_a_run_is_forgotten_in_the_command_that_goes_on(folder, monkeypatch, environment, left_out):
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = [word for flag, values in GIVEN.items() if flag != left_out for value in values for word in (flag, value)]
    options = _parser().parse_args(["run", "small.yaml", *words])
    again = _parser().parse_args(shlex.split(shlex.join(Command.of(options).words()[1:])))
    assert {**vars(again), "verb": None} == {**vars(options), "verb": None}
    assert set(GIVEN) <= {
        flag for action in _parser()._actions[-1].choices["run"]._actions for flag in action.option_strings
    }


def test_what_is_the_default_here_is_left_out_and_a_password_is_not_shown(folder, monkeypatch):
    monkeypatch.setenv("IDP_STORAGE", "/kept")
    options = _parser().parse_args(["run", "small.yaml", "--storage", "/kept"])
    assert Command.of(options).words() == ["idp", "run", "small.yaml"]
    assert Command.of(options).words(here=False)[-2:] == ["--storage", "/kept"]
    options = _parser().parse_args(["run", "small.yaml", "--tracking-uri", "http://me:word@lab:5000"])
    assert Command.of(options).words()[-1] == "http://***@lab:5000"


def test_a_report_shows_commands_that_its_verbs_take(folder):
    words = ["run", "small.yaml", *(word for flag, values in GIVEN.items() for word in (flag, values[0]))]
    command = Command.of(_parser().parse_args(words))
    for verb in ("table", "figures", "report"):
        _parser().parse_args(command.words(verb)[1:])


def test_the_next_sweep_has_the_scale_of_this_one(folder):
    options = _parser().parse_args(["run", "small.yaml", "--profile", "one"])
    Path("next.yaml").write_text(SWEEP)
    Path("plain.yaml").write_text("name: p\nplanners: {vin: {core: vin}}\n")
    assert cli._next_sweep(options, "next.yaml").endswith("run next.yaml --profile one")
    assert cli._next_sweep(options, "plain.yaml").endswith("run plain.yaml")
    assert cli._next_sweep(options, "absent.yaml").endswith("run absent.yaml")
    elsewhere = _parser().parse_args(["run", "small.yaml", "--tracking-uri", "http://mlflow:5000"])
    assert cli._next_sweep(elsewhere, "absent.yaml").endswith("run absent.yaml --tracking-uri http://mlflow:5000")
    Path("quick.yaml").write_text(SWEEP.replace("one:", "smoke:"))
    quick = _parser().parse_args(["run", "quick.yaml"])
    Path("next.yaml").write_text(SWEEP.replace("one:", "smoke:"))
    assert cli._next_sweep(quick, "next.yaml").endswith("run next.yaml --profile smoke")


def test_a_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("idp 0.")


def test_another_users_clone_still_says_its_commit(monkeypatch):
    own = provenance._git.__wrapped__()
    for name, value in (
        ("ASSUME_DIFFERENT_OWNER", "1"),
        ("CONFIG_GLOBAL", "/dev/null"),
        ("CONFIG_SYSTEM", "/dev/null"),
    ):
        monkeypatch.setenv(f"GIT_TEST_{name}" if name.startswith("ASSUME") else f"GIT_{name}", value)
    assert provenance._git.__wrapped__() == own
