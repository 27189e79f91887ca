"""What a file type costs in quality, and what fewer or more experts do: perplexity and divergence from the source.

    python benchmarks/quality.py SOURCE TEXT ... [--types Q8_0,Q4_K_M] [--imatrix FILE]
        [--experts 1,2] [-c 512] [--chunks N]

SOURCE is a checkpoint folder or a GGUF; a folder's base is its F16 file, a GGUF's is itself, and is requantized where
it is quantized. The texts are joined. Each type is written, measured, and removed; types that need an importance
matrix are left out without one. Prints one JSON line a row, or with --markdown the tables of docs/quality.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import localmoe
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.huggingface import load_source
from localmoe.converters.imatrix import Imatrix, read_imatrix
from localmoe.converters.pipeline import write_model
from localmoe.converters.recipe import RECIPES
from localmoe.engine.divergence import Base, compare, open_base, write_base
from localmoe.engine.perplexity import cut_chunks
from localmoe.errors import LocalMoeError
from localmoe.gguf_file import open_gguf

HEADERS = {
    "type": "| type | size, MiB | bits a weight | PPL | mean KLD | same top-1 |\n|---|---|---|---|---|---|",
    "experts": "| experts used | PPL | mean KLD | same top-1 |\n|---|---|---|---|",
}


def _silent(line: str) -> None:
    """Notices of fallbacks are no part of the result."""


def write_type(source: Path, out: Path, kind: str, imatrix: Imatrix | None = None) -> float:
    """Write the source as a file type; bits a weight."""
    with ExitStack() as stack:
        if source.is_dir():
            model = load_source(source, warn=_silent)
        else:
            model = gguf_source(stack.enter_context(open_gguf(source)))
        return write_model(model, out, kind, imatrix=imatrix, allow_requantize=True, notify=_silent).bits_per_weight


def measure(path: Path, base: Base, n_expert_used: int | None = None) -> dict[str, Any]:
    """One file against the base."""
    with localmoe.load(str(path), n_ctx=base.chunks.shape[1], n_expert_used=n_expert_used) as model:
        *_, (_, result) = compare(model, base)
    d = result()
    return {
        "mib": path.stat().st_size / 2**20, "ppl": d.ppl, "ppl_error": d.ppl_error, "kld": d.kld,
        "kld_error": d.kld_error, "same_top": d.same_top, "same_top_error": d.same_top_error, "n_tokens": d.n_tokens,
    }  # fmt: skip


def rows(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    source: Path = arguments.source
    base_path, base_file = source, folder / "base"
    if source.is_dir():
        base_path = folder / "f16.gguf"
        write_type(source, base_path, "F16")
    text = "".join(path.read_text(encoding="utf-8") for path in arguments.texts)
    with localmoe.load(str(base_path), n_ctx=arguments.ctx_size) as model, base_file.open("wb") as file:
        n_expert, used = model.config.n_expert, model.config.n_expert_used
        chunks = cut_chunks(model.tokenize(text), model.n_ctx, arguments.chunks)
        *_, (_, estimate) = write_base(model, chunks, lambda data: file.write(data) and None)
    base = open_base(base_file)
    yield {"type": "base", "base": base_path.name, "ppl": estimate.ppl, "n_tokens": estimate.n_tokens}
    imatrix = read_imatrix(arguments.imatrix) if arguments.imatrix else None
    for kind in arguments.types.split(","):
        out = folder / "out.gguf"
        try:
            bits = write_type(source, out, kind, imatrix)
        except LocalMoeError as error:
            print(f"{kind} left out: {error}", file=sys.stderr)
            continue
        yield {"type": kind, "bits": bits, **measure(out, base)}
        out.unlink()
    counts = [int(count) for count in arguments.experts.split(",") if count]
    for count in counts if n_expert else ():
        yield {"experts_used": count, "default": count == used, **measure(base_path, base, min(count, n_expert))}


def markdown(row: dict[str, Any]) -> str:
    """A line of docs/quality.md."""
    ppl, kld = f"{row['ppl']:.3f} ± {row['ppl_error']:.3f}", f"{row['kld']:.5f} ± {row['kld_error']:.5f}"
    figures = f"{ppl} | {kld} | {row['same_top']:.2f}%"
    if "type" in row:
        return f"| {row['type']} | {row['mib']:.1f} | {row['bits']:.2f} | {figures} |"
    return f"| {row['experts_used']}{' (its own)' if row['default'] else ''} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--types", default=",".join(RECIPES))
    parser.add_argument("--imatrix", type=Path, help="an importance matrix of the source")
    parser.add_argument("--experts", default="1,2,3,4")
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    headed = set()
    with tempfile.TemporaryDirectory() as temporary:
        for row in rows(arguments, Path(temporary)):
            kind = "type" if "type" in row else "experts"
            if not arguments.markdown:
                print(json.dumps(row), flush=True)
            elif row.get("type") == "base":
                print(f"base {row['base']}: PPL {row['ppl']:.3f} over {row['n_tokens']} tokens", file=sys.stderr)
            else:
                if kind not in headed:
                    print(("\n" if headed else "") + HEADERS[kind])
                    headed.add(kind)
                print(markdown(row), flush=True)


if __name__ == "__main__":
    main()
