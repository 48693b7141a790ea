"""The YAML of sweeps: no surprises of YAML 1.1, and nothing that takes memory or time without end."""

from __future__ import annotations

import os
import re
import threading

import pytest
import yaml
from mutations import EXAMPLES, bounded, mutated

from orchestrator.command import Command
from orchestrator.sweep.files import found, load_sweep, named
from orchestrator.sweep.specs import SweepError, expand
from orchestrator.sweep.yaml_1_2 import MOST_BYTES, BadYaml, parse_yaml, read_yaml

SWEEP = "name: small\nplanners: {vin: {core: vin}}\n"


@pytest.mark.parametrize(
    "text", ["no", "yes", "on", "Off", "y", "010", "0o17", "0x1f", "0b11", "1:30", "1_000", "08.5"]
)
def test_what_yaml_1_1_reads_as_another_thing_is_text(text):
    assert parse_yaml(text) == text
    assert yaml.safe_load(text) != text or text in ("y", "0o17")


def test_dates_are_text_too():
    assert parse_yaml("2026-11-22") == "2026-11-22"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5", 5),
        ("-5", -5),
        ("0", 0),
        (".5", 0.5),
        ("2.", 2.0),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_what_yaml_1_2_reads_is_read_so(text, value):
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["{low:3,high: 7}", "a: {b: 1, low:3}"])
def test_a_colon_without_its_space_is_told_and_no_key(text):
    with pytest.raises(BadYaml, match=r"'low:3': a colon needs a space behind it"):
        parse_yaml(text)
    assert parse_yaml("{a:b: }") == {"a:b": None}, "a key as it is said"


@pytest.mark.parametrize("text", ["!!int '1:30'", "!!int 010", "!!bool no", "!!float 1_0.5", "!!timestamp 2026-11-22"])
def test_a_tag_is_no_way_round(text):
    with pytest.raises(BadYaml):
        parse_yaml(text)


@pytest.mark.parametrize(
    "setting",
    [
        *(f"grid.seed=[{value}]" for value in ("no", "010", "1:30", "true", "'1'", "1_0", "0x5")),
        *(f"grid.k=[{value}]" for value in ("yes", "010", "1:30", "true", "'5'")),
        "data.train=1_000",
        "training.epochs=true",
        "training.learning_rate='0.1'",
        "planners.vin.q_channels=010",
        "resources.gpus=true",
        "execution.threads=yes",
        "budget.seconds=1:30",
    ],
)
def test_a_number_field_takes_numbers_alone(tmp_path, setting):
    path = tmp_path / "s.yaml"
    path.write_text(SWEEP)
    with pytest.raises(SweepError) as caught:
        load_sweep(path, overrides=[setting])
    value = setting.partition("=")[2].strip("[]'")
    assert value.lower() in str(caught.value).lower() and re.search(r"expected a (whole )?number", str(caught.value))
    section, _, field = setting.partition("=")[0].partition(".")
    document = yaml.safe_load(SWEEP) | {section: {field: parse_yaml(setting.partition("=")[2])}}
    if "." not in field:  # the same in a file
        path.write_text(yaml.safe_dump(document) if section != "grid" else f"{SWEEP}grid: {{{field}: [{value}]}}\n")
        if "'" not in setting:
            with pytest.raises(SweepError, match=r"expected a (whole )?number"):
                load_sweep(path)


