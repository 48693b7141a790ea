"""What a GPU does with all of this: is it right, does it keep its limits, how fast is it. `make gpu-test` runs it.

    python -m benchmarks.gpu [--device cuda] [--out gpu-test.json] [--tiny] [--only agreement,kernels]

Ends with 0 where all holds, 1 where something does not, and 2 where there is no such device. What was found is in one
file: a section each with its rows and whether it holds, and printed as a table.

- agreement: logits and gradients of every core, float32, are those of the CPU; steps in bfloat16 stay near them
- conformance: the checks of `planners.conformance` on the device
- kernels: the iterations on the chip are the reference's, and their times beside it
- steps: times of a training step of every core beside the plain loop and torchdeq
- graphs: training steps as CUDA graphs give the losses of those without, and their times
- memory: a limit ends a trial as OUT_OF_MEMORY, and the process can go on
- figure6: the sweep's smoke profile with a device of its own a trial, and what its trials took
- quickstart: the first sweep, trained on the device
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.planner_core import inputs_of, problems_of
from datagen.problem import FOUR
from orchestrator.storage.provenance import provenance
from planners import PlannerSpec, TrainingSpec, build_planner
from planners.conformance import cores as core_checks
from planners.conformance.planners import checked_on
from planners.cores import encoded
from planners.fixed_points import ForwardIteration
from planners.planner import Planner, ieee_float32
from planners.registry import ADJOINTS, CORES
from planners.training.graphs import refusal
from planners.training.memory import MemoryLimitExceeded
from planners.training.precision import autocast
from planners.training.trainer import Trainer

SOURCE = Path(__file__).resolve().parents[1]
AGREES = 1e-3  # of the largest number: float32 in another order gives 1e-5, TF32 3e-3
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What is asked for: a device, and sizes that say something or only run; rows of the maps, maps of a step, K."""

    device: torch.device
    tiny: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return (5,) if self.tiny else (15, 27, 49)

    @property
    def batch(self) -> int:
        return 2 if self.tiny else 32

    @property
    def steps(self) -> int:
        return 4 if self.tiny else 30

    def spec(self, core: str, adjoint: str = "implicit", **fields: Any) -> PlannerSpec:
        """Return a planner of the paper's sizes, or a small one."""
        if self.tiny:
            return core_checks.small_spec(core, adjoint=adjoint, k_fwd=self.steps, k_bwd=3, **fields)
        return PlannerSpec(core=core, adjoint=adjoint, k_fwd=self.steps, **fields)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, of the largest number of its tensor or, of a small gradient, of all of them."""
    sizes = [float(part.abs().max()) for part in expected]
    off = (float((a.cpu() - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return max(each / max(size, 1e-3 * max(sizes)) for each, size in zip(off, sizes, strict=True))


def _numbers(planner: Planner, map: Tensor, goal: Tensor, precision: str = "float32") -> list[Tensor]:
    planner.zero_grad()
    with autocast(precision, map.device):
        logits = planner(map, goal)
    logits.float().square().mean().backward()
    gradients = [weights.grad for weights in planner.parameters() if weights.grad is not None]
    return [logits.detach().float(), *(gradient.detach().clone() for gradient in gradients)]


def agreement(run: Run) -> Rows:
    """Compare every core with itself on the CPU, in torch's own operations, at exactly K steps."""
    map, goal, _ = inputs_of(problems_of(run.sizes[0], run.batch))
    map = 0.5 * map + 0.5 * torch.rand(map.shape, generator=torch.Generator().manual_seed(0))  # nothing ties
    rows = []
    for core in CORES:
        for adjoint in ("unrolled", "implicit"):
            fixed = {} if adjoint == "unrolled" else {"tolerance": 0.0, "tolerance_bwd": 0.0}
            torch.manual_seed(0)
            reference = build_planner(run.spec(core, adjoint, **fixed), kernel="reference")
            expected = _numbers(reference, map, goal)
            planner = build_planner(run.spec(core, adjoint, **fixed))
            planner.load_state_dict(reference.state_dict())
            planner.to(run.device)
            given = map.to(run.device), goal.to(run.device)
            found = _difference(_numbers(planner, *given), expected)
            half = _difference(_numbers(planner, *given, "bfloat16")[:1], expected[:1])
            rows.append({"core": core, "adjoint": adjoint, "float32": found, "bfloat16_logits": half})
            _expect(found <= AGREES, f"{core}, {adjoint}: differs from the CPU by {found:.1e}")
    return rows


