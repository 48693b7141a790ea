"""Signals that ask to end, and what is not one of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

import orchestrator.cli.main as cli
from orchestrator.signals import Interrupted, check, deferred, interruptible, spared_hangups


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exception_at_once_or_where_it_is_safe(number):
    before = signal.getsignal(number)
    with interruptible(), pytest.raises(Interrupted, match=number.name):
        os.kill(os.getpid(), number)
    with interruptible(), deferred():
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=number.name):
            check()
        check()  # told once
    assert signal.getsignal(number) == before


def test_a_hangup_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), deferred():
            os.kill(os.getpid(), signal.SIGHUP)
            check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_hangup_reaches_the_daemons_that_a_run_starts():
    with spared_hangups():
        daemon = subprocess.Popen(["sleep", "60"])
    try:
        (blocked,) = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", Path(f"/proc/{daemon.pid}/status").read_text(), re.M)
        assert int(blocked, 16) >> (signal.SIGHUP - 1) & 1
    finally:
        daemon.kill()
        daemon.wait()
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


INTERRUPTED_WHILE_IT_IMPORTS = """
import importlib, os, signal, sys

class Interrupts:
    def find_spec(name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
sys.meta_path.insert(0, Interrupts)
sys.exit(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])())
"""


def test_an_interrupt_while_the_program_is_imported_ends_it_without_a_word():
    program = tomllib.loads((Path(cli.__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]["idp"]
    words = [sys.executable, "-c", INTERRUPTED_WHILE_IT_IMPORTS, *program.split(":")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_command_line_works_in_a_thread(tmp_path, capsys):
    codes = []
    sweep = "name: s\nplanners: {vin: {core: vin}}\ntasks: [{map_size: 7}]\n"
    (tmp_path / "s.yaml").write_text(sweep)
    arguments = ["plan", str(tmp_path / "s.yaml"), "--storage", str(tmp_path / "storage")]
    thread = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0] and "1 trial" in capsys.readouterr().out


def test_a_keyboard_interrupt_of_somebody_else_is_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupted)
    assert cli.main(["plan", "any.yaml"]) == 130
    assert capsys.readouterr().err == "idp: stopped by KeyboardInterrupt\n"


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("name: s\nplanners: {vin: {core: vin}}\ntasks: [{map_size: 7}]\n")
    arguments = [str(tmp_path / "s.yaml"), "--storage", str(tmp_path / "storage"), "--address", "127.0.0.1:1"]
    for verb in (["plan", "--measure"], ["run"]):
        assert cli.main([*verb, *arguments]) == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("idp: can't join the Ray cluster at 127.0.0.1:1: ")


@pytest.mark.parametrize("wanted", ["resources={cpus: 5000}", "execution.threads=1000"])
def test_what_this_machine_has_not_is_said_before_ray_starts(tmp_path, capsys, wanted):
    (tmp_path / "s.yaml").write_text("name: s\nplanners: {vin: {core: vin}}\ntasks: [{map_size: 7}]\n")
    storage = tmp_path / "storage"
    assert cli.main(["run", str(tmp_path / "s.yaml"), "--storage", str(storage), "--set", wanted]) == 2
    said = capsys.readouterr().err
    assert "CPU, but this machine has" in said and "starting Ray" not in said and not list(storage.iterdir())
