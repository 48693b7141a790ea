"""`idp check`: what it says of a sound plug-in and of broken ones."""

import json
from pathlib import Path

import pytest

from datagen.plugins import PluginError
from orchestrator.cli.check import check_plugin

EXAMPLES = Path(__file__).parents[2] / "examples"

BROKEN = """
import torch
from torch import nn
from datagen.problem import FOUR, Problems
from datagen.tasks.registry import Task
from planners.cores import Injected
from planners.specs import Entry


class Wide(nn.Module):
    def __init__(self, options, *, wrap, actions=4, in_channels=2):
        super().__init__()
        self.reward = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.forgotten = nn.Parameter(torch.ones(3))
        self.rate = nn.Parameter(torch.full((1,), 0.5))
        self.head = nn.Conv2d(1, 4, 1)

    def encode(self, x):
        return Injected((self.reward(x),))

    def initial_value(self, r):
        return torch.zeros_like(r.per_sample[0])

    def step(self, v, r):
        return r.per_sample[0] + self.rate * (v - v.mean())

    def policy(self, v, r):
        return self.head(v)


class Loud(Wide):
    def step(self, v, r):
        raise KeyError("reward")


def draw(spec, split, start, stop):
    import numpy as np
    from datagen.expert.grid import solve

    n = stop - start
    maps = np.ones((n, spec.map_size, spec.map_size), np.uint8)
    maps[:, 0, 0] = 0
    goals = np.full((n, 2), 3, np.int16)
    return solve(maps, goals, FOUR, np.zeros(n, np.uint64))


CORES = {"wide": Entry("broken:Wide"), "loud": Entry("broken:Loud")}
TASKS = {"same": Task("broken:draw")}
"""


@pytest.mark.parametrize(
    ("example", "parts"),
    [("street_planning", ("core residual_vin", "task streets")), ("vin_parts", ("core vin_parts",))],
)
def test_the_examples_pass(tmp_path, idp, example, parts):
    done = idp("check", EXAMPLES / example, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout and all(part in done.stdout for part in parts)


def test_a_kind_of_parts_alone_is_checked_where_it_is_asked_for():
    assert next(check_plugin("street_planning", EXAMPLES, "task")).part == "task streets"
    with pytest.raises(PluginError, match="--only 'cores': street_planning has core residual_vin, task streets"):
        next(check_plugin("street_planning", EXAMPLES, "cores"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory, idp):
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.py").write_text(BROKEN)
    done = idp("check", "broken", "--json", cwd=folder)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("part", "asked", "found"),
    [
        ("core wide", "As many logits", "built with actions=8, the policy gives 4 logits"),
        ("core wide", "Unrolled: every parameter", "no gradient reaches ['core.forgotten'"),
        ("core wide", "A sample's logits and gradients do not depend", "sample 0 alone and in its batch differ"),
        ("core loud", "Logits for square", "KeyError: 'reward'"),
        ("task same", "No map is in two splits", "1 maps are in more than one split"),
        ("task same", "Another seed", "seeds 0 and 1 give the same problems"),
    ],
)
def test_what_is_wrong_is_said(broken, part, asked, found):
    said = [c for c in broken["checks"] if c["part"] == part and c["asked"].startswith(asked) and not c["passed"]]
    assert any(found in finding["found"] for finding in said), said


def test_an_error_is_placed_in_the_plug_in(broken):
    places = {finding["place"] for finding in broken["checks"] if finding["part"] == "core loud"} - {""}
    assert any("broken.py, line" in place and place.endswith("in step") for place in places), places
    sound = [finding for finding in broken["checks"] if finding["passed"]]
    assert any(finding["asked"].startswith("Moves have a name") for finding in sound)
    assert broken["failures"] == len(broken["checks"]) - len(sound)


def test_what_can_not_be_checked_is_bad_input(tmp_path, idp):
    (tmp_path / "empty.py").write_text("")
    for name, message in (("empty", "has none of CORES"), ("absent", "no module 'absent'")):
        done = idp("check", name, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