def conformance(run: Run) -> Rows:
    """Run the checks of cores on the device."""
    cores = ("vin",) if run.tiny else tuple(CORES)
    adjoints = ("implicit",) if run.tiny else tuple(ADJOINTS)
    every = core_checks.EVERY_ADJOINT[:2] if run.tiny else core_checks.EVERY_ADJOINT
    rows = []
    with checked_on(run.device):
        for core in cores:
            checks = [
                (check.__name__, adjoint, partial(check, core, adjoint)) for adjoint in adjoints for check in every
            ]
            checks += [(check.__name__, "", partial(check, core)) for check in core_checks.EVERY_CORE]
            for name, adjoint, check in checks:
                try:
                    check()
                    said = ""
                except (AssertionError, RuntimeError) as error:
                    said = str(error).partition("\n")[0] or type(error).__name__
                rows.append({"core": core, "adjoint": adjoint, "check": name, "wrong": said})
    wrong = [row for row in rows if row["wrong"]]
    _expect(not wrong, f"{len(wrong)} of {len(rows)} checks fail, the first: {wrong[:1]}")
    return rows


def _milliseconds(run: Run, work: Callable[[], Any], rounds: int = 20) -> float:
    """Return the median time of the work, done."""

    wait = torch.cuda.synchronize if run.device.type == "cuda" else lambda: None
    times = []
    for _ in range(3 if run.tiny else rounds + 3):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[-rounds:])


def kernels(run: Run) -> Rows:
    """Compare the solves on the chip with the reference's on the device, and their times."""
    rows = []
    for core in ("vin", "contractive", "reachability"):
        for size in run.sizes:
            torch.manual_seed(0)
            planner = build_planner(run.spec(core)).to(run.device)
            map, goal, _ = (part.to(run.device) for part in inputs_of(problems_of(size, run.batch)))
            solver = replace(planner.solver, tolerance=0.0)
            with torch.no_grad():
                step = encoded(planner.core, torch.cat([map, goal], dim=1))
                rows.append(_kernel_row(run, core, size, step, solver))
    return rows


def _kernel_row(run: Run, core: str, size: int, step: Any, solver: ForwardIteration) -> dict[str, Any]:
    from planners.compiled.on_chip.solver import on_chip

    prepared = step.prepared() if hasattr(step, "prepared") else step
    v0 = prepared.initial_value()
    expected = solver.solve(prepared, v0)
    row = {"core": core, "size": size, "k": solver.max_steps}
    row["reference_ms"] = _milliseconds(run, lambda: solver.solve(prepared, v0))
    chip = on_chip(prepared, solver, None)
    if chip is None:
        _expect(run.device.type != "cuda", f"{core} {size}x{size}: no kernel takes it")
        return row | {"chip_ms": None, "difference": None}
    found = chip.solve(prepared, v0)
    difference = _difference([found.value], [expected.value.cpu()])
    _expect(difference <= AGREES, f"{core} {size}x{size}: the kernel differs by {difference:.1e}")
    _expect(bool((found.steps == expected.steps).all()), f"{core} {size}x{size}: the kernel takes other steps")
    return row | {"chip_ms": _milliseconds(run, lambda: chip.solve(prepared, v0)), "difference": difference}


