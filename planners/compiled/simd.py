"""Sixteen floats at a time inside numba: the few vector operations that a compiled Bellman step is written in.

numba's own loop vectoriser keeps neither accumulators in registers across an outer loop nor uses 512-bit registers by
default; with these operations a kernel says which values live in registers. They are ordinary LLVM vectors, so on a
processor with narrower registers the same code compiles to several instructions each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, register_model

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


class Lanes(types.Type):
    """The numba type of one vector."""


_FLOAT_LANES, _INT_LANES = Lanes("float32x16"), Lanes("int32x16")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, _FLOATS if fe_type == _FLOAT_LANES else _INTS)


def address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return where array[index] lies."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Return array[index : index + 16] of a contiguous float32 vector; the caller keeps it in bounds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = address(context, builder, signature.args[0], *args)
        value = builder.load(builder.bitcast(place, _FLOATS.as_pointer()))
        value.align = 4
        return value

    return _FLOAT_LANES(array, types.intp), codegen


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> tuple[Any, Callable]:
    """Write array[index : index + 16]: floats into a float32 vector, integers into an int16 vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, lanes = (args[2], _FLOATS)
        if signature.args[2] == _INT_LANES:
            vector, lanes = builder.trunc(vector, _SHORTS), _SHORTS
        place = address(context, builder, signature.args[0], args[0], args[1])
        instruction = builder.store(vector, builder.bitcast(place, lanes.as_pointer()))
        instruction.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def broadcast(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Return sixteen copies of array[index] of a contiguous float32 vector; the caller keeps it in bounds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, builder.load(address(context, builder, signature.args[0], *args)), _FLOATS)

    return _FLOAT_LANES(array, types.intp), codegen


@intrinsic
def item(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable]:
    """Return array[index] for an index known to be in bounds and not negative."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(address(context, builder, signature.args[0], *args))

    return array.dtype(array, types.intp), codegen


@intrinsic
def splat(typing_context: Any, scalar: Any) -> tuple[Any, Callable]:
    """Return sixteen copies of a number: floats from a float, 32-bit integers from an integer."""
    lanes = _FLOAT_LANES if isinstance(scalar, types.Float) else _INT_LANES
    scalar = types.float32 if isinstance(scalar, types.Float) else types.int32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _FLOATS if lanes == _FLOAT_LANES else _INTS)

    return lanes(scalar), codegen


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> tuple[Any, Callable]:
    """Return a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fused = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{LANES}f32")
        return builder.call(fused, args)

    return _FLOAT_LANES(_FLOAT_LANES, _FLOAT_LANES, _FLOAT_LANES), codegen


@intrinsic
def plus(typing_context: Any, a: Any, b: Any) -> tuple[Any, Callable]:
    """Return a + b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return _FLOAT_LANES(_FLOAT_LANES, _FLOAT_LANES), codegen


@intrinsic
def where_greater(typing_context: Any, a: Any, b: Any, x: Any, y: Any) -> tuple[Any, Callable]:
    """Return x where a > b, else y (also where a or b is not a number)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return x(_FLOAT_LANES, _FLOAT_LANES, x, x), codegen


@intrinsic
def nearest_bfloat16(typing_context: Any, a: Any) -> tuple[Any, Callable]:
    """Return the floats nearest to `a` whose lower 16 bits are zero; of two as near, the larger in size."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.add(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [0x8000] * LANES))
        return builder.bitcast(builder.and_(bits, ir.Constant(_INTS, [0xFFFF0000] * LANES)), _FLOATS)

    return _FLOAT_LANES(_FLOAT_LANES), codegen


@intrinsic
def paired(typing_context: Any, even: Any, odd: Any) -> tuple[Any, Callable]:
    """Return words of the upper halves of two floats each, the even one's below, as sixteen floats to be stored."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        below, above = (builder.bitcast(x, _INTS) for x in args)
        below = builder.lshr(below, ir.Constant(_INTS, [16] * LANES))
        above = builder.and_(above, ir.Constant(_INTS, [0xFFFF0000] * LANES))
        return builder.bitcast(builder.or_(below, above), _FLOATS)

    return _FLOAT_LANES(_FLOAT_LANES, _FLOAT_LANES), codegen


@intrinsic
def neighbours(typing_context: Any, a: Any, b: Any) -> tuple[Any, Callable]:
    """Return words of the upper halves of each two neighbours in 32 floats, the first below, as sixteen floats."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        above = ir.Constant(_INTS, [16] * LANES)
        halves = [builder.trunc(builder.lshr(builder.bitcast(x, _INTS), above), _SHORTS) for x in args]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), list(range(2 * LANES)))
        return builder.bitcast(builder.shuffle_vector(*halves, order), _FLOATS)

    return _FLOAT_LANES(_FLOAT_LANES, _FLOAT_LANES), codegen


@intrinsic
def highest(typing_context: Any, a: Any) -> tuple[Any, Callable]:
    """Return the greatest of sixteen floats."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (vector,) = args
        for distance in (8, 4, 2, 1):
            moved = ir.Constant(_INTS, [(lane + distance) % LANES for lane in range(LANES)])
            other = builder.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), moved)
            vector = builder.select(builder.fcmp_ordered(">", vector, other), vector, other)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(_FLOAT_LANES), codegen
