"""What a GPU does with all of this: is it right, does it keep its limits, how fast is it. `make gpu-test` runs it.

    python -m benchmarks.gpu [--device cuda] [--out gpu-test.json] [--tiny] [--only agreement,kernels]

Ends with 0 where all holds, 1 where something does not, and 2 where there is no such device. What was found is in one
file: a section each with its rows and whether it holds; times are printed as they come.

- agreement: logits and gradients of every core, float32, are those of the CPU; steps in bfloat16 stay near them
- conformance: the checks of `planners.conformance` on the device
- kernels: the iterations on the chip are the reference's, and their times beside it
- steps: times of a training step of every core beside the plain loop and torchdeq
- jax: the same where JAX is installed and finds the device
- graphs: training steps as CUDA graphs give the losses of those without, and the times of a step once captured
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
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
Row = dict[str, Any]
Rows = Iterator[Row]
_ADJOINTS = ("unrolled", "implicit")
_WRITTEN_AGAIN = ("vin", "symvin", "conv_gppn")  # with the means of others, to be timed beside ours


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


def _exactly_k(adjoint: str) -> dict[str, Any]:
    """Return what makes a planner take all its steps, whatever its weights."""
    return {} if adjoint == "unrolled" else {"tolerance": 0.0, "tolerance_bwd": 0.0}


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
    for core in CORES:
        for adjoint in _ADJOINTS:
            fixed = _exactly_k(adjoint)
            torch.manual_seed(0)
            reference = build_planner(run.spec(core, adjoint, **fixed), kernel="reference")
            expected = _numbers(reference, map, goal)
            planner = build_planner(run.spec(core, adjoint, **fixed))
            planner.load_state_dict(reference.state_dict())
            planner.to(run.device)
            given = map.to(run.device), goal.to(run.device)
            found = _difference(_numbers(planner, *given), expected)
            half = _difference(_numbers(planner, *given, "bfloat16")[:1], expected[:1])
            yield {"core": core, "adjoint": adjoint, "float32": found, "bfloat16_logits": half}
            _expect(found <= AGREES, f"{core}, {adjoint}: differs from the CPU by {found:.1e}")


def conformance(run: Run) -> Rows:
    """Run the checks of cores on the device."""
    cores = ("vin",) if run.tiny else tuple(CORES)
    adjoints = ("implicit",) if run.tiny else tuple(ADJOINTS)
    every = core_checks.EVERY_ADJOINT[:2] if run.tiny else core_checks.EVERY_ADJOINT
    wrong: list[str] = []
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
                    wrong.append(f"{core} {adjoint} {name}: {said}")
                yield {"core": core, "adjoint": adjoint, "check": name, "wrong": said}
    _expect(not wrong, f"{len(wrong)} checks fail, the first: {wrong[:1]}")


def _milliseconds(run: Run, work: Callable[[], Any], rounds: int = 10) -> float:
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
    for core in ("vin", "contractive", "reachability"):
        for size in run.sizes:
            torch.manual_seed(0)
            planner = build_planner(run.spec(core)).to(run.device)
            map, goal, _ = (part.to(run.device) for part in inputs_of(problems_of(size, run.batch)))
            solver = replace(planner.solver, tolerance=0.0)
            with torch.no_grad():
                step = encoded(planner.core, torch.cat([map, goal], dim=1))
                yield _kernel_row(run, core, size, step, solver)


def _kernel_row(run: Run, core: str, size: int, step: Any, solver: ForwardIteration) -> Row:
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

    for size in run.sizes[:2]:
        map, goal, label = (part.to(run.device) for part in inputs_of(problems_of(size, run.batch)))

        def timed(core: str, method: str, work: Callable[[], Tensor], size: int = size, label: Tensor = label) -> Row:
            def step() -> None:
                functional.cross_entropy(work(), label).backward()

            return {"core": core, "size": size, "k": run.steps, "method": method, "ms": _milliseconds(run, step)}

        for core, adjoint, kernel in product(CORES, _ADJOINTS, ("auto", "reference")):
            torch.manual_seed(0)
            planner = build_planner(run.spec(core, adjoint, **_exactly_k(adjoint)), kernel=kernel).to(run.device)
            yield timed(core, f"{adjoint}, {kernel}", partial(planner, map, goal))
        for core in _WRITTEN_AGAIN:
            net, x = build_planner(run.spec(core)).core.to(run.device), torch.cat([map, goal], dim=1)
            k, k_bwd = run.steps, 3 if run.tiny else 15
            loop = partial(others.loop_of, net, x)
            yield timed(core, "plain loop", lambda loop=loop, k=k: others.unrolled(loop(), k)[0])
            deq = partial(others.in_torchdeq, steps=k, backward_steps=k_bwd, tolerance=0.0)
            yield timed(core, "torchdeq", lambda loop=loop, deq=deq: deq(loop())[0])


def jax(run: Run) -> Rows:
    """Time the same training steps in JAX, if it is there."""
    xla = _jax(run.device)
    if xla is None:
        return
    for size, core, adjoint in product(run.sizes[:2], _WRITTEN_AGAIN, _ADJOINTS):
        map, goal, label = inputs_of(problems_of(size, run.batch))
        k, k_bwd = run.steps, 3 if run.tiny else 15
        given = build_planner(run.spec(core)).core, torch.cat([map, goal], dim=1), label
        made = xla.steps_of(*given, k, k_bwd, 0.0, unrolled=adjoint == "unrolled")
        timed = _milliseconds(run, partial(xla.run_both, made))
        yield {"core": core, "size": size, "k": k, "method": f"{adjoint}, jax", "ms": timed}


def _jax(device: torch.device) -> Any:
    """Return the same steps in JAX, in float32 as IEEE has it; None where there is no JAX for the device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ImportError:
        return None
    if jax.default_backend() != {"cuda": "gpu"}.get(device.type, device.type):
        return None
    jax.config.update("jax_default_matmul_precision", "highest")
    from benchmarks import planner_xla

    return planner_xla


