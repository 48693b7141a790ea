"""A planner's graph as bytes: torch.export's `.pt2`, that compiled for C++, and ONNX.

What a format needs beside torch is imported when that is asked for.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datagen.shapes import unchecked
from planners.portable.inference_form import FEWEST_CELLS, INPUTS, OUTPUTS, InferenceForm, ring_of
from planners.trial_files import PlannerError

Format = Literal["torch", "aoti", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
ABOUT = "idp.json"
"""Extra file of a `.pt2`, and property of an ONNX model, that says in JSON what it is and how to feed it. Metadata of a
compiled one, which has `offsets` (of the moves, rows and columns in turn) and `wrap` (0 or 1) beside it."""

Run = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Map and goal to the outputs by name."""


def check_installed(format: Format) -> None:
    """Raise where a format can't be written here.

    Raises:
        PlannerError: Packages are missing; names them and the extra that brings them.
    """
    if format == "torch":
        return
    if format == "aoti":
        if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
            raise PlannerError(f"format aoti needs a C++ compiler, and there is no {compiler}; CXX names another")
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PlannerError(
            f"format onnx needs onnx, onnxscript and onnxruntime ({error}): pip install 'idp[export]'"
        ) from error


def exported(form: InferenceForm) -> torch.export.ExportedProgram:
    """Return a planner as a graph for any number of maps of any size.

    Raises:
        PlannerError: No graph can be made of its core.
    """
    batch, height, width = (
        torch.export.Dim(name, min=least)
        for name, least in (("batch", 1), ("height", FEWEST_CELLS), ("width", FEWEST_CELLS))
    )
    sizes = {0: batch, 2: height, 3: width}
    # Sizes that differ from each other and from 1: equal ones would be taken for the same.
    given = (torch.ones(2, 1, 5, 7), torch.zeros(2, 1, 5, 7), torch.tensor(0))
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(form.eval(), given, dynamic_shapes=(sizes, sizes, None))
        except Exception as error:  # exporters raise almost anything of what they can't express
            raise _refusal(f"core {type(form.core).__name__}: no graph can be made of it", error) from error


def written(program: torch.export.ExportedProgram, format: Format, about: Mapping[str, Any]) -> bytes:
    """Return a planner's graph in a format, with what is said in the file.

    Raises:
        PlannerError: The format can't express it, or packages are missing.
    """
    check_installed(format)
    with _quiet():
        try:
            return _WRITERS[format](program, about)
        except Exception as error:  # as above
            raise _refusal(f"format {format} can't express this planner", error) from error


def _refusal(what: str, error: Exception) -> PlannerError:
    reason = (str(error).splitlines() or [""])[0]
    return PlannerError(f"{what} ({type(error).__name__}: {reason:.300})")


def opened(content: bytes, format: Format) -> Run:
    """Return what the bytes compute, by torch or by onnxruntime."""
    if format == "aoti":
        return _loaded(content)
    if format == "torch":
        with _quiet():
            module = torch.export.load(BytesIO(content)).module()

        def by_torch(map: Tensor, goal: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                return dict(zip(OUTPUTS, module(map, goal, torch.tensor(0)), strict=True))

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def by_onnxruntime(map: Tensor, goal: Tensor) -> dict[str, Tensor]:
        given = dict(zip(INPUTS, (map.numpy(), goal.numpy(), np.array(0)), strict=True))
        found = session.run(list(OUTPUTS), given)
        return {name: torch.from_numpy(array) for name, array in zip(OUTPUTS, found, strict=True)}

    return by_onnxruntime


def _torch_bytes(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> bytes:
    for module in program.graph_module.modules():
        for node in list(getattr(getattr(module, "graph", None), "nodes", ())):
            node.meta.pop("stack_trace", None)  # where on this machine the code stood that it comes from
            if node.target is torch.sym_sum:
                _spell_out(node)
    content = BytesIO()
    torch.export.save(program, content, extra_files={ABOUT: json.dumps(about, indent=2)})
    return content.getvalue()


def _aoti_bytes(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> bytes:
    moves = about["moves"]
    metadata = {
        ABOUT: json.dumps(about),
        "offsets": " ".join(str(part) for offset in moves["offsets"] for part in offset),
        "wrap": str(int(moves["wrap"])),
    }
    with TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / "planner.pt2"),
            inductor_configs={"aot_inductor.metadata": metadata},
        )
        return Path(path).read_bytes()


def _loaded(content: bytes) -> Run:
    """Return what a compiled planner computes, which leaves the ring round a map to who calls."""
    with _quiet(), TemporaryDirectory() as folder:
        path = Path(folder) / "planner.pt2"
        path.write_bytes(content)
        module: Any = torch._inductor.aoti_load_package(str(path))
    wrap = module.loader.get_metadata()["wrap"] == "1"

    def by_inductor(map: Tensor, goal: Tensor) -> dict[str, Tensor]:
        ring = 0 if wrap else int(ring_of(map))
        given = (functional.pad(x, (ring, ring, ring, ring)) for x in (map, goal))
        found: dict[str, Tensor] = dict(zip(OUTPUTS, module(*given, torch.tensor(0)), strict=True))
        inner = slice(ring, ring + map.shape[2]), slice(ring, ring + map.shape[3])
        return found | {name: found[name][..., inner[0], inner[1]] for name in ("logits", "actions")}

    return by_inductor


def _spell_out(node: torch.fx.Node) -> None:
    """Write a sum of sizes as additions of two: torch 2.13 makes such sums itself and can't save them."""
    parts: Any = node.args[0]
    total, *others = parts
    with node.graph.inserting_before(node):
        for other in others:
            total = node.graph.call_function(operator.add, (total, other))
            total.meta.update(node.meta)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _onnx_bytes(program: torch.export.ExportedProgram, about: Mapping[str, Any]) -> bytes:
    import onnx

    more: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.sym_stride.int: _stride}
    found = torch.onnx.export(
        program,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        custom_translation_table=more,
        dynamo=True,
        verbose=False,
    )
    assert found is not None
    model = found.model_proto
    used = {name for node in _nodes(model.graph) for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in _nodes(model.graph):
        node.doc_string = ""
        del node.metadata_props[:]  # where on this machine the code stood that it comes from
    model.producer_name, model.doc_string = "idp", str(about.get("feed", ""))
    onnx.helper.set_model_props(model, {ABOUT: json.dumps(about)})
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _stride(self: Any, dim: int) -> Any:
    """Return the stride of a contiguous tensor, which torch asks for where it means a size and ONNX does not have."""
    from onnxscript import opset18

    return opset18.ReduceProd(opset18.Shape(self, start=dim + 1), keepdims=0)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _nodes(inner)


_WRITERS: dict[Format, Callable[[torch.export.ExportedProgram, Mapping[str, Any]], bytes]] = {
    "torch": _torch_bytes,
    "aoti": _aoti_bytes,
    "onnx": _onnx_bytes,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Let exporters keep what they say of their own code, and check no shapes: some sizes have no number yet."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), unchecked():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
