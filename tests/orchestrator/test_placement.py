"""What a trial asks of Ray on mixed hardware, and what it refuses; the memory that it computes in."""

import subprocess
import sys

import pytest

from orchestrator.cluster.ray_cluster import ClusterError
from orchestrator.cluster.resources import alone, left_out, requested_resources
from orchestrator.sweep.specs import Resources, TrialSpec
from orchestrator.trial.device import LEAST_GPU_LIMIT_GIB, PlacementError, check_device, limit_bytes, no_graphs

MIXED = [
    {"CPU": 32.0, "GPU": 4.0, "accelerator_type:T4": 1.0},
    {"CPU": 16.0, "GPU": 1.0, "accelerator_type:H100": 1.0},
    {"CPU": 16.0, "GPU": 1.0, "accelerator_type:A10G": 1.0},
]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {"cpu": 1.0, "gpu": 1.0}),
        ({"gpus": 0}, {"cpu": 1.0}),
        ({"cpus": 4, "gpus": 0.25}, {"cpu": 4.0, "gpu": 0.25}),
        ({"accelerator": "H100"}, {"cpu": 1.0, "gpu": 1.0, "accelerator_type:H100": 0.001}),
        ({"min_memory_gib": 11}, {"cpu": 1.0, "gpu": 1.0, "accelerator_type:T4": 0.001}),
        ({"min_memory_gib": 20}, {"cpu": 1.0, "gpu": 1.0, "accelerator_type:A10G": 0.001}),
    ],
)
def test_a_trial_asks_for_what_the_sweep_says(resources, expected):
    assert requested_resources(Resources(**resources), TrialSpec(), MIXED) == expected


@pytest.mark.parametrize(
    "planner",
    [{"solver": "gauss_seidel"}, {"core": "conv_gppn", "solver_bwd": "gauss_seidel"}],
)
def test_what_is_compiled_for_processors_alone_gets_no_gpu(planner):
    spec = TrialSpec.model_validate({"planner": planner})
    assert requested_resources(Resources(), spec, MIXED) == {"cpu": 1.0}
    for field, value in (("device", "cuda"), ("kernel", "reference")):
        with pytest.raises(ValueError, match=f"execution.{field} is '{value}', but solver 'gauss_seidel' is compiled"):
            TrialSpec.model_validate({"planner": planner, "execution": {field: value}})
    with pytest.raises(ValueError, match=r"precision is 'bfloat16'; solver 'gauss_seidel' takes float32"):
        TrialSpec.model_validate({"planner": planner, "training": {"precision": "bfloat16"}})
    if "core" not in planner:
        with pytest.raises(ValueError, match=r"takes the maximum as it is; got temperature 0\.5"):
            TrialSpec.model_validate({"planner": planner | {"temperature": 0.5}})
    unused = {"adjoint": "one_step", "core": "conv_gppn"}
    assert requested_resources(Resources(), TrialSpec.model_validate({"planner": unused}), MIXED)["gpu"] == 1.0


def test_the_provenance_says_how_a_device_multiplies(monkeypatch):
    from torch import backends

    from orchestrator.storage import provenance
    from planners.planner import ieee_float32

    monkeypatch.setattr(provenance, "_accelerator", lambda device: (device, 0, ""))
    backends.cudnn.allow_tf32 = True
    assert provenance.provenance(device="cuda").float32 == "tf32"
    ieee_float32()
    assert provenance.provenance(device="cuda").float32 == "ieee"
    assert provenance.provenance(device="cpu").float32 == ""


@pytest.mark.parametrize(
    ("resources", "cluster", "message"),
    [
        ({"accelerator": "H200"}, MIXED, "needs a H200, but the cluster has A10G, H100, T4"),
        ({"min_memory_gib": 100}, MIXED, "a GPU with 100 GiB"),
        ({"accelerator": "T4", "min_memory_gib": 20}, MIXED, "a T4 with 20 GiB"),
        ({"accelerator": "T4"}, [{"CPU": 2.0}], "needs 1 GPU, but no machine of the cluster has any"),
        ({"accelerator": "T4", "gpus": 0}, MIXED, "resources.gpus is 0"),
        ({"cpus": 100}, MIXED, "needs 100 CPU"),
        ({"cpus": 40}, MIXED, "needs 40 CPU, but the largest machine of the cluster has 32"),
        ({"cpus": 20, "accelerator": "H100"}, MIXED, "needs 20 CPU and 1 GPU and a H100 on one machine"),
        ({"cpus": 1}, [{"memory": 1e9}], "needs 1 CPU, but no machine of the cluster has any"),
    ],
)
def test_what_the_cluster_has_not_is_said_at_once(resources, cluster, message):
    with pytest.raises(ClusterError, match=message):
        requested_resources(Resources(**resources), TrialSpec(), cluster)


