"""The processor's own clock, for timing steps of a microsecond inside compiled code."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types

from localmoe.kernels.simd_emit import intrinsic

# Arm's cycle counter is not for user code, its system counter is; x86 has only the first of these two
_COUNTER = "llvm.readcyclecounter" if "86" in llvm.get_default_triple() else "llvm.readsteadycounter"


@intrinsic
def ticks(typingctx: Any) -> Any:
    """A counter that runs at a constant rate on all cores."""

    def codegen(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.IntType(64), []), _COUNTER), [])

    return types.int64(), codegen
