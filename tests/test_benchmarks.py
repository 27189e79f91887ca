"""Programs in benchmarks/, which nothing else imports, still find what they use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOAD = """
import importlib, sys
sys.path[:0] = sys.argv[1:3]
for name in sys.argv[3:]:
    importlib.import_module(name)
"""


def test_every_program_can_be_imported() -> None:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    assert {"attention", "compare", "kernels", "matmul"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT), str(ROOT / "benchmarks"), *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
