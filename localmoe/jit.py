"""The one place that decides how Numba compiles: caching, fast-math flags, target and instruction set."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import config as numba_config
from numba.core import sigutils, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.event import Listener, register
from numba.core.types.misc import unliteral

from localmoe.jit_cache import SignatureCache
from localmoe.target import cache_dir, chosen_cpu, on_compile

# never nnan or ninf: a NaN in a model must come out as a NaN, not as anything
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

# CodeGenPrepare turns int64 addresses into offsets from a null pointer, which LLVM, run once more after inlining, takes
# to alias nothing: stores vanished (Q4_K's scales with an importance matrix). Without this option it adds integers.
llvm.set_option("", "-addr-sink-using-gep=false")
numba_config.CPU_FEATURES = chosen_cpu()[1]


class _Part(JITCodeLibrary):  # type: ignore[misc]  # numba has no types
    """What compiled code takes in when it calls a function: its LLVM code, which is optimised there and not before.

    Numba would optimise it, make machine code of it and give Python an entry to that, with all its callees anew.
    """

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, env: Any) -> None:
        pass  # of Python's objects, which this code has none of

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _PartCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, which makes a `_Part`."""

    def define_pipelines(self) -> Any:
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


class _Tell(Listener):  # type: ignore[misc]
    """Tells who wants to know that Numba begins to compile."""

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        for listener in on_compile:
            listener()

    def on_end(self, event: Any) -> None:
        pass


register("numba:compile", _Tell())


def _cache_of(function: Callable[..., Any]) -> SignatureCache:
    """A cache in `cache_dir()`: Numba picks the place while it is made."""
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(cache_dir())
    try:
        return SignatureCache(function)
    finally:
        numba_config.CACHE_DIR = before


def njit(function: Any = None, *, fast: bool = False, inline: bool = False) -> Any:
    """Compile `function` on first call, without the GIL and cached on disk.

    `fast` allows reassociation and contraction (kernels); encoders that must be bit-exact leave it off.
    `inline` inlines at Numba's level, for functions that take SIMD values.
    """

    def decorate(f: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH if fast else False}
        if inline:
            return numba.njit(**options, inline="always")(f)
        part = numba.njit(**options, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler)(f)
        dispatcher = numba.njit(**options)(f)
        dispatcher._cache = _cache_of(f)
        return _called_as(part, dispatcher)

    return decorate if function is None else decorate(function)


def _called_as(part: Any, dispatcher: Any) -> Any:
    """`dispatcher`, which compiled code calls as `part`: without the wrappers and the machine code that Python needs.

    A call with a constant compiles nothing anew: Numba makes a version of its own for each integer in a source. LLVM
    sees the constant all the same where it inlines the call.
    """
    dispatcher.get_call_template = lambda args, kws: part.get_call_template(
        [unliteral(a) for a in args], {name: unliteral(a) for name, a in kws.items()}
    )
    dispatcher.get_overload = part.get_overload
    return dispatcher


def compile_c(function: Callable[..., None], n_args: int, *, in_cache: bool = True) -> Any:
    """`function(int64 * n_args) -> void` as a compiled C function, Numba's object, from the cache where it is there."""
    signature = types.void(*[types.int64] * n_args)
    plain = getattr(function, "py_func", function)
    compiled: Any = CFunc(plain, sigutils.normalize_signature(signature), {}, {"nopython": True, "fastmath": FASTMATH})
    if in_cache:
        compiled._cache = _cache_of(plain)
    compiled.compile()
    _ALIVE.append(compiled)
    return compiled


@cache
def kernel_address(function: Callable[..., None], n_args: int) -> int:
    """Address of `compile_c`'s function.

    Calls go through the address, so the caller does not change and need not be compiled again when a type is added.
    """
    return int(compile_c(function, n_args).address)


_ALIVE: list[Any] = []  # a cfunc's code lives as long as its object
