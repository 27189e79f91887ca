"""Code for CPUs that are not this one: its instructions, and on older ones of the same family also its results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe.kernels.limits import CHAINS, UNROLL
from localmoe.kernels.shapes import KINDS
from localmoe.kernels.table import KERNELS
from tests.other_cpu import run_model

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "localmoe" / "data" / "tiny-moe.gguf")
INTEGER = [
    f"{kernel}_{kind.name.lower()}" for kind in KERNELS if KERNELS[kind].block > 1 for kernel in ("matvec", "matmul")
]
QUICK = "matmul_q4_k,matvec_q4_k,matvec_q5_0,matvec_q2_k"
EITHER = ["matvec_q4_0", "matvec_q4_k", "matvec_tq1_0", "matvec_iq1_s"]
IN_64 = {"znver5": EITHER, "icelake-client": ["matvec_q4_k", "matvec_q6_k"]}
IN_32 = {"znver4": EITHER, "tigerlake": ["matvec_q4_0", "matvec_tq1_0", "matvec_iq1_s"]}

pytestmark = [
    pytest.mark.skipif("LOCALMOE_ISA" in os.environ, reason="the programs started choose their own"),
    pytest.mark.timeout(900),  # on two cores, beside other tests
]


def start(cpu: str, which: str, cache: Path) -> subprocess.Popen[str]:
    """Compile for another CPU in a process of its own, with nothing in its cache: code from there has no assembly."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.other_cpu", cpu, which],
        env={**os.environ, "LOCALMOE_CACHE": str(cache)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[subprocess.Popen[str]]]]:
    """All processes at once, by CPU: together they take some 75 seconds of processor time."""
    wanted = {"neoverse-n1": ["0/2", "1/2"]}
    if platform.machine() in ("x86_64", "AMD64"):
        wanted |= {"haswell": [TINY, "dots"], "alderlake": [QUICK], "ivybridge": [QUICK]}
        wanted |= {cpu: [",".join(names)] for cpu, names in (IN_64 | IN_32).items()}
    cache = tmp_path_factory.mktemp("compiled")
    started = {cpu: [start(cpu, w, cache / f"{cpu}{i}") for i, w in enumerate(ws)] for cpu, ws in wanted.items()}
    yield started
    for process in (process for row in started.values() for process in row):
        process.kill()
        process.wait()


def results(processes: list[subprocess.Popen[str]]) -> dict[str, Any]:
    """What all of them printed, joined."""
    out: dict[str, Any] = {"kernels": {}}
    for process in processes:
        printed, err = process.communicate()
        assert process.returncode == 0, err[-2000:]
        part = json.loads(printed)
        out = {**out, **part, "kernels": out["kernels"] | part["kernels"]}
    return out


def foreign(found: dict[str, Any]) -> dict[str, list[str]]:
    return {name: row["foreign"] for name, row in found["kernels"].items() if row["foreign"]}


def without_dots(found: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [name for name in names if not found["kernels"][name]["dots"]]


def test_every_kernel_compiles_for_arm_and_multiplies_by_sdot(children: Any) -> None:
    found = results(children["neoverse-n1"])
    assert len(found["kernels"]) >= 2 * len(KERNELS) + 6 * len(KINDS) + 5
    assert without_dots(found, [*INTEGER, "scores_q8_0_1", "scores_q8_0_8", "forward", "dots"]) == []
    assert foreign(found) == {}


def test_a_haswell_gives_the_same_tokens_and_gets_no_avx512(children: Any) -> None:
    if "haswell" not in children:
        pytest.skip("runs code of older x86 CPUs")
    expected = run_model(TINY)
    found = results(children["haswell"])
    assert found["tokens"] == expected
    assert without_dots(found, {"forward", *INTEGER} & set(found["kernels"])) == []
    assert foreign(found) == {}
    assert found["kernels"]["dots"]["dots"] >= CHAINS * UNROLL  # its peak: LLVM makes no product once for all


@pytest.mark.parametrize("cpu", ["alderlake", "ivybridge"])
def test_an_older_cpu_gets_its_own_instructions(children: Any, cpu: str) -> None:
    if cpu not in children:
        pytest.skip("x86's instruction sets")
    found = results(children[cpu])
    assert without_dots(found, QUICK.split(",")) == []
    assert foreign(found) == {}


@pytest.mark.parametrize("cpu", IN_64 | IN_32)
def test_rows_are_multiplied_in_the_vectors_that_are_faster_on_a_cpu(children: Any, cpu: str) -> None:
    if cpu not in children:
        pytest.skip("x86's instruction sets")
    found = results(children[cpu])
    assert without_dots(found, (IN_64 | IN_32)[cpu]) == []
    assert foreign(found) == {}
