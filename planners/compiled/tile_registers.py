"""Tile registers (Intel AMX) inside numba: whether there are some, and what loads, stores and multiplies them.

There are eight for each thread, of 16 rows of 64 bytes. LLVM's functions name them by number, and leave alone what is
in them between two calls.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from planners.compiled.simd import address

_BYTES = ir.IntType(8).as_pointer()
_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _ARCH_PRCTL = 0x1023, 18, 158


@cache
def available() -> bool:
    """Return whether this processor has tile registers for bfloat16 and the system lets this process use them."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    features = binding.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16") and features.get("avx512f")):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0


def _emit(builder: Any, name: str, *args: Any) -> None:
    """Call one of LLVM's functions for tile registers; they are numbered, and what is in them outlives the call."""
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _register(number: int) -> Any:
    return ir.Constant(ir.IntType(8), number)


def move(name: str, first: int, places: tuple[int, ...], stride: int) -> Any:
    """Return what loads or stores registers from `first` on, at places [bytes] beyond array[index]."""

    @intrinsic
    def moved(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            start = builder.bitcast(address(context, builder, signature.args[0], *args), _BYTES)
            for i, place in enumerate(places):
                at = builder.gep(start, [ir.Constant(ir.IntType(64), place)])
                _emit(builder, name, _register(first + i), at, ir.Constant(ir.IntType(64), stride))
            return context.get_dummy_value()

        return types.void(array, types.intp), codegen

    return moved


def mover(name: str, *registers: int) -> Any:
    """Return move(array, *index, stride), which loads or stores registers, rows `stride` floats apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, *indices, stride = args
        stride = builder.mul(stride, ir.Constant(ir.IntType(64), 4))
        for register, index in zip(registers, indices, strict=True):
            place = address(context, builder, signature.args[0], array, index)
            _emit(builder, name, _register(register), builder.bitcast(place, _BYTES), stride)
        return context.get_dummy_value()

    if len(registers) == 1:

        @intrinsic
        def moved(typing_context: Any, array: Any, index: Any, stride: Any) -> tuple[Any, Callable]:
            return types.void(array, types.intp, types.intp), codegen
    else:

        @intrinsic
        def moved(typing_context: Any, array: Any, first: Any, second: Any, stride: Any) -> tuple[Any, Callable]:
            return types.void(array, types.intp, types.intp, types.intp), codegen

    return moved


@intrinsic
def configure(typing_context: Any, array: Any) -> tuple[Any, Callable]:
    """Load the configuration of this thread's registers, 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = address(context, builder, signature.args[0], args[0], ir.Constant(ir.IntType(64), 0))
        _emit(builder, "ldtilecfg", builder.bitcast(start, _BYTES))
        return context.get_dummy_value()

    return types.void(array), codegen


def on_registers(*calls: tuple[str, tuple[int, ...]]) -> Any:
    """Return what does these operations on registers."""

    @intrinsic
    def act(typing_context: Any) -> tuple[Any, Callable]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for name, registers in calls:
                _emit(builder, name, *(_register(number) for number in registers))
            return context.get_dummy_value()

        return types.void(), codegen

    return act
