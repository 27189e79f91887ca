"""Perplexity and divergence against llama.cpp on the same files and text.

    python tests/parity/perplexity_parity.py [MODEL.gguf TEXT]

LLAMA_PYTHON names an interpreter that has llama-cpp-python. Without arguments: tiny-moe of shared/data in several file
types. The perplexity must be within 0.2%, and the divergence from the file that llama.cpp's logits fill no more than
rounding explains. Prints a JSON line a file; exit 1 where a bound does not hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import localmoe
from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model
from localmoe.engine.api import Model
from localmoe.engine.divergence import compare, decode_rows, open_base, write_base
from localmoe.engine.perplexity import Tokens, cut_chunks

TINY_MOE = ROOT.parent / "shared" / "data" / "tiny-moe"
TYPES = ("F16", "Q8_0", "Q6_K", "Q4_K_M")
PPL_BOUND = 2e-3
KLD_BOUND = 1e-3
N_CTX = 256


def theirs(path: Path, ids: list[int], n_ctx: int, base: Path, folder: Path) -> dict[str, float]:
    np.save(folder / "ids.npy", np.array(ids, np.int32))
    peer = Path(__file__).parent / "peers" / "llama_perplexity.py"
    command = [os.environ["LLAMA_PYTHON"], peer, path, folder / "ids.npy", str(n_ctx), base, folder / "out.json"]
    subprocess.run(command, check=True)
    result: dict[str, float] = json.loads((folder / "out.json").read_text())
    return result


def ours(model: Model, chunks: Tokens, base: Path) -> Any:
    with base.open("wb") as file:
        write: Callable[[bytes], Any] = file.write
        *_, (_, estimate) = write_base(model, chunks, write)
    return estimate


def compare_file(path: Path, text: str, n_ctx: int, folder: Path, most: int | None = None) -> bool:
    with localmoe.load(str(path), n_ctx=n_ctx) as model:
        chunks = cut_chunks(model.tokenize(text), n_ctx, most)
        our_base, their_base = folder / "ours.kld", folder / "theirs.kld"
        peer = theirs(path, chunks.reshape(-1).tolist(), n_ctx, their_base, folder)
        estimate = ours(model, chunks, our_base)
        *_, (_, result) = compare(model, open_base(their_base))
        divergence = result()
        a, b = open_base(our_base), open_base(their_base)
        # the middle one: a near-tie in routing that falls the other way moves a few tokens by whole nats
        x, y = (decode_rows(base.rows.reshape(-1, base.rows.shape[2]), base.n_vocab) for base in (a, b))
        off_by = float(np.median(np.abs(x - y).max(axis=1)))
    off = abs(estimate.ppl / peer["ppl"] - 1)
    row = {
        "file": path.name, "n_ctx": n_ctx, "chunks": len(chunks), "ppl": estimate.ppl, "error": estimate.ppl_error,
        "llama_ppl": peer["ppl"], "llama_error": peer["error"], "off": off, "kld": divergence.kld,
        "same_top": divergence.same_top, "log_p_off": off_by,
        "same_size": our_base.stat().st_size == their_base.stat().st_size,
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return off <= PPL_BOUND and divergence.kld <= KLD_BOUND and bool(row["same_size"])


def tiny_files(folder: Path) -> Iterator[Path]:
    for kind in TYPES:
        path = folder / f"tiny-moe-{kind}.gguf"
        write_model(load_source(TINY_MOE), path, kind, notify=lambda line: None)
        yield path


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if len(sys.argv) == 3:
            results = [compare_file(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), 512, folder, 4)]
        elif TINY_MOE.is_dir():
            text = (TINY_MOE / "heldout-scripture.txt").read_text()
            results = [compare_file(path, text, N_CTX, folder) for path in tiny_files(folder)]
        else:
            sys.exit(f"no {TINY_MOE}: name a model and a text")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
