"""What holds for every task that is given by maps: a new task in `TASKS` is tested by being there."""

import hashlib
from importlib.metadata import version

import numpy as np
import pytest

from datagen.conformance import EVERY_TASK
from datagen.sampling.unique_maps import owner
from datagen.tasks.distinct import distinct_hashes
from datagen.tasks.registry import SPLITS, TASKS, DatasetSpec, dataset_id

# Panoramas need OpenGL; they have tests of their own, and their maps are those of "navigation".
NAMES = sorted(set(TASKS) - {"visual_navigation"})
SIZES = {"navigation": 15}
GOLDEN = {
    "manipulation": "62ff4d82c651d3bd",
    "maze_unique": "36914195122b01b5",
    "mazes": "0bd7a88d709ff1bb",
    "navigation": "10519b490552cb7f",
    "terrain": "9e751255a87fb64c",
    "workspace_manipulation": "62ff4d82c651d3bd",
}


def spec(name, **changes):
    return DatasetSpec(task=name, map_size=SIZES.get(name, 18), **changes)


def draw(name, split, start, stop, **changes):
    return TASKS[name].draw()(spec(name, **changes), split, start, stop)


@pytest.mark.parametrize("name", NAMES)
def test_no_map_comes_twice_in_the_whole_set(name):
    drawn = [draw(name, split, 0, 150) for split in SPLITS]
    hashes = [distinct_hashes(part.map, spec(name), part.costs) for part in drawn]
    assert [{int(owner(h)) for h in part} for part in hashes] == [{0}, {1}, {2}]
    told_apart = [part.map if part.costs is None else part.costs for part in drawn]
    assert len(np.unique(np.concatenate(told_apart).reshape(450, -1), axis=0)) == 450


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_have_not_changed(name):
    """A change here makes every dataset of the task another one under the same id."""
    problems = [draw(name, split, 7, 47) for split in SPLITS]
    content = b"".join(part.map.tobytes() + part.goal.tobytes() + part.label.tobytes() for part in problems)
    assert hashlib.sha256(content).hexdigest()[:16] == GOLDEN[name]


def test_the_names_of_datasets_have_not_changed():
    assert dataset_id(DatasetSpec()) == "navigation-15-44136fa355b3"
    assert dataset_id(DatasetSpec(map_size=49)) == "navigation-49-33941e786b21"
    assert dataset_id(DatasetSpec(seed=1)) != dataset_id(DatasetSpec())


@pytest.mark.parametrize("check", EVERY_TASK, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_conformance(name, check):
    check(spec(name, train=60, valid=20, test=20))


def test_a_manifest_can_name_the_versions_of_what_drew_the_problems():
    assert TASKS["visual_navigation"].libraries == ("miniworld", "pyglet")
    assert all(version(name) for task in TASKS.values() for name in task.libraries)