def bomb(use):
    lines = ["metadata:", "  l0: &l0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"  l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join([*lines, "  sweep:", "    name: q", "    planners: {vin: {core: vin}}", f"    {use}"])


@pytest.mark.parametrize(
    "text",
    [
        bomb("description: *l8"),
        bomb("data: {train: *l8}"),
        bomb("grid: {k: *l8}"),
        "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], y{i}: 1}}" for i in range(1, 40))]),
        "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 500))]),
        SWEEP + "data: {train: 1" + ":59" * 200_000 + "}",
        SWEEP + "data: {train: 0x" + "f" * 100_000 + "}",
        SWEEP + "data: {train: " + "9" * 100_000 + "}",
        SWEEP + "description: " + "[" * 100_000,
        SWEEP + "x: &x [*x]",
        "k" * 500_000 + ": 1",
        "#" * (MOST_BYTES + 1),
    ],
    ids=lambda text: text[-12:].strip(),
)
def test_a_bomb_is_refused_at_once_with_a_short_line(tmp_path, text):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with bounded(processor_seconds=20, mebibytes=200), pytest.raises(SweepError) as caught:
        load_sweep(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and len(message) < 2500 and "\n" not in message


@pytest.mark.parametrize(
    "line", [r'description: "\ud800"', r'next: "\ud83d\ude00"', r'"\udfff": 1', r'data: {task: "a\uD900"}']
)
def test_half_a_letter_is_refused_where_it_stands(tmp_path, line):
    path = tmp_path / "s.yaml"
    path.write_text(SWEEP + line)
    with pytest.raises(SweepError, match=r"s\.yaml: .*half a letter in it.* line \d+") as caught:
        load_sweep(path)
    str(caught.value).encode()
    path.write_text(SWEEP)
    with pytest.raises(SweepError, match="half a letter"):
        load_sweep(path, overrides=[r'description="\ud800"'])


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/stdin", "folder", "pipe"])
def test_only_regular_files_are_read(tmp_path, kind):
    named = tmp_path / "named"
    if kind == "folder":
        named.mkdir()
    elif kind == "pipe":
        os.mkfifo(named)
    else:
        named = kind
    path = tmp_path / "s.yaml"
    path.write_text(f"extends: {named}\n{SWEEP}")
    for sweep in (path, named):
        found = []
        reader = threading.Thread(target=lambda: found.append(refusal(sweep)), daemon=True)  # noqa: B023
        reader.start()
        reader.join(20)
        assert found and "expected a file, got a" in found[0]


def refusal(path):
    try:
        load_sweep(path)
    except SweepError as error:
        return str(error)
    return "accepted"


def test_a_pipe_that_took_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a: 1")
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: before)
    with pytest.raises(BadYaml, match="got a pipe"):
        read_yaml(tmp_path / "pipe")


def test_what_a_sweep_extends_is_looked_for_beside_it_and_both_are_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: table9.yaml\nname: mine\n")
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    looked = "looked for beside this file, then among the sweeps that come with idp"
    expected = f"{path}: extends: 'table9.yaml' ({looked}): {tmp_path}/table9.yaml: No such file"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("named", ["quickstart", "quickstart.yaml"])
def test_a_sweep_that_comes_along_is_extended_by_its_name_where_no_file_has_it(tmp_path, named):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {named}\nname: mine\n")
    assert list(load_sweep(path).planners) == ["vin", "id-vin"]
    (tmp_path / named).write_text(SWEEP)
    assert list(load_sweep(path).planners) == list(load_sweep(tmp_path / named).planners) != ["vin", "id-vin"]


def test_null_leaves_out_a_planner_that_is_inherited_and_no_other(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart\nname: mine\nplanners: {id-vin: null, mine: {core: vin}}\n")
    assert list(load_sweep(path).planners) == ["vin", "mine"]
    assert list(load_sweep(found("quickstart"), overrides=["planners.vin=null"]).planners) == ["id-vin"]
    for wrong in ("planners.vni=null", "planners.vin.core=null"):
        with pytest.raises(SweepError, match=r"planners\.v"):
            load_sweep(found("quickstart"), overrides=[wrong])
    with pytest.raises(SweepError, match="planners: expected 1 or more"):
        load_sweep(found("quickstart"), overrides=["planners.vin=null", "planners.id-vin=null"])


def test_a_sweep_that_comes_along_is_told_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Command(sweep=found("quickstart")).words() == ["idp", "run", "quickstart"]
    assert named("mine.yaml") == "mine.yaml" and named(str(tmp_path / "mine.yaml")) == str(tmp_path / "mine.yaml")
    path = found("quickstart")
    (tmp_path / "quickstart").write_text(SWEEP)
    assert named(path) == path, "its name is another sweep's here"


@pytest.mark.parametrize("name", ["a\\0b", "a" * 5000, "\\ud800"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    path = tmp_path / "s.yaml"
    path.write_text(f'extends: "{name}"\n{SWEEP}')
    with pytest.raises(SweepError):
        load_sweep(path)


def test_a_long_chain_of_files_is_refused(tmp_path):
    for number in range(1500):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n{SWEEP}")
    with pytest.raises(SweepError, match="more than 20 files"):
        load_sweep(tmp_path / "0.yaml")


def test_fuzzed_bytes_of_a_sweep_are_read_or_refused(tmp_path):
    text = (SWEEP + "grid: {k: [5], seed: [0, 1]}\ndata: {train: 64, valid: 8, test: 8}\n").encode()
    path = tmp_path / "s.yaml"
    with bounded(processor_seconds=10 + EXAMPLES, mebibytes=300):
        for number in range(EXAMPLES):
            path.write_bytes(mutated(text, number))
            try:
                expand(load_sweep(path))
            except SweepError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