def test_times_that_are_reported_need_a_device_of_their_own():
    spec, exclusive = TrialSpec(), Resources(exclusive=True)
    processors, devices = [{"CPU": 8.0}] * 2, [{"CPU": 8.0, "GPU": 1.0}] * 2
    assert requested_resources(exclusive, spec, processors) == {"cpu": 8.0}
    assert requested_resources(exclusive, spec, devices) == {"cpu": 1.0, "gpu": 1.0}
    with pytest.raises(ClusterError, match=r"resources\.exclusive promises"):
        requested_resources(Resources(gpus=0.5, exclusive=True), spec, MIXED)
    for machines in (processors, devices):
        assert alone(requested_resources(exclusive, spec, machines), machines[0])
    assert not alone({"cpu": 1.0}, processors[0]) and not alone({"cpu": 1.0, "gpu": 0.5}, devices[0])


@pytest.mark.parametrize("sizes", [(8, 8, 80), (80, 8, 8), (2, 3), (16, 12, 16), (1, 64)])
def test_an_exclusive_trial_never_shares_however_uneven_the_machines_are(sizes):
    machines = [{"CPU": float(size), "node:__internal_head__": 1.0} for size in sizes]
    request = requested_resources(Resources(exclusive=True), TrialSpec(), machines)
    takers = [machine for machine in machines if machine["CPU"] >= request["cpu"]]
    assert takers and all(machine["CPU"] < request["cpu"] + 1 and alone(request, machine) for machine in takers)
    assert left_out(request, machines) == len(machines) - len(takers)


def test_whether_a_trial_is_alone_depends_on_the_machine_that_took_it():
    request = requested_resources(Resources(), TrialSpec(execution={"threads": 8}), [{"CPU": 8.0}, {"CPU": 80.0}])
    assert alone(request, {"CPU": 8.0}) and not alone(request, {"CPU": 80.0})


def test_a_device_below_the_limit_is_no_outcome_but_a_wrong_place():
    check_device(16 * 2**30, "T4", 11.0)
    check_device(16 * 2**30, "T4", None)
    with pytest.raises(PlacementError, match=r"P4 has 8.0 GiB, less than the trial's limit of 11"):
        check_device(8 * 2**30, "P4", 11.0)


def test_names_of_accelerators_are_names():
    with pytest.raises(ValueError, match="accelerator"):
        Resources(accelerator="../../etc")


def test_a_limit_below_what_a_gpu_s_libraries_take_is_held_on_cpus_alone():
    assert limit_bytes("cpu", 0.006) == int(0.006 * 2**30)
    assert limit_bytes("cuda", 0.006) == LEAST_GPU_LIMIT_GIB * 2**30
    assert limit_bytes("cuda", 11.0) == 11 * 2**30
    assert limit_bytes("cuda", None) is None


def test_graphs_are_used_on_gpus_where_they_can_be_and_nobody_said_no():
    for asked in (None, True):
        spec = TrialSpec(execution={"graphs": asked})
        assert not no_graphs(spec, "cuda") and "CUDA devices only" in no_graphs(spec, "cpu")
    assert no_graphs(TrialSpec(execution={"graphs": False}), "cuda") == "execution.graphs is false"
    assert "discount_from" in no_graphs(
        TrialSpec(planner={"core": "contractive"}, training={"discount_from": 0.9}), "cuda"
    )
    assert "float32" in no_graphs(TrialSpec(training={"precision": "bfloat16"}), "cuda")
    plugged = {"plugins": ("my_planners",)}
    assert "plug-in" in no_graphs(TrialSpec().model_copy(update=plugged), "cuda")
    assert not no_graphs(TrialSpec(execution={"graphs": True}).model_copy(update=plugged), "cuda")


def test_what_tensors_have_freed_stays_the_process_s():
    """Counts the pages that the system clears for steps that allocate 24 tensors of 1 MiB, before and after."""
    steps = """
import resource, torch
from orchestrator.trial.device import keep_freed_memory

def cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for step in range(20):
        tensors = [torch.empty(1 << 18).fill_(1.0) for _ in range(24)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

large = torch.empty(4 << 20)  # once freed it raises the size from which glibc asks the system for each block
del large
print(cleared(), keep_freed_memory() and cleared() and cleared())
"""
    ran = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=True)
    given_back, kept = map(int, ran.stdout.split())
    assert kept < given_back / 10
