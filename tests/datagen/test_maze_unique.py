"""Maze-Unique's kind of maze, drawn, and brought in from its publisher's layout."""

import numpy as np
import pytest
from mutations import EXAMPLES, mutated

from datagen.storage.dataset import load_manifest, read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.maze_unique import import_crops, import_mazes
from datagen.tasks.maze_unique import draw
from datagen.tasks.registry import DatasetSpec
from orchestrator.cli.main import main

OPTIONS = {"shortest": 20, "longest": 30}
SPEC = DatasetSpec(task="maze_unique", map_size=14, train=20, valid=4, test=6, options=OPTIONS)
NUMBER = np.arange(20)


def folder(tmp_path, change=lambda tokens, labels: None, split="train"):
    """Write mazes in the publisher's layout, changed; return the folder and the problems."""
    problems = draw(SPEC, split, 0, SPEC.count(split))
    number = np.arange(len(problems))
    tokens = np.where(problems.map == 1, 2, 1).astype(np.uint8)
    tokens[number, problems.goal[:, 0], problems.goal[:, 1]] = 4
    tokens[number, problems.start[:, 0], problems.start[:, 1]] = 3
    labels = tokens.copy()
    for i, (row, column) in enumerate(problems.start):
        while problems.distance[i, row, column] > 1:
            action = int(problems.optimal_actions[i, row, column]).bit_length() - 1
            down, right = ((-1, 0), (0, -1), (1, 0), (0, 1))[action]
            row, column = row + down, column + right
            labels[i, row, column] = 5
    change(tokens, labels)
    for name, array in (("inputs", tokens), ("labels", labels)):
        np.save(tmp_path / f"{split}_{name}.npy", array.reshape(len(array), -1))
    return tmp_path, problems


def test_ways_are_as_long_as_asked_and_the_only_ones():
    problems = draw(SPEC, "train", 0, 20)
    steps = problems.distance[NUMBER, problems.start[:, 0], problems.start[:, 1]]
    assert steps.min() >= 20 and steps.max() <= 30 and len(set(steps)) > 4
    # 36 rooms and 35 doors: a tree; the last row and column of an even size are wall
    assert (problems.map.sum((1, 2)) == 71).all() and not problems.map[:, 12:].any()
    ways = problems.optimal_actions
    assert not (ways & (ways - 1))[ways > 0].any()


def test_a_size_without_such_a_way_says_so():
    with pytest.raises(ValueError, match=r"options\.shortest: no maze of size 5 in split 'train' has a way of 100"):
        draw(DatasetSpec(task="maze_unique", map_size=5, train=1), "train", 0, 1)


def test_mazes_come_back_as_they_were(tmp_path):
    source, problems = folder(tmp_path)
    folder(tmp_path, split="test")
    (tmp_path / "test_labels.npy").unlink()
    directory = import_mazes(source, tmp_path / "sets")
    assert load_manifest(directory).spec.imported and directory.name.startswith("maze_unique-14-")
    found = read_split(directory, "train")
    for part in ("map", "goal", "start", "distance", "optimal_actions"):
        np.testing.assert_array_equal(getattr(found, part), getattr(problems, part))
    assert len(read_split(directory, "test")) == 6 and len(read_split(directory, "valid")) == 0
    assert import_mazes(source, tmp_path / "sets") == import_mazes(str(source), str(tmp_path / "sets")) == directory


def put(tokens, place, token):
    tokens.reshape(len(tokens), -1)[place] = token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: put(t, (0, 0), 4), r"train_inputs\.npy: maze 0 should have exactly one goal \(4\)"),
        (lambda t, _: t.__setitem__((slice(2, 3), t[2] == 3), 2), r"maze 2 should have exactly one start \(3\)"),
        (lambda t, _: put(t, (0, 0), 9), r"train_inputs\.npy: expected tokens 1 to 5, got 1 to 9"),
        (lambda t, _: t.__setitem__((slice(1, 2), t[1] == 2), 1), "maze 1 has no way from its start to its goal"),
        (lambda _, y: y.__setitem__((slice(3, 4), y[3] == 5), 2), r"train_labels\.npy: maze 3 marks another way"),
        (lambda _, y: put(y, (4, 0), 2), r"train_labels\.npy: maze 4 is not the one of train_inputs\.npy"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_written(tmp_path, change, message):
    source, _ = folder(tmp_path, change)
    with pytest.raises(DatasetError, match=message):
        import_mazes(source, tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_crops_are_cut_from_the_mazes_and_end_elsewhere(tmp_path):
    source, problems = folder(tmp_path)
    directory = import_crops(source, tmp_path / "sets", size=9, count=30)
    train, valid = read_split(directory, "train"), read_split(directory, "valid")
    assert (len(train), len(valid), len(read_split(directory, "test"))) == (30, 3, 3) and load_manifest(
        directory
    ).spec.task == "mazes"
    padded = np.pad(problems.map, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2))
    cut = {split: {w.tobytes() for w in windows[part].reshape(-1, 9, 9)} for split, part in
           (("train", slice(0, 18)), ("valid", slice(18, 19)))}  # fmt: skip
    assert {m.tobytes() for m in train.map} <= cut["train"] and {m.tobytes() for m in valid.map} <= cut["valid"]
    assert len({tuple(goal) for goal in train.goal}) > 10
    with pytest.raises(DatasetError, match="mazes of 14 cells have no crops of 19"):
        import_crops(source, tmp_path / "sets", size=19, count=1)


@pytest.mark.parametrize(
    ("mazes", "count", "message"),
    [
        (0, 1, "N 1 or more"),
        (1, 1, "3 mazes or more, .* got 1"),
        (2, 1, "got 2"),
        (3, 0, "count: expected 1 to 10,000,"),
    ],
)
def test_too_few_mazes_or_crops_are_told(tmp_path, mazes, count, message):
    source, _ = folder(tmp_path)
    np.save(source / "train_inputs.npy", np.load(source / "train_inputs.npy")[:mazes])
    with pytest.raises(DatasetError, match=f"train_inputs.npy: .*{message}"):
        import_crops(source, tmp_path / "sets", size=9, count=count)
    if not mazes:
        with pytest.raises(DatasetError, match=f"train_inputs.npy: .*{message}"):
            import_mazes(source, tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_the_command_line_brings_them(tmp_path, capsys):
    source, _ = folder(tmp_path)
    out = ["--out", str(tmp_path / "sets")]
    assert main(["import", str(source), "--task", "maze_unique", *out]) == 0
    assert main(["import", str(source), "--task", "maze_unique", *out, "--crops", "9", "--count", "10"]) == 0
    whole, crops = capsys.readouterr().out.split()
    assert "maze_unique-14" in whole and "mazes-9" in crops
    assert main(["import", str(tmp_path), "--task", "mazes", *out, "--crops", "9"]) == 2
    assert main(["import", str(tmp_path / "absent"), "--task", "maze_unique", *out]) == 2
    assert "expected a folder with train_inputs.npy" in capsys.readouterr().err


def test_fuzzed_files_are_refused_or_say_the_same(tmp_path):
    source, problems = folder(tmp_path)
    path = source / "train_inputs.npy"
    (source / "train_labels.npy").unlink()
    content = path.read_bytes()
    refused = 0
    for number in range(EXAMPLES):
        path.write_bytes(mutated(content, number))
        try:
            found = read_split(import_mazes(source, tmp_path / f"sets{number}"), "train")
        except DatasetError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # another wall is another maze, and whole
            assert found.map.shape == problems.map.shape and (found.start >= 0).all()
    assert refused > EXAMPLES // 2
