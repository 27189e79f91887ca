"""Every encoder against ggml_quantize_chunk of llama.cpp, byte for byte, on the rows of the ordinary tests.

    python tests/parity/encode_parity.py [--record]

llama.cpp is asked through llama-cpp-python, in this interpreter or in the one LLAMA_PYTHON names. Prints one JSON line;
exit 1 where a byte differs. `--record` writes the digests of IQ1_M, for which libgguf is no oracle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def theirs(folder: Path) -> None:
    """Encode what `asked.npz` holds (`N.x`, `N.importance`, `N.kind`, `N.bytes`) to `answer.npz`."""
    import ctypes

    import llama_cpp

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    quantize: Any = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    answers = {}
    with np.load(folder / "asked.npz") as asked:
        for i in range(int(asked["n"])):
            x, importance = asked[f"{i}.x"], asked[f"{i}.importance"]
            out = np.zeros((len(x), int(asked[f"{i}.bytes"])), np.uint8)
            weights = importance.ctypes.data if importance.size else None
            quantize(int(asked[f"{i}.kind"]), x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)
            answers[str(i)] = out
    np.savez(folder / "answer.npz", **answers)


def compare(folder: Path) -> tuple[int, list[str], dict[str, str]]:
    """How many encodings, which of them differ, and IQ1_M's digests."""
    from gguf import GGMLQuantizationType as Type

    from localmoe.quants.encode import encode
    from localmoe.quants.formats import FORMATS
    from tests.quants.test_encode import cases, digest

    asked: dict[str, Any] = {}
    mine = []
    for form in FORMATS.values():
        for label, x, importance in cases(form.type) if form.encodes and form.quantized else ():
            i, weights = len(mine), np.empty(0, np.float32) if importance is None else importance
            asked |= {f"{i}.x": np.ascontiguousarray(x), f"{i}.importance": weights, f"{i}.kind": int(form.type)}
            asked[f"{i}.bytes"] = form.row_bytes(x.shape[1])
            mine.append((form, label, encode(form.type, x, importance)))
    np.savez(folder / "asked.npz", n=len(mine), **asked)
    python = os.environ.get("LLAMA_PYTHON") or sys.executable
    subprocess.run([python, __file__, "--theirs", str(folder)], check=True)
    with np.load(folder / "answer.npz") as answer:
        pairs = [(form, label, raw, answer[str(i)]) for i, (form, label, raw) in enumerate(mine)]
    differ = [f"{form.name}: {label}" for form, label, raw, other in pairs if (raw != other).any()]
    return len(pairs), differ, {label: digest(other) for form, label, _, other in pairs if form.type == Type.IQ1_M}


def main() -> int:
    """Compare, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        theirs(options.theirs)
        return 0
    from tests.quants.test_encode import RECORDED

    with tempfile.TemporaryDirectory() as folder:
        n, differ, digests = compare(Path(folder))
    if options.record:
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(digests, indent=1) + "\n")
    print(json.dumps({"test": "encode", "encodings": n, "differ": differ}))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
