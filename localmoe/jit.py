"""The one place that decides how Numba compiles: caching, fast-math flags, target and instruction set.

Numba's own cache does not notice a change in a callee that lives in another file, so compiled code is kept in a
folder whose name is a hash over all kernel sources, Numba's version, the CPU and the instruction set in use.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import platformdirs
from numba.core import config as numba_config
from numba.core import types
from numba.core.types.misc import unliteral

from localmoe.errors import UsageError

# never nnan or ninf: a NaN in a model must come out as a NaN, not as anything
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

# CodeGenPrepare turns int64 addresses into offsets from a null pointer, which LLVM, run once more after inlining, takes
# to alias nothing: stores vanished (Q4_K's scales with an importance matrix). Without this option it adds integers.
llvm.set_option("", "-addr-sink-using-gep=false")

ISAS = ("avx512vnni", "avxvnni", "avx2", "neon", "generic")
_COMPILED = ("jit.py", "kernels/*.py", "quants/*.py", "model/forward*.py", "model/plan.py", "model/workers.py")

ARM_TRIPLES = ("aarch64", "arm64")

# What LLVM does not ask an Arm system for: its list of the host's features knows no dot product on Linux, and nothing
# elsewhere. (feature, word of Linux's auxiliary vector, its bit as in asm/hwcap.h, macOS's name)
_HWCAP, _HWCAP2 = 16, 26
_ARM_FEATURES = (
    ("dotprod", _HWCAP, 20, b"hw.optional.arm.FEAT_DotProd"),
    ("fullfp16", _HWCAP, 10, b"hw.optional.arm.FEAT_FP16"),
    ("i8mm", _HWCAP2, 13, b"hw.optional.arm.FEAT_I8MM"),
)


def _arm_has(word: int, bit: int, name: bytes) -> bool:
    """Whether this Arm machine has a feature, by the system's word."""
    libc: Any = ctypes.CDLL(None)
    if sys.platform == "darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        return libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value == 1
    libc.getauxval.argtypes, libc.getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return bool(libc.getauxval(word) >> bit & 1)


def _complete_arm_features() -> None:
    """Let Numba compile for what an Arm CPU has, unless the environment chooses the CPU."""
    chosen = numba_config.CPU_NAME or numba_config.CPU_FEATURES is not None
    if chosen or sys.platform not in ("linux", "darwin") or not llvm.get_process_triple().startswith(ARM_TRIPLES):
        return
    found = [f"+{feature}" for feature, word, bit, name in _ARM_FEATURES if _arm_has(word, bit, name)]
    if found:
        numba_config.CPU_FEATURES = ",".join(filter(None, [llvm.get_host_cpu_features().flatten(), *found]))


_complete_arm_features()


def target_features() -> set[str]:
    """CPU features Numba compiles for: the host's, or what NUMBA_CPU_FEATURES says; unknown for a NUMBA_CPU_NAME."""
    if numba_config.CPU_FEATURES is not None:
        return {f[1:] for f in numba_config.CPU_FEATURES.split(",") if f.startswith("+")}
    if numba_config.CPU_NAME:
        return set()
    return {name for name, on in llvm.get_host_cpu_features().items() if on}


def _detect_isa() -> str:
    features = target_features()
    if {"avx512vnni", "avx512bw", "avx512vl"} <= features:
        return "avx512vnni"
    if "avx2" in features and "fma" in features:
        return "avxvnni" if "avxvnni" in features else "avx2"
    if "dotprod" in features and llvm.get_process_triple().startswith(ARM_TRIPLES):
        return "neon"
    return "generic"


def _require_half_conversion() -> None:
    """Without F16C, LLVM calls a conversion routine that Numba's process does not have, and crashes."""
    x86 = llvm.get_process_triple().startswith(("x86_64", "i686", "amd64"))
    named = bool(numba_config.CPU_NAME) and numba_config.CPU_FEATURES is None
    lacking = numba_config.CPU_NAME in ("x86-64", "generic") if named else "f16c" not in target_features()
    if x86 and lacking:
        raise UsageError("kernels need a CPU, or NUMBA_CPU_FEATURES, with F16C (every x86 laptop since 2013)")


@cache
def isa() -> str:
    """The instruction set kernels are written for: one of `ISAS`, by detection or from LOCALMOE_ISA."""
    _require_half_conversion()
    wanted = os.environ.get("LOCALMOE_ISA")
    if not wanted:
        return _detect_isa()
    if wanted not in ISAS:
        raise UsageError("unknown instruction set in LOCALMOE_ISA", got=wanted, expected=" or ".join(ISAS))
    return wanted


@cache
def cache_dir() -> Path:
    """The folder that holds compiled code for exactly these sources on exactly this CPU."""
    here = Path(__file__).parent
    key = hashlib.sha256()
    for pattern in _COMPILED:
        for path in sorted(here.glob(pattern)):
            key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    cpu = numba_config.CPU_NAME or llvm.get_host_cpu_name()
    features = numba_config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()
    key.update("|".join((numba.__version__, cpu, features, isa())).encode())
    root = Path(os.environ.get("LOCALMOE_CACHE") or platformdirs.user_cache_dir("localmoe"))
    folder = root / "jit" / key.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # a read-only home: compile anew for this process
        folder = Path(tempfile.mkdtemp(prefix="localmoe-jit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _cached(decorate: Callable[[], Any]) -> Any:
    """Run a Numba decorator with its cache pointed at `cache_dir()`: Numba picks the place while decorating."""
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(cache_dir())
    try:
        return decorate()
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
        return _unspecialised(_cached(lambda: numba.njit(**options, cache=True)(f)))

    return decorate if function is None else decorate(function)


def _unspecialised(dispatcher: Any) -> Any:
    """Let a call with a constant compile nothing anew: Numba makes a version of its own for each integer in a source.

    LLVM sees the constant all the same where it inlines the call.
    """
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(
        [unliteral(a) for a in args], {name: unliteral(a) for name, a in kws.items()}
    )
    return dispatcher


@cache
def kernel_address(function: Callable[..., None], n_args: int) -> int:
    """Address of `function(int64 * n_args) -> void` compiled as a C function, from the cache where it is there.

    Calls go through the address, so the caller does not change and need not be compiled again when a type is added.
    """
    signature = types.void(*[types.int64] * n_args)
    compiled = _cached(lambda: numba.cfunc(signature, nopython=True, cache=True, fastmath=FASTMATH)(function))
    _ALIVE.append(compiled)
    return int(compiled.address)


_ALIVE: list[Any] = []  # a cfunc's code lives as long as its object
