"""Importance matrices against llama.cpp's on the same file and text.

    python tests/parity/imatrix_parity.py [MODEL.gguf TEXT]

LLAMA_PYTHON names an interpreter that has llama-cpp-python, and tests/parity/peers/llama_imatrix.py does there what
llama-imatrix does. Without arguments: tests.tiny's models and tiny-moe of shared/data. A near-tie in routing may fall
either way, so counts may differ by a few; where a row's count is the same, its sums must be within 1% in the mean and
float32's error at best. Prints a JSON line a file; exit 1 where a bound does not hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import localmoe
from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model
from localmoe.engine.importance import Collector
from localmoe.engine.perplexity import cut_chunks
from tests.tiny import WORDS, write_tiny

TINY_MOE = ROOT.parent / "shared" / "data" / "tiny-moe"
PEER = Path(__file__).parent / "peers" / "llama_imatrix.py"
BOUNDS = {"tiny-F32": 1e-4, "tiny-dense": 1e-4}  # others: 1%, activations are rounded to bytes


def compare(name: str, path: Path, text: str, n_ctx: int, folder: Path) -> bool:
    with localmoe.load(str(path), n_ctx=n_ctx) as model:
        chunks = cut_chunks(model.tokenize(text), n_ctx, 4)
        collector = Collector(model)
        list(collector.run(chunks))
    np.save(folder / "chunks.npy", chunks)
    command = [os.environ["LLAMA_PYTHON"], PEER, path, folder / "chunks.npy", folder / "out.npz"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    theirs, ours = np.load(folder / "out.npz"), collector.matrices()
    names = {key.removesuffix(".counts") for key in theirs if key.endswith(".counts")}
    moved, off = 0, []
    for key in sorted(names & ours.keys()):
        counts = theirs[f"{key}.counts"]
        moved += int(np.abs(counts - ours[key].counts).sum())
        same = (counts == ours[key].counts) & (counts > 0)
        a, b = theirs[f"{key}.in_sum2"][same], ours[key].sums[same]
        off += (np.abs(a - b).sum(axis=1) / a.sum(axis=1)).tolist()
    row = {
        "file": name, "matrices": len(names), "same_names": names == ours.keys(), "rows": len(off),
        "counts_off": moved, "median_off": float(np.median(off)), "max_off": max(off),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return bool(row["same_names"]) and float(np.mean(off)) <= BOUNDS.get(name, 1e-2)


def cases(folder: Path) -> Iterator[tuple[str, Path, str, int]]:
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(WORDS, 2000))
    yield "tiny-F32", write_tiny(folder / "a.gguf"), text, 64
    yield "tiny-dense", write_tiny(folder / "b.gguf", n_expert=0, n_ff=128), text, 64
    if TINY_MOE.is_dir():
        for kind in ("F16", "Q8_0"):
            write_model(load_source(TINY_MOE), folder / "c.gguf", kind, notify=lambda line: None)
            yield f"tiny-moe-{kind}", folder / "c.gguf", (TINY_MOE / "heldout-scripture.txt").read_text(), 256


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if len(sys.argv) == 3:
            path = Path(sys.argv[1])
            results = [compare(path.name, path, Path(sys.argv[2]).read_text(), 512, folder)]
        else:
            results = [compare(*case, folder) for case in cases(folder)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