def graphs(run: Run) -> Rows:
    """Train two epochs of four of every core with and without graphs; the second's steps are all replayed."""
    training, wrong = TrainingSpec(epochs=4, batch_size=run.batch), []  # in the last, reachability learns no gates
    for size, core, adjoint in product(run.sizes[:2], CORES, _ADJOINTS):
        problems, spec = problems_of(size, 8 * run.batch), run.spec(core, adjoint, **_exactly_k(adjoint))
        row: Row = {"core": core, "size": size, "adjoint": adjoint, "refused": refusal(run.device, spec, training)}
        try:
            for name in ("plain",) if row["refused"] else ("plain", "graphs"):
                given = (spec, training, problems, problems[:0])
                trainer = Trainer(*given, moves=FOUR, seed=0, device=str(run.device), graphs=name == "graphs")
                trainer.run_epoch()
                record = trainer.run_epoch()
                row[f"{name}_ms"] = 1e3 * (record.forward_seconds + record.backward_seconds)
                row[f"{name}_loss"] = record.train_loss
        except RuntimeError as error:  # of the capture; the other cores still say what they do
            row["wrong"] = str(error).partition("\n")[0]
        yield row
        apart = "graphs_loss" in row and not abs(row["graphs_loss"] / row["plain_loss"] - 1.0) <= AGREES
        if apart or "wrong" in row or (row["refused"] and run.device.type == "cuda"):
            wrong.append(f"{core} {size}x{size} {adjoint}")
    _expect(not wrong, f"not as without graphs: {', '.join(wrong)}")


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
    yield {"limit": None, "peak_bytes": peak}
    try:
        trained(peak // 2)
        raise AssertionError("a limit of half the peak stops nothing")
    except MemoryLimitExceeded as error:
        yield {"limit": peak // 2, "peak_bytes": error.peak_bytes}
    if run.device.type == "cuda":
        try:
            torch.empty(2**50, dtype=torch.uint8, device=run.device)
            raise AssertionError("a petabyte fits")
        except torch.OutOfMemoryError:
            yield {"limit": "device", "peak_bytes": 2**50}
    _expect(trained(None)._peak_bytes > 0, "no training after memory ran out")


def _sweep(run: Run, name: str, profile: str | None, *settings: str) -> Rows:
    """Run a sweep on the device in a storage of its own, and say what its trials say; if tiny, of one planner."""
    with tempfile.TemporaryDirectory(prefix="idp-gpu-") as storage:
        options = ["--storage", storage, "--set", f"execution.device={run.device.type}"]
        options += [] if profile is None else ["--profile", profile]
        options += ["--in-process", "--only", "planner=id-vin"] if run.tiny else []
        options += [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "orchestrator", "run", str(SOURCE / "sweeps" / f"{name}.yaml"), *options]
        done = subprocess.run(command, cwd=storage, env=os.environ | _FOUND, capture_output=True, text=True)
        rows = [_trial_row(path) for path in sorted(Path(storage).glob("trials/*/result.json"))]
    yield from rows
    _expect(done.returncode == 0, f"idp run {name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    left = [row for row in rows if row["status"] != "COMPLETED"]
    _expect(bool(rows) and not left, f"{name}: {len(left)} of {len(rows)} trials did not complete: {left[:1]}")
    on_cpu = [row for row in rows if row["accelerator"] == "cpu"]
    _expect(run.device.type == "cpu" or not on_cpu, f"{name}: trials ran on the CPU")


def _trial_row(path: Path) -> Row:
    result, spec = json.loads(path.read_text()), json.loads(path.with_name("spec.json").read_text())
    row = {name: spec["planner"].get(name) for name in ("core", "adjoint", "k_fwd")}
    row |= {name: result.get(name) for name in _TOLD}
    return row | {name: result.get("provenance", {}).get(name) for name in ("accelerator", "float32", "exclusive")}


_FOUND = {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
_TOLD = (
    "status", "reason", "test_success_rate", "forward_seconds", "backward_seconds", "peak_bytes", "train_seconds",
    "kernel",
)  # fmt: skip


def figure6(run: Run) -> Rows:
    """Train the smoke profile of Figure 6, a device to each trial (if tiny, in one process)."""
    for row in _sweep(run, "figure6", "smoke", "resources.exclusive=true"):
        yield row
        # In one process, which tiny means, nobody keeps other trials off.
        _expect(run.tiny or row["exclusive"], "trials shared the device, though they were to have it alone")


def quickstart(run: Run) -> Rows:
    """Train the quickstart."""
    yield from _sweep(run, "quickstart", "smoke" if run.tiny else None)


SECTIONS = (agreement, conformance, kernels, steps, jax, graphs, memory, figure6, quickstart)
_TIMED = ("kernels", "steps", "jax", "graphs")
"""Whose rows are printed as they come."""


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
    rows: list[Row] = []
    found: dict[str, Any] = {"holds": True, "rows": rows}
    try:
        for row in section(run):
            rows.append(row)
            if section.__name__ in _TIMED:
                print("    " + ", ".join(_told(row)), flush=True)
    except Exception as error:  # told in the file; the other sections still say what they find
        found |= {"holds": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def _told(row: Row) -> Iterator[str]:
    for key, value in row.items():
        if value not in (None, ""):
            yield f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"


def as_text(results: dict[str, Any]) -> str:
    """Return which sections hold, a line each."""
    lines = [f"{results['accelerator']}, torch {results['versions'].get('torch', '?')}"]
    for name, found in results["sections"].items():
        verdict = "holds" if found["holds"] else "FAILS"
        lines.append(f"{name:12} {verdict}  {found['seconds']:8.1f} s  {found.get('error', '')}".rstrip()[:200])
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
