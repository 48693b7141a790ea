"""Datasets of one's own maps: whole ones with goals or a `.scen`'s problems, and crops to train on."""

import numpy as np
import pytest

from datagen.storage.dataset import load_manifest, read_split
from datagen.storage.manifest import DatasetError
from datagen.storage.own_maps import import_map
from orchestrator.cli.main import main


@pytest.fixture
def town(tmp_path):
    """A map of 6 x 8 with a part that is shut off, and two problems on it."""
    rows = ["........", ".@@@....", ".@.@....", ".@@@....", "........", "...TTTT."]
    (tmp_path / "a.map").write_text("type octile\nheight 6\nwidth 8\nmap\n" + "\n".join(rows))
    (tmp_path / "a.scen").write_text("version 1\n0 a.map 8 6 0 0 7 5 9\n0 a.map 8 6 4 4 0 1 7\n")
    return tmp_path, np.array([[letter == "." for letter in row] for row in rows])


def test_a_whole_map_with_goals_on_it(town, capsys):
    folder, free = town
    words = ["import", str(folder / "a.map"), "--task", "navigation", "--out", str(folder / "sets"), "--count", "30"]
    assert main(words) == 0
    found = capsys.readouterr().out.strip()
    spec, problems = load_manifest(found).spec, read_split(found, "test")
    assert (spec.train, spec.valid, spec.test, spec.map_size) == (0, 0, 30, 8) and spec.imported
    assert (problems.map[:, :6] == free).all() and not problems.map[:, 6:].any()
    assert not (problems.goal == (2, 2)).all(1).any() and len(np.unique(problems.goal, axis=0)) > 15
    assert import_map(folder / "a.map", "navigation", folder / "sets", count=30).name == found.rpartition("/")[2]
    assert import_map(folder / "a.map", "navigation", folder / "sets", count=30, seed=1).name not in found
    assert import_map(str(folder / "a.map"), "navigation", str(folder / "sets"), count=30).name in found


def test_the_problems_of_a_scen(town):
    folder, _ = town
    found = import_map(folder / "a.scen", "mazes", folder / "sets")
    problems = read_split(found, "test")
    assert problems.start.tolist() == [[0, 0], [4, 4]] and problems.goal.tolist() == [[5, 7], [1, 0]]
    assert problems.distance[[0, 1], *problems.start.T].tolist() == [12, 7]
    assert len(read_split(import_map(folder / "a.scen", "mazes", folder / "sets", count=1), "test")) == 1


def test_crops_of_the_splits_lie_in_other_parts(tmp_path):
    rows, columns = np.indices((30, 80))
    free = np.ones((30, 80), np.uint8)
    free[:, columns[0] % 3 == 2] = rows[:, columns[0] % 3 == 2] % 2
    free[:, :64] |= columns[:, :64] % 3 < 2
    free[5, 64:72] = free[11, 72:] = 0
    np.save(tmp_path / "m.npy", free)
    found = import_map(tmp_path / "m.npy", "navigation", tmp_path / "sets", size=6, count=20)
    spec = load_manifest(found).spec
    assert (spec.train, spec.valid, spec.test, spec.map_size) == (20, 2, 2, 6)
    for split, part in (("train", free[:, :64]), ("valid", free[:, 64:72]), ("test", free[:, 72:])):
        there = {
            window.tobytes() for window in np.lib.stride_tricks.sliding_window_view(part, (6, 6)).reshape(-1, 6, 6)
        }
        problems = read_split(found, split)
        assert all(crop.tobytes() in there for crop in problems.map)
        assert problems.map[np.arange(len(problems)), *problems.goal.T].all()


@pytest.mark.parametrize(
    ("file", "task", "given", "message"),
    [
        ("a.scen", "navigation", {}, "a.scen: its problems name their starts, .*take 'mazes'"),
        ("a.map", "visual_navigation", {}, "a.map: task 'visual_navigation' needs more than a square map; take one of"),
        ("a.map", "terrain", {"size": 5}, "crops of 5: expected 5 cells or more; a tenth of the map's longer side, 8 "),
        ("a.map", "manipulation", {}, r"a.map: expected as many rows as columns for the torus, got \(6, 8\)"),
        ("a.map", "navigation", {"count": 0}, "a.map: count: expected 1 to 10,000,000, got 0"),
        ("a.map", "navigation", {"count": 10**12}, "a.map: count: expected 1 to 10,000,000, got 1000000000000"),
        ("a.map", "navigation", {"seed": -1}, "a.map: seed: expected a whole number from 0 on, got -1"),
        ("a.map", "maze_unique", {}, "a.map: problems of task 'maze_unique' name their starts, which a map has not"),
        ("wall.npy", "navigation", {}, "wall.npy: no two free cells that touch"),
        ("shut.scen", "mazes", {}, "shut.scen: problem 0: no way leads from its start to its goal"),
    ],
)
def test_what_makes_no_dataset_is_told(town, file, task, given, message):
    folder, _ = town
    np.save(folder / "wall.npy", np.eye(6))
    (folder / "shut.scen").write_text("version 1\n0 a.map 8 6 0 0 2 2 9\n")
    with pytest.raises(DatasetError, match=message):
        import_map(folder / file, task, folder / "sets", **given)
    assert not (folder / "sets").exists()
