"""The example of graphs: do its maps contract, are its fixed points and their gradients right, are its answers true?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datagen.storage.dataset import make_dataset
from orchestrator.storage.layout import Storage
from orchestrator.sweep.files import load_sweep
from orchestrator.sweep.plugins import load_plugins
from orchestrator.sweep.specs import SweepError, expand
from orchestrator.trial.train import run_trial

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def graphs():
    """The plug-in."""
    torch.manual_seed(0)
    load_plugins(["graphs"], beside=[EXAMPLES])
    import graphs.networks
    import graphs.problems

    return graphs


def samples(graphs, make, count=3, **options):
    made = [make(graphs.GraphOptions(**options), np.random.default_rng([7, number])) for number in range(count)]
    return {name: np.array([sample[name] for sample in made]) for name in made[0]}


def batch_of(graphs, found):
    return graphs.networks.Graphs.of({name: values.astype(np.float32) for name, values in found.items()})


@torch.no_grad()
def test_maps_contract_whatever_was_learnt_and_settle_where_linear_algebra_does(graphs):
    batch = batch_of(graphs, samples(graphs, graphs.problems.walks, share=0.5))
    network = graphs.networks.Convergent(graphs.SolverOptions(width=8, contraction=0.9), 0)
    for parameter in network.parameters():
        parameter.mul_(10.0)  # scores far apart, gates open
    a, b = network.maps[0].built(batch, *network.encoder(batch))
    sums = torch.cat((a[:, :4].sum(3), a[:, 4:].sum(2)), 1)  # rows of averages, columns of shares
    assert a.min() >= 0.0 and 0.5 < sums.max() <= 0.9 + 1e-5
    padding = ~batch.present[:, None, :, None]
    assert not (a * padding).any() and not (b * padding).any()
    expected = torch.linalg.solve(torch.eye(a.shape[-1]) - a, b)
    found = network(batch).answer.detach()
    said = network.decoder(
        torch.cat((network.encoder(batch)[0], expected.transpose(1, 2).flatten(2).flatten(0, 1)), 1), batch
    )
    torch.testing.assert_close(found, said, rtol=2e-3, atol=2e-3 * float(found.abs().max()))


def test_implicit_gradients_are_those_of_linear_algebra(graphs):
    batch = batch_of(graphs, samples(graphs, graphs.problems.walks, share=0.0))
    network = graphs.networks.Convergent(graphs.SolverOptions(width=6, heads=2, features=2, contraction=0.8), 0)
    network(batch).answer.square().sum().backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    node, edge = network.encoder(batch)
    a, b = network.maps[0].built(batch, node, edge)
    settled = torch.linalg.solve(torch.eye(a.shape[-1]) - a, b).transpose(1, 2).flatten(2).flatten(0, 1)
    network.zero_grad()
    network.decoder(torch.cat((node, settled), 1), batch).square().sum().backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
    for ours, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-2, atol=1e-3 * largest)


def test_walkers_that_leave_are_those_that_come(graphs):
    found = samples(graphs, graphs.problems.walks, count=8)
    arrivals = found["node"][..., 0].sum(1)
    np.testing.assert_allclose(graphs.problems.LEAVE * found["answer"].sum(1), arrivals, rtol=1e-9)


def test_no_driver_gains_by_another_way(graphs):
    for number in range(6):
        found = samples(graphs, graphs.problems.traffic, count=number + 1)
        node, times = found["node"][number], found["answer"][number]
        count = found["size"][number, 1]
        source, target = found["ends"][number, :count].T
        free, slope = found["edge"][number, :count].T
        flow = np.maximum(times[source] - times[target] - free, 0.0) / slope
        # The times are those of the fastest ways where each road takes what its flow makes it take ...
        through = free + slope * flow + times[target]
        fastest = np.full(len(times), np.inf)
        np.minimum.at(fastest, source, through)
        here = (node[:, 0] > 0) & (np.arange(len(times)) < found["size"][number, 0])
        np.testing.assert_allclose(times[here], fastest[here], rtol=1e-6)
        # ... and all who set out arrive: what leaves a node less what enters is its demand.
        left = np.bincount(source, flow, len(times)) - np.bincount(target, flow, len(times))
        np.testing.assert_allclose(left[here], node[here, 0], atol=1e-6)


def test_families_have_as_many_edges_as_each_other(graphs):
    found = samples(graphs, graphs.problems.families, count=60, share=0.0, fewest=16, most=16)
    edges = {family: found["size"][found["answer"] == family, 1] for family in range(graphs.CLASSES)}
    assert all(len(counts) for counts in edges.values())
    assert all(56 <= count <= 64 for counts in edges.values() for count in counts)


def test_smoke_trains_both_networks_on_all_kinds_of_answers(graphs, tmp_path):
    sweep, storage, results = load_sweep(EXAMPLES / "graphs.yaml", "smoke"), Storage(tmp_path), {}
    for trial in expand(sweep):
        make_dataset(trial.spec.data, storage.datasets)
        results[trial.axes["planner"], trial.axes["task"]] = run_trial(trial.spec, storage)
    assert all(result.status == "COMPLETED" and not result.forward_diverged for result in results.values())
    assert {frozenset(result.metrics) for result in results.values()} == {
        frozenset({"error", "error_larger", "steps", "parameters"}),
        frozenset({"error", "error_larger", "parameters"}),
        frozenset({"accuracy", "accuracy_larger", "steps", "parameters"}),
        frozenset({"accuracy", "accuracy_larger", "parameters"}),
    }


def test_sizes_out_of_order_are_one_message(graphs):
    with pytest.raises(SweepError, match="expected fewest <= most < larger, got fewest 10, most 20, larger 20"):
        load_sweep(EXAMPLES / "graphs.yaml", "laptop", ["tasks=[{task: walks, options: {larger: 20}}]"])