def steps(run: Run) -> Rows:
    """Time training steps: every core, unrolled and implicit, and for three of them the plain loop and torchdeq."""
    from benchmarks import planner_baselines as others

    rows = []
    for size in run.sizes[:2]:
        map, goal, label = (part.to(run.device) for part in inputs_of(problems_of(size, run.batch)))

        def timed(core: str, method: str, work: Callable[[], Tensor], size: int = size, label: Tensor = label) -> None:
            def step() -> None:
                functional.cross_entropy(work(), label).backward()

            rows.append({"core": core, "size": size, "k": run.steps, "method": method, "ms": _milliseconds(run, step)})

        for core in CORES:
            for adjoint in ("unrolled", "implicit"):
                # Exactly K steps, whatever the weights.
                fixed = {} if adjoint == "unrolled" else {"tolerance": 0.0, "tolerance_bwd": 0.0}
                for kernel in ("auto", "reference"):
                    torch.manual_seed(0)
                    planner = build_planner(run.spec(core, adjoint, **fixed), kernel=kernel).to(run.device)
                    timed(core, f"{adjoint}, {kernel}", partial(planner, map, goal))
        for core in ("vin", "symvin", "conv_gppn"):
            net, x = build_planner(run.spec(core)).core.to(run.device), torch.cat([map, goal], dim=1)
            k, k_bwd = run.steps, 3 if run.tiny else 15
            loop = partial(others.loop_of, net, x)
            timed(core, "plain loop", lambda loop=loop, k=k: others.unrolled(loop(), k)[0])
            timed(core, "torchdeq", lambda loop=loop, k=k, k_bwd=k_bwd: others.in_torchdeq(loop(), k, k_bwd, 0.0)[0])
    return rows


def graphs(run: Run) -> Rows:
    """Train an epoch of every core with and without graphs."""
    problems, training = problems_of(run.sizes[0], 8 * run.batch), TrainingSpec(epochs=1, batch_size=run.batch)
    rows = []
    for core in CORES:
        spec = run.spec(core)
        reason = refusal(run.device, spec, training)
        _expect(run.device.type != "cuda" or not reason, f"{core}: {reason}")
        found = {}
        for name in ("plain",) if reason else ("plain", "graphs"):
            given = (spec, training, problems, problems[:0])
            trainer = Trainer(*given, moves=FOUR, seed=0, device=str(run.device), graphs=name == "graphs")
            record = trainer.run_epoch()
            found[f"{name}_ms"] = 1e3 * (record.forward_seconds + record.backward_seconds)
            found[f"{name}_loss"] = record.train_loss
        rows.append({"core": core, "refused": reason, **found})
        if not reason:
            off = abs(found["graphs_loss"] - found["plain_loss"])
            _expect(off <= AGREES * abs(found["plain_loss"]), f"{core}: losses differ by {off:.1e} with graphs")
    return rows


