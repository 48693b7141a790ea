import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from samples import put_result

from orchestrator.cli.main import _found, _parser, main
from orchestrator.storage.code import code_hash
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import LeaseLost, TrialHeld
from orchestrator.storage.provenance import Provenance
from orchestrator.storage.results import TrialResult
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.specs import expand
from orchestrator.tables.formats import FORMATS

SWEEP = """
name: small
planners:
  vin: {core: vin, adjoint: unrolled}
  id-vin: {core: vin}
data: {train: 64, valid: 32, test: 32}
tasks: [{map_size: 9}]
grid: {k: [5], seed: [0, 1]}
training: {epochs: 1}
profiles: {one: {grid: {seed: [0]}}}
next: table1.yaml
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("IDP_STORAGE", str(tmp_path / "storage"))
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    return path


def leave_all(sweep, storage, **fields):
    for trial in expand(load_sweep(sweep)):
        result = {"status": "COMPLETED", "test_success_rate": 0.5, "provenance": Provenance(code=code_hash())} | fields
        put_result(Storage(storage).trial(trial.trial_id).path, TrialResult(trial_id=trial.trial_id, **result))


def options(verb):
    (subparsers,) = (action for action in _parser()._actions if action.dest == "==SUPPRESS==")
    return subparsers.choices[verb]._option_string_actions.keys() - {"-h", "--help"}


def test_the_command_line_is_a_contract():
    every = {"--profile", "--storage", "--set", "--only", "--json"}
    assert options("plan") == every | {"--measure", "--gpus", "--address"}
    assert options("data") == every | {"--address"}
    assert options("run") == every | {"--address", "--in-process", "--tracking-uri", "--rerun", "--mirror"}
    assert options("trial") == every | {"--replay"}
    assert options("retry") == every
    assert options("cancel") == every | {"--job", "--address"}
    assert options("submit") == every | {"--address", "--tracking-uri", "--rerun"}
    assert options("status") == every | {"--address"}
    assert options("logs") == {"--address", "--follow", "--json"}
    assert options("doctor") == {"--address", "--storage", "--tracking-uri", "--json"}
    assert options("certify") == {"--storage", "--json", "--plugin"}
    assert options("gc") == {"--storage", "--remove", "--dry-run", "--datasets", "--json", "--plugin"}
    assert options("table") == every | {"--format", "--wide", "--columns", "--compare", "--best"}
    assert options("sync") == every | {"--tracking-uri"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "absent.yaml"], "absent.yaml"),
        (["plan", "{sweep}x.yaml"], "did you mean {sweep}?"),
        (["rnu", "{sweep}"], "did you mean 'run'?"),
        (["plan", "{sweep}", "--profile", "two"], "known: one"),
        (["run", "{sweep}", "--only", "planner=none"], "no trial"),
        (["run", "{sweep}", "--set", "training.epoch=1"], "did you mean 'epochs'"),
        (["data", "{sweep}", "--set", "planners.vin.core=vim"], "vin"),
        (["table", "{sweep}", "--set", "nonsense"], "path=value"),
        (["trial", "{sweep}", "zz"], "no trial"),
        (["trial", "{sweep}", ""], "expected a trial's id"),
        (["status", "--only", "planner=vin"], "--only: is for a sweep, and none is named"),
        (
            ["run", "{sweep}", "--set", "resources.gpus=1.5"],
            "resources.gpus: expected a part of one, or a whole number",
        ),
        (["run", "{sweep}", "--address", "nowhere"], "HOST:PORT"),
        (["run", "{sweep}", "--address", "head:²"], "HOST:PORT"),
        (["run", "{sweep}", "--address", "127.0.0.1:9"], "can't join"),
        (["plan", "{sweep}", "--measure", "--address", "127.0.0.1:9"], "can't join"),
        (["plan", "{sweep}", "--only", "planner=vni"], "did you mean 'vin'"),
        (["plan", "{sweep}", "--only", "planner=vin,vni"], "no trial"),
        (["plan", "{sweep}", "--only", "vin"], "expected key=value"),
        (["run", "{sweep}", "--tracking-uri", "bogus://me:word@x"], "'bogus://***@x': expected http://HOST:PORT"),
        (["run", "{sweep}", "--tracking-uri", "lab:5000"], "'lab:5000': expected http://HOST:PORT"),
        (["run", "{sweep}", "--tracking-uri", "http://"], "'http://': expected http://HOST:PORT"),
        (["run", "{sweep}", "--tracking-uri", "http://me:word@["], "'http://***@[': expected http://HOST:PORT"),
        (["run", "{sweep}", "--tracking-uri", "http://lab:x"], "'http://lab:x': expected http://HOST:PORT"),
        (["run", "{sweep}", "--mirror", "s3:/lab"], "--mirror (or IDP_MIRROR): 's3:/lab': expected s3://BUCKET/PREFIX"),
        (["evaluate", "zz", "{sweep}"], "'zz' is no folder, and no trial in"),
        (["sync", "{sweep}", "--tracking-uri", "http://127.0.0.1:9"], "MLflow at http://127.0.0.1:9"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_one_message_and_exit_code_2(sweep, capsys, arguments, message):
    assert main([word.format(sweep=sweep) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("idp: ") and message.format(sweep=sweep) in last
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [[], ["plan"], ["table", "x", "--format", "pdf"]])
def test_bad_usage_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_plan_as_json_counts_and_lists(sweep, tmp_path, capsys):
    assert main(["plan", str(sweep), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["done"], plan["missing"]) == (4, 0, 4)
    assert [dataset["present"] for dataset in plan["datasets"]] == [False]
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("known", [True, False])
def test_plan_for_people_ends_with_a_command_that_the_shell_finds(sweep, capsys, monkeypatch, known):
    folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(folder) if known else "/nowhere")
    idp = "idp" if known else os.path.relpath(folder / "idp")
    assert main(["plan", str(sweep), "--profile", "one"]) == 0
    text = capsys.readouterr().out
    assert "2 trials: 0 done, 2 to run" in text
    assert text.splitlines()[-1] == f"to run them: {idp} run {sweep} --profile one"


def test_only_selects_on_every_verb(sweep, tmp_path, capsys):
    leave_all(sweep, tmp_path / "storage")
    assert main(["table", str(sweep), "--only", "planner=id-vin,seed=1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["axes"]["planner"], row["expected"]) == ("id-vin", 1)
    assert main(["table", str(sweep), "--json", "--format", "md"]) == 2
    assert "--format md: beside --json" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_table(sweep, tmp_path, capsys, format):
    leave_all(sweep, tmp_path / "storage")
    assert main(["table", str(sweep), "--format", format]) == 0
    text = capsys.readouterr().out
    assert ("IdVin" if format == "macros" else "id-vin") in text and text.endswith("\n")


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_table_can_be_piped_into_head(sweep, tmp_path, unbuffered):
    leave_all(sweep, tmp_path / "storage")
    command = f"{sys.executable} -m orchestrator table {sweep} --format csv | head -c 1"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_words_that_nobody_reads_any_more_are_no_error(unbuffered):
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "orchestrator", "fields"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_output_is_no_error(sweep, tmp_path, monkeypatch, capsys):
    leave_all(sweep, tmp_path / "storage")
    monkeypatch.setattr(sys, "stdout", None)
    for words in (["table", sweep], ["table", sweep, "--json"], ["metrics", "--once"],
                  ["run", sweep, "--json", "--in-process", "--tracking-uri", "none"]):  # fmt: skip
        assert main([str(word) for word in words]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [LeaseLost("0123: taken over"), TrialHeld("0123: held")])
def test_a_trial_that_is_somebody_elses_is_one_line(sweep, tmp_path, capsys, monkeypatch, loss):
    from orchestrator.trial import train as trial

    def lost(*_, **__):
        raise loss

    monkeypatch.setattr(trial, "_run", lost)
    (first, *_) = expand(load_sweep(sweep))
    assert main(["trial", str(sweep), first.trial_id, "--storage", str(tmp_path / "storage")]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"idp: {loss}" and "Traceback" not in said


def test_the_next_sweep_is_named_from_where_one_is_and_not_where_it_is_not(tmp_path, monkeypatch):
    sweeps = tmp_path / "project" / "sweeps"
    sweeps.mkdir(parents=True)
    (sweeps / "b.yaml").write_text("name: b\n")
    for folder, expected in ((tmp_path, "project/sweeps/b.yaml"), (tmp_path / "project", "sweeps/b.yaml")):
        monkeypatch.chdir(folder)
        beside = sweeps.relative_to(folder)
        assert _found("sweeps/b.yaml", beside) == _found("b.yaml", beside) == expected
    assert _found("sweeps/c.yaml", sweeps) == ""


def test_help_is_a_verb_too(capsys):
    for words, said in (["help"], "verbs:"), (["help", "run"], "--in-process"):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert said in capsys.readouterr().out


def test_a_table_says_what_it_is_of_and_what_other_profiles_have(sweep, tmp_path, capsys):
    leave_all(sweep, tmp_path / "storage")
    assert main(["table", str(sweep), "--profile", "one", "--only", "planner=vin|id-vin"]) == 0
    (said,) = capsys.readouterr().err.splitlines()
    of = "2 of 2 trials of small with --profile one have ended"
    assert said == f"idp: {of} in {tmp_path / 'storage'}; 4 without one"
    assert main(["table", str(sweep), "--format", "csv"]) == 0
    assert capsys.readouterr().err == ""


def test_a_table_of_nothing_says_what_other_profiles_have(sweep, tmp_path, capsys):
    leave_all(sweep, tmp_path / "storage")
    profiles = "{other: {training: {epochs: 2}}, wrong: {training: {epochs: -1}}}"  # the latter is no reason to fail
    sweep.write_text(SWEEP.replace("{one: {grid: {seed: [0]}}}", profiles))
    assert main(["table", str(sweep), "--profile", "other"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("idp: no trial of") and last.endswith("; 4 without one"), last
