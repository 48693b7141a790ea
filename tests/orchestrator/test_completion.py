"""Completion: the scripts know every verb, option and choice, and bash completes by its own."""

from __future__ import annotations

import subprocess

import pytest

from orchestrator.cli.completion import SHELLS, verbs_of
from orchestrator.cli.main import _parser, main
from orchestrator.tables.formats import FORMATS

ASK = """
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _idp; echo "${COMPREPLY[*]}"; }
ask idp ta
ask idp table sweep.yaml --format ""
ask idp run sweep.yaml --in
ask idp run ""
ask idp completion f
"""


@pytest.fixture(scope="module")
def verbs():
    return verbs_of(_parser())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_verb_and_option(capsys, verbs, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert len(verbs) > 20
    for verb in verbs:
        assert f" {verb.name}" in script or f'"{verb.name} ' in script
        for option in verb.options:
            flag = f"-l {option.flag.removeprefix('--')} " if shell == "fish" else option.flag
            assert flag in script


def test_bash_completes_by_it(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = subprocess.run(["bash", "-c", script + ASK], capture_output=True, text=True, check=True)
    verb, formats, option, files, shell = asked.stdout.splitlines()
    assert (verb, formats.split(), option) == ("table", list(FORMATS), "--in-process")
    assert files == "" and shell == "fish", "files are bash's own to complete"
