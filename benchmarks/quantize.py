"""How long it takes to quantize an F16 GGUF, beside llama-quantize: one JSON line a type.

    LLAMA_BIN=folder python benchmarks/quantize.py [--types Q4_K_M ...] [--runs 3] [--layers 8] [--weighed]
        [--checkpoint F16] [--threads 2] [--folder /tmp] [--markdown MACHINE]

The model has the shape of a small Mixtral (795 M weights at 8 layers: D 1024, F 3584, 8 experts) and random weights.
The programs run in turn, each run a process of its own on a warm page cache; figures are seconds and CPU seconds, with
--markdown rows for RESULTS.md with their medians. LLAMA_BIN holds llama-quantize; without it localmoe is alone. The
start of a process counts in neither: localmoe's seconds are those of the call that reads, encodes, writes and flushes
to disk, its peer's the "quantize time" that it prints, which leaves the flush to the system. `same` says whose files
are localmoe's, byte for byte. With `--weighed` both have a random importance matrix, which the lowest types need. With
`--checkpoint`, localmoe also starts from a checkpoint of that dtype, of which the F16 GGUF was made.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.markdown import row  # noqa: E402

PEER = "llama-quantize"


@dataclass(frozen=True)
class Job:
    """What every program is asked; `imatrix` is a file, or empty."""

    file_type: str
    imatrix: str
    threads: int


def make_checkpoint(folder: Path, n_layer: int, dtype: str) -> int:
    """Write a checkpoint of random weights; about how many it has."""
    from benchmarks.convert_large import Tiny, write_checkpoint

    shape = Tiny(
        n_layer=n_layer, n_embd=1024, n_ff=3584, n_head=16, n_head_kv=8, n_expert=8, n_vocab=32000, dtype=dtype
    )
    folder.mkdir()
    return write_checkpoint(folder, shape) // 2


def cpu_seconds(who: int) -> float:
    """Processor time so far, of this process or of its children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def ours(source: Path, out: Path, job: Job) -> tuple[float, float]:
    """One run of localmoe in this process, seconds and CPU seconds; `source` is a checkpoint folder or a GGUF."""
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.huggingface import load_source
    from localmoe.converters.imatrix import read_imatrix
    from localmoe.converters.pipeline import write_model
    from localmoe.gguf_file import open_gguf

    load_encoders()
    began, used = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
    kept = {"imatrix": read_imatrix(Path(job.imatrix)) if job.imatrix else None, "n_threads": job.threads}
    if source.is_dir():
        write_model(load_source(source, warn=lambda line: None), out, job.file_type, **kept)  # noqa: ARG005
    else:
        with open_gguf(source) as gguf:
            write_model(gguf_source(gguf), out, job.file_type, **kept)
    return time.perf_counter() - began, cpu_seconds(resource.RUSAGE_SELF) - used


def load_encoders() -> None:
    """Import everything and load the compiled encoders, as a first run ever would have left them on disk."""
    import numpy as np
    from gguf import GGMLQuantizationType

    from localmoe.converters.convert_rows import convert
    from localmoe.quants.encode import NEED_IMPORTANCES
    from localmoe.quants.formats import FORMATS

    for source in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        rows = np.ones((2, 256), np.float16)
        for form in FORMATS.values():
            for weights in (None, np.ones(256, np.float32)):
                if form.encodes and (weights is not None or form.type not in NEED_IMPORTANCES):
                    convert(rows, source, form.type, 256, weights)


def theirs(source: Path, out: Path, job: Job) -> tuple[float, float]:
    """One run of llama-quantize: seconds by its own clock, and CPU seconds of its process."""
    matrix = ["--imatrix", job.imatrix] if job.imatrix else []
    command = [Path(os.environ["LLAMA_BIN"]) / PEER, *matrix, source, out, job.file_type, str(job.threads)]
    used = cpu_seconds(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"quantize time = +([\d.]+) ms", done.stdout + done.stderr)
    if done.returncode or not found:
        sys.exit(f"{PEER} failed:\n{done.stderr[-500:]}")
    return float(found[1]) / 1000, cpu_seconds(resource.RUSAGE_CHILDREN) - used


def run(source: Path, out: Path, job: Job) -> tuple[float, float]:
    """One run of localmoe in a process of its own."""
    command = [sys.executable, __file__, "--one", str(source), str(out), json.dumps(vars(job))]
    seconds, cpu = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return seconds, cpu


def measure(sources: dict[str, Path], folder: Path, job: Job, runs: int) -> dict[str, Any]:
    """All programs in turn, `runs` times: (seconds, CPU seconds) by program, and whose files are localmoe's."""
    outs = {name: folder / f"{name}.gguf" for name in sources}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for _ in range(runs):
        for name, source in sources.items():
            seconds, cpu = (theirs if name == PEER else run)(source, outs[name], job)
            taken[name].append((round(seconds, 2), round(cpu, 2)))
    same = {name: filecmp.cmp(outs["localmoe"], outs[name], shallow=False) for name in sources if name != "localmoe"}
    return {"type": job.file_type, **taken, "same": same}


def spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def markdown(machine: str, what: str, line: dict[str, Any]) -> str:
    """Rows of RESULTS.md: localmoe beside each of the others."""
    (mine, cpu), rows = zip(*line["localmoe"], strict=True), []
    for name, same in line["same"].items():
        peer, peer_cpu = zip(*line[name], strict=True)
        ratio = statistics.median(peer) / statistics.median(mine)
        files = "the same bytes" if same else "other bytes"
        note = f"{len(mine)}, in turn; CPU seconds {statistics.median(cpu):.1f} and {statistics.median(peer_cpu):.1f}"
        cells = [f"{what} {line['type']}, seconds", spread(mine), f"{spread(peer)}, {name}", f"{ratio:.1f}"]
        rows.append(row(machine, [*cells, f"{note}; {files}"]))
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "Q6_K", "Q8_0"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--weighed", action="store_true")
    parser.add_argument("--checkpoint", choices=["F16", "BF16"])
    parser.add_argument("--markdown", metavar="MACHINE")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, out, job = options.one
        print(json.dumps(ours(Path(source), Path(out), Job(**json.loads(job)))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, f16 = Path(name), Path(name) / "f16.gguf"
        checkpoint = folder / f"checkpoint in {options.checkpoint or 'F16'}"
        weights = make_checkpoint(checkpoint, options.layers, options.checkpoint or "F16")
        run(checkpoint, f16, Job("F16", "", options.threads))
        sources = {"localmoe": f16} | ({PEER: f16} if "LLAMA_BIN" in os.environ else {})
        sources |= {checkpoint.name: checkpoint} if options.checkpoint else {}
        imatrix = ""
        if options.weighed:
            from tests.parity.quantize_parity import make_imatrix

            imatrix = str(folder / "imatrix.gguf")
            make_imatrix(f16, Path(imatrix))
        what = f"quantizing {weights / 1e6:.0f} M weights{' with an importance matrix' if imatrix else ''}, F16 to"
        for file_type in options.types:
            line = measure(sources, folder, Job(file_type, imatrix, options.threads), options.runs)
            print(markdown(options.markdown, what, line) if options.markdown else json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