def memory(run: Run) -> Rows:
    """Exceed a trainer's limit, and where there is one the device's own, and train on."""
    problems = problems_of(9, 16)
    spec, training = run.spec("vin", "unrolled"), TrainingSpec(epochs=1, batch_size=8)

    def trained(limit: int | None) -> Trainer:
        trainer = Trainer(
            spec, training, problems, problems[:0], moves=FOUR, seed=0, device=str(run.device), memory_limit_bytes=limit
        )
        trainer.run_epoch()
        return trainer

    peak = trained(None)._peak_bytes
    rows: Rows = [{"limit": None, "peak_bytes": peak}]
    try:
        trained(peak // 2)
    except MemoryLimitExceeded as error:
        rows.append({"limit": peak // 2, "peak_bytes": error.peak_bytes})
    _expect(len(rows) == 2, "a limit of half the peak stops nothing")
    if run.device.type == "cuda":
        try:
            torch.empty(2**50, dtype=torch.uint8, device=run.device)
        except torch.OutOfMemoryError:
            rows.append({"limit": "device", "peak_bytes": 2**50})
        _expect(len(rows) == 3, "a petabyte fits")
    _expect(trained(None)._peak_bytes > 0, "no training after memory ran out")
    return rows


def _sweep(run: Run, name: str, profile: str | None, *settings: str) -> Rows:
    """Run a sweep on the device in a storage of its own, and return what its trials say; if tiny, of one planner."""
    with tempfile.TemporaryDirectory(prefix="idp-gpu-") as storage:
        options = ["--storage", storage, "--set", f"execution.device={run.device.type}"]
        options += [] if profile is None else ["--profile", profile]
        options += ["--in-process", "--only", "planner=id-vin"] if run.tiny else []
        options += [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "orchestrator", "run", str(SOURCE / "sweeps" / f"{name}.yaml"), *options]
        done = subprocess.run(command, cwd=storage, env=os.environ | _FOUND, capture_output=True, text=True)
        rows = []
        for path in sorted(Path(storage).glob("trials/*/result.json")):
            result, spec = json.loads(path.read_text()), json.loads(path.with_name("spec.json").read_text())
            found = {name: result.get(name) for name in _TOLD}
            made = result.get("provenance", {})
            found |= {name: made.get(name) for name in ("accelerator", "float32", "exclusive")}
            planner = spec["planner"]
            rows.append(
                {"core": planner.get("core"), "k": planner.get("k_fwd"), "adjoint": planner.get("adjoint"), **found}
            )
    _expect(done.returncode == 0, f"idp run {name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    _expect(
        bool(rows) and all(row["status"] == "COMPLETED" for row in rows), f"{name}: not all trials completed: {rows}"
    )
    on_cpu = [row for row in rows if row["accelerator"] == "cpu"]
    _expect(run.device.type == "cpu" or not on_cpu, f"{name}: trials ran on the CPU")
    return rows


_FOUND = {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
_TOLD = ("status", "test_success_rate", "forward_seconds", "backward_seconds", "peak_bytes", "train_seconds", "kernel")


def figure6(run: Run) -> Rows:
    """Train the smoke profile of Figure 6, a device to each trial (if tiny, in one process), and return their times."""
    rows = _sweep(run, "figure6", "smoke", "resources.exclusive=true")
    # In one process, which tiny means, nobody keeps other trials off.
    _expect(
        run.tiny or all(row["exclusive"] for row in rows), "trials shared the device, though they were to have it alone"
    )
    return rows


def quickstart(run: Run) -> Rows:
    return _sweep(run, "quickstart", "smoke" if run.tiny else None)


SECTIONS = (agreement, conformance, kernels, steps, graphs, memory, figure6, quickstart)


def missing(device: torch.device) -> str:
    """Return what is missing for a run on this device, in one line; empty where nothing is."""
    if device.type not in ("cpu", "cuda"):
        return f"device: expected 'cuda' or 'cpu', got {str(device)!r}"
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        return (
            f"no GPU: torch {torch.__version__} (built for {built}) finds none; --device cpu runs the same on the CPU"
        )
    return ""


def examined(section: Callable[[Run], Rows], run: Run) -> dict[str, Any]:
    """Return what a section found, and whether all in it holds."""
    started = time.perf_counter()
    try:
        found: dict[str, Any] = {"holds": True, "rows": section(run)}
    except Exception as error:  # told in the file; the other sections still say what they find
        found = {"holds": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def as_text(results: dict[str, Any]) -> str:
    """Return the results as a short table."""
    lines = [f"{results['accelerator']}, torch {results['versions'].get('torch', '?')}"]
    for name, found in results["sections"].items():
        verdict = "holds" if found["holds"] else "FAILS"
        lines.append(f"{name:12} {verdict}  {found['seconds']:8.1f} s  {found.get('error', '')}".rstrip()[:200])
        if name in ("kernels", "steps", "graphs"):
            for row in found.get("rows", []):
                told = (
                    f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                )
                lines.append("    " + ", ".join(told))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, write the file, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-test.json"))
    parser.add_argument("--tiny", action="store_true", help="sizes at which it only runs")
    parser.add_argument("--only", default=",".join(names := [one.__name__ for one in SECTIONS]), help="with commas")
    options = parser.parse_args(arguments)
    asked = options.only.split(",")
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"--only: expected some of {', '.join(names)}, got {unknown[0]}")
    try:
        run = Run(torch.device(options.device), options.tiny)
    except RuntimeError:
        parser.error(f"--device: expected 'cuda' or 'cpu', got {options.device!r}")
    if reason := missing(run.device):
        print(f"gpu-test: {reason}", file=sys.stderr)
        return 2
    ieee_float32()
    made = provenance("", str(run.device), (), False)
    results = {"tiny": run.tiny, **made.model_dump(mode="json"), "sections": {}}
    for section in SECTIONS:
        if section.__name__ in asked:
            results["sections"][section.__name__] = examined(section, run)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(as_text(results))
    return 0 if all(found["holds"] for found in results["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
