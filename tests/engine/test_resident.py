"""Weights are used where the file is mapped: what a process takes besides is the KV cache and a bounded rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny

N_CTX = 2048
MEASURE = """
import json, sys
from pathlib import Path
import localmoe

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

path, n_ctx = sys.argv[1], int(sys.argv[2])
with localmoe.load(path, n_ctx=n_ctx) as model:  # compiled, loaded, imported
    model.eval(list(range(3, 40)))
before = private()
with localmoe.load(path, n_ctx=n_ctx) as model:
    for step in model.generate([i % 300 for i in range(n_ctx - 8)], max_tokens=4, seed=1, ignore_eos=True):
        pass
    print(json.dumps({"all": private(), "more": private() - before, "cache": model.memory_map["KV cache"]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory by kind is Linux's")
def test_anonymous_memory_is_the_cache_and_at_most_300_mb(tmp_path: Path) -> None:
    """Of a model whose weights are 110 MB; a prompt touches all of its experts."""
    path = write_tiny(tmp_path / "m.gguf", n_embd=256, n_ff=1024, n_layer=4, n_ctx_train=N_CTX)
    size = path.stat().st_size
    assert size > 100e6
    command = [sys.executable, "-c", MEASURE, str(path), str(N_CTX)]
    for _ in range(2):  # a process that compiles takes more
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    taken = json.loads(done.stdout)
    assert taken["all"] <= taken["cache"] + 300e6
    assert taken["more"] < taken["cache"] + size / 2
