"""How long it takes to quantize an F16 GGUF, beside llama-quantize: one JSON line a row.

    python benchmarks/quantize.py [--layers 8] [--types Q4_K_M Q6_K Q8_0] [--weighed] [--threads 2] [--folder /tmp]

The model has the shape of a small Mixtral (792 M weights at 8 layers: D 1024, F 3584, 8 experts) and random weights.
Each row is a process of its own on a warm page cache, best of `--repeat`. llama.cpp is asked through llama-cpp-python,
in this interpreter or in the one LOCALMOE_LLAMA_PYTHON names, and left out where there is none. `same` says whether
both files are identical. localmoe's seconds hold the flush to disk, which llama.cpp leaves to the system. `--weighed`
gives both a random importance matrix, which the lowest types need.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LLAMA_PYTHON = os.environ.get("LOCALMOE_LLAMA_PYTHON", sys.executable)
CHUNKS = 7  # of a random importance matrix: those tests.parity.quantize_parity writes


def make_model(path: Path, n_layer: int) -> int:
    """Write an F16 model of random weights; how many weights it has."""
    import numpy as np

    from localmoe.converters.pipeline import write_model
    from localmoe.converters.source import SourceModel, SourceTensor, row_runs
    from tests.parity.quantize_parity import shape_model

    shape = {"n_layer": n_layer, "n_embd": 1024, "n_ff": 3584, "n_head": 16, "n_head_kv": 8, "n_expert": 8}
    model = shape_model(shape)
    noise = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(np.float16)

    def piece(first: int, rows: int, columns: int, dtype: Any) -> Callable[[], Any]:
        def read() -> Any:
            start = first * columns * 7919 % (1 << 20)
            return np.resize(np.roll(noise, -start), (rows, columns)).astype(dtype)

        return read

    def tensor(t: SourceTensor) -> SourceTensor:
        dtype = np.float16 if t.type.name == "F16" else np.float32
        runs = list(row_runs(t.n_rows, t.n_columns * 2, 4 << 20))
        return SourceTensor(t.name, t.shape, t.type, [piece(a, b - a, t.n_columns, dtype) for a, b in runs])

    tensors = [tensor(t) for t in model.tensors]
    write_model(SourceModel(model.metadata, tensors, 8, n_layer, "random", origin="gguf"), path, "F16")
    return sum(t.n_rows * t.n_columns for t in tensors)


def make_importances(folder: Path) -> str:
    """A random importance matrix for the model in `folder`, in both engines' forms."""
    from tests.parity.quantize_parity import make_imatrix

    make_imatrix(folder / "f16.gguf", folder / "imatrix.gguf")
    return str(folder / "imatrix.gguf")


def localmoe(source: str, out: str, file_type: str, threads: int, imatrix: str) -> None:
    """One run of ours; `imatrix` is a file, or empty."""
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.imatrix import read_imatrix
    from localmoe.converters.pipeline import write_model
    from localmoe.gguf_file import open_gguf

    matrix = read_imatrix(Path(imatrix)) if imatrix else None
    with open_gguf(source) as gguf:
        write_model(gguf_source(gguf), Path(out), file_type, imatrix=matrix, n_threads=threads)


def load_encoders() -> None:
    """Import everything and load the compiled encoders, as a first run ever would have left them on disk."""
    import numpy as np
    from gguf import GGMLQuantizationType

    from localmoe.converters import gguf_source, pipeline  # noqa: F401
    from localmoe.converters.convert_rows import convert
    from localmoe.quants.encode import NEED_IMPORTANCES
    from localmoe.quants.formats import FORMATS

    rows = np.ones((2, 256), np.float16)
    for form in FORMATS.values():
        for weights in (None, np.ones(256, np.float32)):
            if form.encodes and (weights is not None or form.type not in NEED_IMPORTANCES):
                convert(rows, GGMLQuantizationType.F16, form.type, 256, weights)


def llama(source: str, out: str, file_type: str, threads: int, imatrix: str) -> None:
    """One run of llama.cpp's."""
    import ctypes

    import llama_cpp as lc

    from tests.parity.peers.llama_quantize_jobs import imatrix_fields

    quiet = lc.llama_log_callback(lambda *line: None)  # noqa: ARG005
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[file_type], threads
    if imatrix:
        kept = imatrix_fields(f"{imatrix}.npz", CHUNKS)
        params.imatrix, params.kv_overrides = kept[0], kept[1]
    if lc.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        raise SystemExit("llama_model_quantize failed")


FILE_TYPES = {
    "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17,
    "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26, "IQ4_XS": 30, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "Q4_1": 3,
    "Q5_0": 8, "Q5_1": 9, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ3_XXS": 23, "IQ1_S": 24, "IQ1_M": 31,
}  # fmt: skip
ENGINES = {"localmoe": (localmoe, sys.executable), "llama.cpp": (llama, LLAMA_PYTHON)}


def measure(engine: str, source: Path, out: Path, file_type: str, threads: int, imatrix: str) -> dict[str, Any] | None:
    """Seconds of the call itself (imports, process start left out) and its CPU seconds; None without the engine."""
    command = [ENGINES[engine][1], __file__, "--one", engine, str(source), str(out), file_type, str(threads), imatrix]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def one(engine: str, source: str, out: str, file_type: str, threads: str, imatrix: str) -> None:
    """Run one engine in this process and print what it took."""
    if engine == "localmoe":
        load_encoders()
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    ENGINES[engine][0](source, out, file_type, int(threads), imatrix)
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime
    print(json.dumps({"seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "rss_mb": usage.ru_maxrss // 1024}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q6_K", "Q8_0"], choices=list(FILE_TYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--weighed", action="store_true")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        weights = make_model(folder / "f16.gguf", options.layers)
        imatrix = make_importances(folder) if options.weighed else ""
        for file_type in options.types:
            outs = []
            for engine in ENGINES:
                out = folder / f"{engine}.gguf"
                arguments = (engine, folder / "f16.gguf", out, file_type, options.threads, imatrix)
                runs = [measure(*arguments) for _ in range(options.repeat)]
                done = [run for run in runs if run is not None]
                if not done:
                    continue
                outs.append(out)
                best = min(done, key=lambda run: run["seconds"])
                same = filecmp.cmp(outs[0], out, shallow=False) if len(outs) > 1 else None
                row = {"test": "quantize", "engine": engine, "type": file_type, "weights": weights}
                print(json.dumps(row | {"threads": options.threads, "same": same} | best), flush=True)


if __name__ == "__main__":
    main()
