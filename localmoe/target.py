"""The machine that kernels are compiled for, and where their code is kept; known without importing Numba.

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import platformdirs

from localmoe.errors import UsageError

on_compile: list[Callable[[], None]] = []  # called when Numba begins to compile
ISAS = ("avx512vnni", "avxvnni", "avx2", "neon", "generic")
ARM_TRIPLES = ("aarch64", "arm64")
_ZEN = "znver"  # how LLVM's names of AMD's CPUs begin
_COMPILED = (
    "jit.py", "jit_cache.py", "native.py", "target.py",
    "kernels/*.py", "quants/*.py", "model/forward*.py", "model/plan.py",
)  # fmt: skip

# What LLVM does not ask an Arm system for: its list of the host's features knows no dot product on Linux, and nothing
# elsewhere. (feature, word of Linux's auxiliary vector, its bit as in asm/hwcap.h, macOS's name)
_PASSING = "localmoe-jit-"  # how a folder's name begins that takes the cache's place for one process
_HWCAP, _HWCAP2 = 16, 26
_ARM_FEATURES = (
    ("dotprod", _HWCAP, 20, b"hw.optional.arm.FEAT_DotProd"),
    ("fullfp16", _HWCAP, 10, b"hw.optional.arm.FEAT_FP16"),
    ("i8mm", _HWCAP2, 13, b"hw.optional.arm.FEAT_I8MM"),
)


def numba_is_told() -> bool:
    """Whether the environment or a file in this folder sets anything of Numba's."""
    return any(name.startswith("NUMBA_") for name in os.environ) or os.path.exists(".numba_config.yaml")


def _arm_has(word: int, bit: int, name: bytes) -> bool:
    """Whether this Arm machine has a feature, by the system's word."""
    libc: Any = ctypes.CDLL(None)
    if sys.platform == "darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        return libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value == 1
    libc.getauxval.argtypes, libc.getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return bool(libc.getauxval(word) >> bit & 1)


def _complete_arm_features() -> str | None:
    """All features of an Arm CPU, where LLVM does not know of some; else None."""
    if sys.platform not in ("linux", "darwin") or not llvm.get_process_triple().startswith(ARM_TRIPLES):
        return None
    found = [f"+{feature}" for feature, word, bit, name in _ARM_FEATURES if _arm_has(word, bit, name)]
    return ",".join(filter(None, [llvm.get_host_cpu_features().flatten(), *found])) if found else None


def _keep_pair_sums() -> str | None:
    """All features of an x86 CPU but AMD's, where LLVM would make a product and an addition of `vpdpwssd`; else None.

    It does so to wait a cycle less for the sum; but the addition takes a turn of the units that multiply.
    """
    features = llvm.get_host_cpu_features()
    if not (features.get("avx512vnni") or features.get("avxvnni")) or llvm.get_host_cpu_name().startswith(_ZEN):
        return None
    return f"{features.flatten()},+fast-dpwssd"


@cache
def chosen_cpu() -> tuple[str | None, str | None]:
    """Name and features of the CPU that Numba has to be told to compile for; None: what it takes by itself."""
    name: str | None = None
    features: str | None = None
    if numba_is_told():
        from numba.core import config

        name, features = config.CPU_NAME or None, config.CPU_FEATURES
    if not name and features is None:
        return None, _complete_arm_features() or _keep_pair_sums()
    return name, features


def target_features() -> set[str]:
    """CPU features Numba compiles for: the host's, or what NUMBA_CPU_FEATURES says; unknown for a NUMBA_CPU_NAME."""
    name, features = chosen_cpu()
    if features is not None:
        return {f[1:] for f in features.split(",") if f.startswith("+")}
    if name:
        return set()
    return {name for name, on in llvm.get_host_cpu_features().items() if on}


def _cpu_name() -> str:
    return chosen_cpu()[0] or llvm.get_host_cpu_name()


def zmm_takes_two_turns() -> bool:
    """Whether vectors of 64 bytes go through units of 32, as on a Zen 4: half the instructions, each twice as long."""
    return _cpu_name() == "znver4"


def is_zen() -> bool:
    """Whether the CPU is AMD's: a dot product's sum is there after 4 cycles, on others after 5."""
    return _cpu_name().startswith(_ZEN)


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
    name, features = chosen_cpu()
    x86 = llvm.get_process_triple().startswith(("x86_64", "i686", "amd64"))
    named = bool(name) and features is None
    lacking = name in ("x86-64", "generic") if named else "f16c" not in target_features()
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


def _numba_version() -> bytes:
    """What tells Numba's releases apart: the file that holds its version, found without running any of it."""
    spec = find_spec("numba")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("_version.py").read_bytes()


@cache
def cache_dir() -> Path:
    """The folder that holds compiled code for exactly these sources on exactly this CPU."""
    here = Path(__file__).parent
    key = hashlib.sha256()
    for pattern in _COMPILED:
        for path in sorted(here.glob(pattern)):
            key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    cpu = _cpu_name(), chosen_cpu()[1] or llvm.get_host_cpu_features().flatten()
    key.update(_numba_version())
    key.update("|".join((llvmlite.__version__, *cpu, isa())).encode())
    root = Path(os.environ.get("LOCALMOE_CACHE") or platformdirs.user_cache_dir("localmoe"))
    folder = root / "jit" / key.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # a read-only home: compile anew for this process
        folder = Path(tempfile.mkdtemp(prefix=_PASSING))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cache_is_kept() -> bool:
    """Whether what is compiled is there again the next time."""
    return not cache_dir().name.startswith(_PASSING)
