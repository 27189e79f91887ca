"""llama-quantize's digests of whole files: every file type, 8 and 5 experts, without and with an importance matrix.

    LLAMA_BIN=folder/of/llama.cpp/bin python tests/parity/quantized_files.py [--record]

Both programs quantize the same F16 file, of a checkpoint whose values NumPy has frozen. Prints one JSON line; exit 1
where a byte differs, or a recorded digest is no longer llama-quantize's. `--record` writes the digests that ordinary
tests use; null stands for a type that llama-quantize refuses without a matrix.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zlib
from itertools import product
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.huggingface import load_source
from localmoe.converters.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from localmoe.converters.pipeline import write_model
from localmoe.converters.recipe import RECIPES
from localmoe.errors import UsageError
from localmoe.gguf_file import open_gguf
from tests.checkpoints import write_checkpoint

DIGESTS = ROOT / "tests" / "converters" / "data" / "llama_quantize_files.json"
EXPERTS = (8, 5)
CASES = tuple(product(RECIPES, (False, True)))  # file type, with the matrix
MATRIX = "imatrix.gguf"  # both programs note in a file the name that they were given


def make_source(folder: Path, n_expert: int) -> Path:
    """An F16 GGUF, and its importance matrix beside it, in which expert 1 of a layer has no data."""
    shape = {"n_expert": n_expert, "n_embd": 256, "n_ff": 256, "n_layer": 2, "dtype": "F16"}
    path = folder / "f16.gguf"
    write_model(load_source(write_checkpoint(folder / "checkpoint", **shape)), path, "F16")
    entries = {}
    with open_gguf(path) as gguf:
        for name, info in gguf.tensors.items():
            if name.startswith("blk.") and len(info.shape) > 1:
                random, n = np.random.RandomState(zlib.crc32(name.encode())), n_expert if len(info.shape) == 3 else 1
                counts = random.randint(1, 900, n)
                counts[1:2] = 0 if name.startswith("blk.0") else 5
                entries[name] = Entry(random.random_sample((n, info.shape[-1])).astype(np.float32) * 99, counts)
    write_imatrix(Imatrix(entries, ("text.txt",), 7, 512), folder / MATRIX)
    return path


def ours(source: Path, kind: str, weighed: bool) -> str | None:
    """Digest of localmoe's file, None where it refuses; runs in the folder of `source`."""
    out = source.with_name("ours.gguf")
    matrix = read_imatrix(Path(MATRIX)) if weighed else None
    with open_gguf(source) as gguf:
        try:
            write_model(gguf_source(gguf), out, kind, imatrix=matrix, notify=lambda line: None)
        except UsageError as error:
            if "needs an importance matrix" not in str(error):
                raise
            return None
    return hashlib.sha256(out.read_bytes()).hexdigest()


def theirs(source: Path, kind: str, weighed: bool) -> str | None:
    """Digest of llama-quantize's file, None where it refuses."""
    out = source.with_name("theirs.gguf")
    out.unlink(missing_ok=True)
    matrix = ["--imatrix", MATRIX] if weighed else []
    command = [str(Path(os.environ["LLAMA_BIN"]) / "llama-quantize"), *matrix, str(source), str(out), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source.parent)
    if done.returncode:
        assert "imatrix" in done.stdout + done.stderr, done.stderr
        return None
    return hashlib.sha256(out.read_bytes()).hexdigest()


def main() -> int:
    """Compare, print, and record if asked."""
    if "LLAMA_BIN" not in os.environ:
        print(json.dumps({"quantized files": "skipped: LLAMA_BIN names no folder of llama.cpp's programs"}))
        return 0
    found: dict[str, dict[str, list[str | None]]] = {}
    differ, n = [], 0
    for n_expert in EXPERTS:
        of_model = found.setdefault(f"{n_expert} experts", {})
        with tempfile.TemporaryDirectory() as name:
            source = make_source(Path(name), n_expert)
            os.chdir(name)
            for kind, weighed in CASES:
                digest = theirs(source, kind, weighed)
                of_model.setdefault(kind, []).append(digest)
                n += digest is not None
                differ += [[n_expert, kind, weighed]] if ours(source, kind, weighed) != digest else []
            os.chdir(ROOT)
    if "--record" in sys.argv:
        DIGESTS.write_text(json.dumps(found, indent=1) + "\n")
    stale = json.loads(DIGESTS.read_text()) != found
    print(json.dumps({"test": "quantized files", "files": n, "differ": differ, "recorded digests are old": stale}))
    return 1 if differ or stale else 0


if __name__ == "__main__":
    sys.exit(main())
