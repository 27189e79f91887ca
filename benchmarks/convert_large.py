"""Convert a checkpoint of many gigabytes, and how much memory that takes: one JSON line.

    python benchmarks/convert_large.py [--layers 4] [--layout split] [--type Q4_K_M] [--threads 2] [--folder /tmp]

The checkpoint has Mixtral-8x7B's shapes (2.9 GB a layer), random bfloat16 weights and a shard a layer; it is written
first, into `--folder`, and removed in the end. `peak_rss_mb` is what the operating system counts for the process, pages
of the mapped source included; `peak_private_mb` leaves those out. `stack_mb` is the size of the largest expert stack in
the source and as it is written.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from localmoe.gguf_file import open_gguf  # noqa: E402
from tests.checkpoints import Tiny, bpe_tokenizer, config_json, vocab_size  # noqa: E402

SHAPE = Tiny(n_embd=4096, n_ff=14336, n_head=32, n_head_kv=8, n_expert=8, n_vocab=32000, dtype="BF16")
MB = 1 << 20
Shapes = dict[str, tuple[int, ...]]


def layer_shapes(tiny: Tiny, number: int) -> Shapes:
    """Tensors of a layer; in the packed layout the experts are two stacks, as transformers 5 writes them."""
    d, f, n, kv = tiny.n_embd, tiny.n_ff, tiny.n_expert, tiny.n_embd // tiny.n_head * tiny.n_head_kv
    layer = f"model.layers.{number}"
    shapes: Shapes = {f"{layer}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": (kv if name in "kv" else d, d) for name in "qkvo"}
    if tiny.layout == "packed":
        shapes[f"{layer}.mlp.gate.weight"] = (n, d)
        return shapes | {
            f"{layer}.mlp.experts.gate_up_proj": (n, 2 * f, d),
            f"{layer}.mlp.experts.down_proj": (n, d, f),
        }
    moe = f"{layer}.block_sparse_moe"
    shapes[f"{moe}.gate.weight"] = (n, d)
    for i in range(n):
        shapes |= {f"{moe}.experts.{i}.w{w}.weight": ((d, f) if w == 2 else (f, d)) for w in (1, 2, 3)}
    return shapes


def noise_bits(n: int, dtype: str) -> npt.NDArray[np.uint16]:
    """Normal weights of a usual size, rounded to F16 or cut to BF16."""
    noise = np.random.default_rng(0).standard_normal(n).astype(np.float32) * 0.02
    return noise.astype(np.float16).view(np.uint16) if dtype == "F16" else (noise.view(np.uint32) >> 16).astype("u2")


def write_shard(path: Path, dtype: str, shapes: Shapes, noise: npt.NDArray[np.uint16]) -> int:
    """A safetensors file of tensors of 16 bits; its size in bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, shape in enumerate(shapes.values()):
            left, at = int(np.prod(shape)), i * 7919 % (len(noise) // 2)
            while left:
                part = noise[at : at + left]
                file.write(part.tobytes())
                left, at = left - len(part), 0
    return path.stat().st_size


def write_checkpoint(folder: Path, tiny: Tiny) -> int:
    """Write config, tokenizer, index and a shard a layer into `folder`, which is there; the shards' bytes."""
    config = config_json(tiny) | {"torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[tiny.dtype]}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>"}
    texts = {"config.json": config, "tokenizer.json": bpe_tokenizer(), "tokenizer_config.json": tokenizer}
    d, n_vocab = tiny.n_embd, vocab_size(tiny)
    ends: Shapes = {
        "model.embed_tokens.weight": (n_vocab, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (n_vocab, d),
    }
    shards = [ends, *(layer_shapes(tiny, i) for i in range(tiny.n_layer))]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    noise = noise_bits(1 << 26, tiny.dtype)
    size = sum(
        write_shard(folder / name, tiny.dtype, shapes, noise) for name, shapes in zip(names, shards, strict=True)
    )
    where = {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes}
    texts["model.safetensors.index.json"] = {"metadata": {"total_size": size}, "weight_map": where}
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return size


def private_kb(pid: int) -> Iterator[int]:
    """The process's own memory as it is now, nothing when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    yield from (int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def watch(command: list[str]) -> dict[str, float]:
    """Run a command: its seconds, and its memory in MiB."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max([peak, *private_kb(process.pid)])
        time.sleep(0.02)
    if status:
        sys.exit(f"error: {' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    seconds = time.perf_counter() - began
    cpu_s = round(usage.ru_utime + usage.ru_stime, 1)
    memory = {"peak_rss_mb": usage.ru_maxrss // 1024, "peak_private_mb": peak // 1024}
    return {"seconds": round(seconds, 1), "cpu_s": cpu_s} | memory


def main() -> None:
    """Write, convert, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--layout", choices=["split", "packed"], default="split")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = Path(name) / "checkpoint", Path(name) / "out.gguf"
        source.mkdir()
        size = write_checkpoint(source, replace(SHAPE, n_layer=args.layers, layout=args.layout))
        command = [sys.executable, "-m", "localmoe", "convert", str(source), "-o", str(out), "--type", args.type]
        row = watch([*command, "--threads", str(args.threads)])
        with open_gguf(out) as gguf:
            written = max(t.n_bytes for t in gguf.tensors.values() if "_exps" in t.name)
            stack = 2 * max(t.n_elements for t in gguf.tensors.values() if "_exps" in t.name)
        facts = {"layers": args.layers, "layout": args.layout, "type": args.type, "source_gb": round(size / 1e9, 2)}
        out_gb = round(out.stat().st_size / 1e9, 2)
        print(json.dumps({**facts, "out_gb": out_gb, "stack_mb": [stack // MB, written // MB], **row}))


if __name__ == "__main__":
    main()
