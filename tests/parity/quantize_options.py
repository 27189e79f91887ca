"""llama-quantize's digests of files made with its options, by both command lines.

    LLAMA_BIN=folder/of/llama.cpp/bin python tests/parity/quantize_options.py [--record]

Mixtrals of 4 and 8 experts and a dense Llama, whole and in parts. Prints one JSON line; exit 1 where a byte differs, or
a recorded digest is no longer llama-quantize's. `--record` writes the digests that ordinary tests use.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from localmoe.cli import main as localmoe
from localmoe.converters.huggingface import load_source
from localmoe.converters.imatrix import Entry, Imatrix, write_imatrix
from localmoe.converters.pipeline import write_model
from localmoe.gguf_file import open_gguf
from tests.checkpoints import write_checkpoint

DIGESTS = ROOT / "tests" / "converters" / "data" / "llama_quantize_options.json"
EXPERTS = (8, 4, 0)
WHOLE, SPLIT, MATRIX, TYPES = "f16.gguf", "f16-00001-of-00003.gguf", "imatrix.gguf", "types.txt"
CASES = tuple(
    tuple(line.split())
    for line in (
        f"--tensor-type-file {TYPES} {WHOLE} OUT Q4_K_M",
        f"--tensor-type attn_q=q2_k --tensor-type-file {TYPES} {WHOLE} OUT Q5_K_S",
        f"--tensor-type-file {TYPES} --tensor-type attn_q=q2_k --pure {WHOLE} OUT Q6_K",
        f"--imatrix {MATRIX} --include-weights attn {WHOLE} OUT Q4_K_M",
        f"--imatrix {MATRIX} --include-weights v.weight --include-weights attn_v {WHOLE} OUT IQ4_XS",
        f"--imatrix {MATRIX} --exclude-weights ffn_down --exclude-weights attn_q {WHOLE} OUT Q4_0",
        "--override-kv general.name=str:another --override-kv llama.rope.freq_base=float:1e6"
        f" --override-kv a.b=bool:true --override-kv a.n=int:7 {WHOLE} OUT Q4_K_M",
        f"--override-kv general.file_type=int:3 --override-kv general.quantization_version=int:9 {WHOLE} OUT Q8_0",
        f"--override-kv general.name=str: --imatrix {MATRIX} {WHOLE} OUT Q3_K_M",
        f"--prune-layers 1,2 {WHOLE} OUT Q4_K_M",
        f"--prune-layers 3,0,3 --imatrix {MATRIX} {WHOLE} OUT IQ2_XS",
        f"--prune-layers 1 --tensor-type blk.2.attn_q=q8_0 --override-kv general.name=str:x {WHOLE} OUT Q4_K_S",
        f"--prune-layers 1 {WHOLE} OUT F16",
        f"--prune-layers 2 {SPLIT} OUT Q5_K_M",
        f"--prune-layers 0,2 --keep-split --imatrix {MATRIX} --tensor-type-file {TYPES} {SPLIT} OUT IQ4_XS",
        f"--leave-output-tensor --output-tensor-type q8_0 {WHOLE} OUT Q4_K_M",
        f"--token-embedding-type bf16 --output-tensor-type F32 {WHOLE} OUT Q4_K",
        f"--keep-split --max-buffer-size 1 {SPLIT} OUT 7 2",
        f"--pure {WHOLE} Q4_K",
        f"{SPLIT} 15 1",
    )
)


def make_source(folder: Path, n_expert: int) -> Path:
    """The folder with an F16 GGUF, the same in parts, an importance matrix and a file of types."""
    family = {"family": "mixtral", "n_expert": n_expert} if n_expert else {"family": "llama"}
    shape = {**family, "n_embd": 256, "n_ff": 256, "n_layer": 4, "dtype": "F16"}
    write_model(load_source(write_checkpoint(folder / "checkpoint", **shape)), folder / WHOLE, "F16")
    n_tensors, entries = 0, {}
    with open_gguf(folder / WHOLE) as gguf:
        n_tensors = len(gguf.tensors)
        for name, info in gguf.tensors.items():
            if name.startswith("blk.") and len(info.shape) > 1:
                random, n = np.random.RandomState(zlib.crc32(name.encode())), n_expert if len(info.shape) == 3 else 1
                sums = random.random_sample((n, info.shape[-1])).astype(np.float32) * 99
                entries[name] = Entry(sums, random.randint(1, 900, n))
    write_imatrix(Imatrix(entries, ("text.txt",), 7, 512), folder / MATRIX)
    (folder / TYPES).write_text("attn_q=Q5_0\nFFN_down=iq4_nl  blk\\.[01]\\.attn_k=Q8_0\tattn_v=f16\n\n")
    parts = ("COPY", "--split-max-tensors", str(-(-n_tensors // 3)))
    assert localmoe(["quantize", str(folder / WHOLE), str(folder / WHOLE), *parts]) == 0
    return folder


def ours(case: tuple[str, ...]) -> str:
    """Digest of localmoe's files, which are made in the current folder."""
    assert localmoe(["quantize", *(f"{word}.gguf" if word == "OUT" else word for word in case)]) == 0
    return _digest(Path())


def theirs(case: tuple[str, ...], folder: Path) -> str:
    """Digest of llama-quantize's files."""
    command = [
        os.path.join(os.environ["LLAMA_BIN"], "llama-quantize"),
        *(f"{w}.gguf" if w == "OUT" else w for w in case),
    ]
    subprocess.run(command, capture_output=True, check=True, cwd=folder)
    return _digest(folder)


def _digest(folder: Path) -> str:
    """Of the names and bytes of what was written, which is removed."""
    total = hashlib.sha256()
    paths = sorted(path for path in folder.iterdir() if path.name.startswith(("OUT", "ggml-model-")))
    for path in paths:
        total.update(path.name.encode() + path.read_bytes())
        path.unlink()
    assert paths
    return total.hexdigest()


def main() -> int:
    """Compare, and record if asked."""
    if "LLAMA_BIN" not in os.environ:
        print(json.dumps({"test": "options of quantize", "skipped": "LLAMA_BIN names no folder of its programs"}))
        return 0
    recorded: dict[str, dict[str, str]] = {}
    differ = []
    for n_expert in EXPERTS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_source(Path(temporary), n_expert)
            os.chdir(folder)
            found = recorded[f"{n_expert} experts"] = {" ".join(case): theirs(case, folder) for case in CASES}
            differ += [
                f"{n_expert} experts: {name}"
                for name, case in zip(found, CASES, strict=True)
                if ours(case) != found[name]
            ]
            os.chdir(ROOT)
    if "--record" in sys.argv:
        DIGESTS.write_text(json.dumps(recorded, indent=1) + "\n")
    same = json.loads(DIGESTS.read_text()) == recorded
    n = len(EXPERTS) * len(CASES)
    print(json.dumps({"test": "options of quantize", "files": n, "differ": differ, "recorded_are_theirs": same}))
    return 1 if differ or not same else 0


if __name__ == "__main__":
    sys.exit(main())
