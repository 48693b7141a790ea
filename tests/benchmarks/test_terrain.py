"""What `benchmarks.terrain` compares with: its searches are right, and each method can be trained and measured."""

import numpy as np
import pytest
import torch

from benchmarks import terrain as bench
from datagen.tasks import terrain
from datagen.tasks.registry import DatasetSpec
from planners.training.evaluation import Inputs

SPEC = DatasetSpec(task="terrain", map_size=bench.SIZE, train=32, test=8, options={"pixels": 8})


def problems(split):
    return terrain.draw(SPEC, split, 0, SPEC.count(split))


def test_its_ways_are_the_expert_s():
    test = problems("test")
    least = test.distance[:, 0, 0]
    np.testing.assert_allclose((bench.ways(test, test.costs) * test.costs).sum((1, 2)), least, rtol=1e-6)
    programs = np.stack([bench.by_linear_program(costs) for costs in test.costs[:2]])
    np.testing.assert_allclose((programs * test.costs[:2]).sum((1, 2)), least[:2], rtol=1e-6)
    way = bench.entered(Inputs.of(test), test).numpy()
    np.testing.assert_allclose((way * test.costs).sum((1, 2)), least, rtol=1e-6)


class Oracle:
    """A method that knows the costs, in a unit of its own."""

    def __init__(self, costs):
        self._left = torch.from_numpy(3 * costs)

    def costs(self, image):
        found, self._left = self._left[: len(image)], self._left[len(image) :]
        return found


def test_who_knows_the_costs_is_exact():
    test = problems("test")
    assert bench.measured(Oracle(test.costs), test) == (1.0, pytest.approx(1.0), pytest.approx(1.0))
    exact, ratio, rank = bench.measured(Oracle(1 / test.costs), test)
    assert exact < 0.5 and ratio > 1.1 and rank == pytest.approx(-1.0)


@pytest.mark.parametrize("name", ["shortest_path (ours)", "no planner"])
def test_methods_train(name):
    train = problems("train")
    method = bench.trained(bench.methods()[name], train, 2, 0.01, 0)
    exact, _, rank = bench.measured(method, problems("test"))
    assert 0 <= exact <= 1 and (rank is None) == (name == "no planner")
    times = bench.update_times({name: method}, train, rounds=2)
    assert set(times) == {name, None} and min(times.values()) > 0


def test_the_peers_train():
    pytest.importorskip("pyepo")
    train = problems("train")
    for name, make in bench.methods().items():
        before = make().network
        method = bench.trained(make, train, 1, 0.01, 0)
        assert any((p != q).any() for p, q in zip(before.parameters(), method.network.parameters(), strict=True)), name
