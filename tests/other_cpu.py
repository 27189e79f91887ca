"""Compile kernels for a CPU that is not this one, and say what instructions came out; a program that tests start.

    python -m tests.other_cpu CPU all             every kernel
    python -m tests.other_cpu CPU 0/2             the first of two parts of them
    python -m tests.other_cpu CPU NAME,NAME       some, by `KERNELS`' and the attention's names
    python -m tests.other_cpu CPU MODEL.gguf      what a model takes to run, and the tokens that it gives

It prints one JSON object: by kernel, how many instructions, dot products and (some of the) instructions that the CPU
has not are in its assembly. For Arm, code is only generated: LLVM's native target is replaced before Numba asks for it.
A kernel for which LLVM cannot choose instructions ends the process.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Cpu:
    """A CPU by our and LLVM's names, and regular expressions of its dot product and of what it cannot execute."""

    isa: str
    features: str
    dot: str
    foreign: str
    triple: str = ""


ARM = "aarch64-unknown-linux-gnu"
ARM_FOREIGN = r"\b[su]mmla\b|\bz\d+\."  # I8MM, SVE
OLD = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+f16c"
HASWELL = OLD + ",+avx2,+bmi,+bmi2,+fma,+lzcnt,+movbe"
AVX512 = r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b|\{1to\d+\}"  # wide registers, masks, EVEX's own registers

VNNI512 = HASWELL + ",+gfni" + "".join(f",+avx512{x}" for x in ("f", "bw", "dq", "vl", "cd", "vnni", "vbmi"))
IN_ZMM, IN_YMM = (rf"\bvpdp(?:bu|ws)sd\b.*%{register}" for register in ("zmm", "ymm"))

CPUS = {
    "neoverse-n1": Cpu("neon", "+dotprod,+fullfp16,+lse", r"\bsdot\b", ARM_FOREIGN, ARM),
    "apple-m1": Cpu("neon", "+dotprod,+fullfp16,+lse", r"\bsdot\b", ARM_FOREIGN, ARM),
    "znver5": Cpu("avx512vnni", VNNI512, IN_ZMM, r"\bvpdp.*%ymm"),
    "znver4": Cpu("avx512vnni", VNNI512, IN_YMM, r"\bvpdp.*%zmm"),
    "icelake-client": Cpu("avx512vnni", VNNI512, IN_ZMM, r"\bvpdp.*%ymm"),
    "tigerlake": Cpu("avx512vnni", VNNI512, IN_YMM, r"\bvpdp.*%zmm"),
    "alderlake": Cpu("avxvnni", HASWELL + ",+avxvnni", r"\bvpdp(?:bu|ws)sd\b", AVX512),
    "haswell": Cpu("avx2", HASWELL, r"\bvpmaddubsw\b", AVX512 + r"|\bvpdp"),
    "ivybridge": Cpu("generic", OLD, r"\bvpmul|\bvpmadd", AVX512 + r"|\bvpdp|\bvfn?m(?:add|sub)|\bvp(?!ermil).*%ymm"),
}


def pretend(name: str) -> None:
    """Make Numba compile for a CPU; before anything of Numba or localmoe is imported."""
    cpu = CPUS[name]
    os.environ.update(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=cpu.features, LOCALMOE_ISA=cpu.isa)
    if not cpu.triple:
        return
    from llvmlite.binding import targets

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for module in (llvm, targets):
        module.get_process_triple = module.get_default_triple = lambda: cpu.triple
    targets.Target.from_default_triple = classmethod(lambda cls: cls.from_triple(cpu.triple))


def record(cpu: Cpu, found: dict[str, dict[str, Any]]) -> None:
    """Keep what is in the assembly of every C function that Numba compiles from here on."""
    from numba.core.ccallback import CFunc

    compile_c = CFunc.compile

    def recording(compiled: Any) -> None:
        compile_c(compiled)
        lines = compiled._library.get_asm_str().splitlines()
        code = [line.split("#")[0] for line in lines if re.match(r"\s+[a-z{]", line)]
        found[compiled.__qualname__] = {
            "lines": len(code),
            "dots": sum(bool(re.search(cpu.dot, line)) for line in code),
            "foreign": [line.strip() for line in code if re.search(cpu.foreign, line)][:3],
        }

    CFunc.compile = recording


def kernels() -> dict[str, Callable[[], int]]:
    """Every kernel that is called by its address; the forward pass has all others in it."""
    from localmoe.jit import kernel_address
    from localmoe.kernels import limits, table
    from localmoe.kernels.shapes import KINDS, MAX_ROWS
    from localmoe.kernels.table import KERNELS, matmul_address, matvec_address, scores_address, values_address
    from localmoe.model.forward import forward

    out: dict[str, Callable[[], int]] = {"forward": partial(kernel_address, forward, 6)}
    for kind in KERNELS:
        out[f"matmul_{kind.name.lower()}"] = partial(matmul_address, kind)
        out[f"matvec_{kind.name.lower()}"] = partial(matvec_address, kind)
    for cache in KINDS:
        for rows in (1, MAX_ROWS):
            out[f"scores_{cache}_{rows}"] = partial(scores_address, cache, rows)
            out[f"values_{cache}_{rows}"] = partial(values_address, cache, rows)
        out[f"key_pairs_{cache}"] = partial(table.key_pairs_address, cache)
        out[f"value_pairs_{cache}"] = partial(table.value_pairs_address, cache)
    out |= {"pair_scores": table.pair_scores_address, "pair_values": table.pair_values_address}
    return out | {"dots": partial(kernel_address, limits.dots, 2), "fmas": partial(kernel_address, limits.fmas, 2)}


def selected(which: str) -> list[Callable[[], int]]:
    """Kernels by "all", a part of them, or names."""
    every = kernels()
    if "/" in which or which == "all":
        part, parts = which.split("/") if "/" in which else ("0", "1")
        return list(every.values())[int(part) :: int(parts)]
    return [every[name] for name in which.split(",")]


def run_model(path: str) -> list[int]:
    """The tokens that a model continues a prompt with, greedily."""
    import localmoe

    with localmoe.load(path, n_ctx=128) as model:
        steps = model.generate("In the beginning there was a program", max_tokens=16, temperature=0.0)
        return [step.token for step in steps]


def main(name: str, which: str) -> None:
    found: dict[str, dict[str, Any]] = {}
    pretend(name)
    record(CPUS[name], found)
    out: dict[str, Any] = {"kernels": found}
    if which.endswith(".gguf"):
        out["tokens"] = run_model(which)
    else:
        for compile_one in selected(which):
            compile_one()
    print(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
