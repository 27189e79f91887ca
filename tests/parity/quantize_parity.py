"""localmoe quantize against llama-quantize: whole files, byte for byte, and the types chosen for real models' shapes.

Both with and without an importance matrix, in which one expert of each stack has no data and one tensor is missing.

    python tests/parity/quantize_parity.py [--types IQ4_XS,Q4_K_M]
    python tests/parity/quantize_parity.py --record tests/converters/data/llama_quantize_types.json

llama.cpp is asked through llama-cpp-python, in this interpreter or in the one LLAMA_PYTHON names. Prints one
JSON line; exit 1 where a byte differs. `--record` writes the types llama-quantize chooses, which ordinary tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# fields of tests.tiny.Tiny; n_embd 64 or 96 and n_ff 96 make rows that do not divide into blocks of 256 (or 32)
MODELS: dict[str, dict[str, Any]] = {
    "8 experts": {"n_expert": 8, "n_embd": 256, "n_ff": 256, "n_layer": 9},
    "8 experts, tied, BF16": {"n_expert": 8, "n_embd": 256, "n_ff": 512, "n_layer": 2, "type": "BF16", "tied": True},
    "5 experts, F16": {"n_expert": 5, "n_embd": 256, "n_ff": 256, "n_layer": 3, "type": "F16"},
    "4 experts, rows of 64 and 96": {"n_expert": 4, "n_embd": 64, "n_ff": 96, "n_layer": 2},
    "8 experts, rows of 96 and 40": {"n_expert": 8, "n_embd": 96, "n_ff": 40, "n_layer": 2, "type": "F16"},
    "dense": {"n_expert": 0, "n_embd": 256, "n_ff": 768, "n_layer": 17},
    "dense, tied, rows of 64, F16": {
        "n_expert": 0,
        "n_embd": 64,
        "n_ff": 160,
        "n_layer": 2,
        "type": "F16",
        "tied": True,
    },
}

WITH_IMATRIX = (
    "8 experts", "8 experts, tied, BF16", "5 experts, F16", "4 experts, rows of 64 and 96", "dense",
)  # fmt: skip
# what a command line may change: arguments of recipe.parse_options, each for one model and file type
OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("8 experts", "Q4_K_M", {"pure": True}),
    ("8 experts", "Q4_K_M", {"leave_output": True}),
    ("5 experts, F16", "IQ4_XS", {"leave_output": True, "token_embedding_type": "Q8_0"}),
    ("5 experts, F16", "Q2_K", {"output_type": "Q5_K", "token_embedding_type": "IQ4_NL"}),
    ("8 experts, tied, BF16", "Q3_K_M", {"output_type": "Q8_0"}),
    ("8 experts, tied, BF16", "IQ4_XS", {"pure": True, "token_embedding_type": "Q6_K"}),
    (
        "8 experts",
        "Q3_K_S",
        {"overrides": [[r"blk\.[0-3]\.ffn_", "TQ2_0"], ["attn_(q|k)", "IQ4_XS"], ["ffn_down", "MXFP4"]]},
    ),
    ("4 experts, rows of 64 and 96", "Q6_K", {"overrides": [["ffn_down", "IQ4_XS"], ["attn_v", "TQ1_0"]]}),
    ("dense", "Q4_K_M", {"overrides": [[r"blk\.1\.attn_v", "F16"]], "output_type": "BF16"}),
)
CHUNKS = 7
IMATRIX = " with an imatrix"

# real shapes; weights are never read, so the files are holes
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_expert": 8},
    "mixtral-8x22b": {"n_layer": 56, "n_embd": 6144, "n_ff": 16384, "n_head": 48, "n_head_kv": 8, "n_expert": 8},
    "4x7b": {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8, "n_expert": 4},
    "llama-70b": {"n_layer": 80, "n_embd": 8192, "n_ff": 28672, "n_head": 64, "n_head_kv": 8, "n_expert": 0},
    "llama-65b": {"n_layer": 80, "n_embd": 8192, "n_ff": 22016, "n_head": 64, "n_head_kv": 64, "n_expert": 0},
    "smollm2-135m": {
        "n_layer": 30, "n_embd": 576, "n_ff": 1536, "n_head": 9, "n_head_kv": 3, "n_expert": 0, "tied": True,
    },
    "4x-smollm2-135m": {
        "n_layer": 30, "n_embd": 576, "n_ff": 1536, "n_head": 9, "n_head_kv": 3, "n_expert": 4, "tied": True,
    },
}  # fmt: skip


def make_imatrix(source: Path, path: Path, missing: str = "") -> Any:
    """A random importance matrix for all matrices but embedding, output and `missing`; beside it NumPy's form."""
    import numpy as np

    from localmoe.converters.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
    from localmoe.gguf_file import open_gguf

    rng, entries = np.random.default_rng(1), {}
    with open_gguf(source) as gguf:
        for name, info in gguf.tensors.items():
            if len(info.shape) > 1 and name not in ("token_embd.weight", "output.weight", missing):
                n = info.shape[0] if len(info.shape) == 3 else 1
                sums = (rng.standard_normal((n, info.shape[-1])) ** 2 * 1000).astype(np.float32)
                counts = rng.integers(1, 900, n)
                counts[1:2] = 0
                entries[name] = Entry(sums, counts)
    write_imatrix(Imatrix(entries, ("text.txt",), CHUNKS, 512), path)
    arrays = {f"{name}.sums": entry.sums for name, entry in entries.items()}
    np.savez(f"{path}.npz", **arrays, **{f"{name}.counts": entry.counts for name, entry in entries.items()})
    return read_imatrix(path)


def ask_llama(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, str]]:
    """Quantize with llama.cpp: the types of every job's tensors, by name."""
    python = os.environ.get("LLAMA_PYTHON") or sys.executable
    asked, answer = folder / "jobs.json", folder / "answer.json"
    asked.write_text(json.dumps([job | {"chunks": CHUNKS} for job in jobs]))
    peer = Path(__file__).parent / "peers" / "llama_quantize_jobs.py"
    subprocess.run([python, str(peer), str(asked), str(answer)], check=True)
    result: list[dict[str, str]] = json.loads(answer.read_text())
    return result


def compare_files(folder: Path, types: list[str]) -> tuple[int, list[str]]:
    """Quantize every model to every one of `types` on both sides; how many pairs of files, and which of them differ."""
    from localmoe.converters.recipe import RECIPES
    from tests.tiny import write_tiny

    jobs, ours, labels = [], [], []
    for number, (label, fields) in enumerate(MODELS.items()):
        source = write_tiny(folder / f"{number}.gguf", **fields)
        matrices = _matrices(source) if label in WITH_IMATRIX else None
        for name, imatrix in product(types, (False, True) if matrices else (False,)):
            file_type, out = int(RECIPES[name].file_type), folder / f"{number}-{name}{'-i' if imatrix else ''}.gguf"
            matrix = _matrix(matrices, name, source) if matrices and imatrix else None
            job = {"source": str(source), "out": f"{out}.theirs", "file_type": file_type, "dry_run": False}
            job["imatrix"] = f"{matrix.label}.npz" if matrix else None
            job["refused"] = not _write(source, out, name, matrix)
            jobs.append(job)
            ours.append(out)
            labels.append(f"{label} -> {name}{IMATRIX if matrix else ''}")
    ask_llama(jobs, folder)
    differ = [
        label
        for label, mine, job in zip(labels, ours, jobs, strict=True)
        if not job["refused"] and mine.read_bytes() != Path(job["out"]).read_bytes()
    ]
    return sum(not job["refused"] for job in jobs), differ


def compare_options(folder: Path) -> tuple[int, list[str]]:
    """Whole files with each of `OPTIONS`: how many, and which differ."""
    from localmoe.converters.recipe import RECIPES
    from tests.tiny import write_tiny

    jobs = []
    for number, (label, file_type, options) in enumerate(OPTIONS):
        source = write_tiny(folder / f"options-{number}.gguf", **MODELS[label])
        out = folder / f"options-{number}-out.gguf"
        _write(source, out, file_type, None, options)
        jobs.append({
            "source": str(source), "out": f"{out}.theirs", "file_type": int(RECIPES[file_type].file_type),
            "dry_run": False, "imatrix": None, "options": options,
        })  # fmt: skip
    ask_llama(jobs, folder)
    differ = []
    for (label, file_type, options), job in zip(OPTIONS, jobs, strict=True):
        their = Path(str(job["out"]))
        if their.read_bytes() != their.with_suffix("").read_bytes():
            differ.append(f"{label} -> {file_type} with {options}")
    return len(jobs), differ


def _write(source: Path, out: Path, file_type: str, matrix: Any, options: dict[str, Any] | None = None) -> bool:
    """Quantize; False where that takes an importance matrix."""
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.pipeline import write_model
    from localmoe.converters.recipe import parse_options
    from localmoe.errors import UsageError
    from localmoe.gguf_file import open_gguf

    with open_gguf(source) as gguf:
        try:
            write_model(
                gguf_source(gguf), out, file_type, imatrix=matrix, options=parse_options(**(options or {})),
                notify=lambda line: None,
            )  # fmt: skip
        except UsageError as error:
            if "needs an importance matrix" in str(error):
                return False
            raise
    return True


def _matrices(source: Path) -> tuple[Any, Any]:
    """A matrix in which a tensor is missing, and one in which none is."""
    whole = make_imatrix(source, source.with_suffix(".whole.imatrix"))
    return make_imatrix(source, source.with_suffix(".imatrix"), missing="blk.0.attn_q.weight"), whole


def _matrix(matrices: tuple[Any, Any], file_type: str, source: Path) -> Any:
    """The matrix in which a tensor is missing, unless the file type needs all."""
    whole = not _write(source, source.with_suffix(".trial"), file_type, None)
    return matrices[whole]


def shape_model(fields: dict[str, Any]) -> Any:
    """A SourceModel with the tensors of real shapes in F16 and nothing in them."""
    from gguf import GGMLQuantizationType, GGUFValueType

    from localmoe.converters.source import MetaValue, SourceModel, SourceTensor

    f = {"tied": False, "n_vocab": 32000} | fields
    d, ff, e = f["n_embd"], f["n_ff"], f["n_expert"]
    kv = d // f["n_head"] * f["n_head_kv"]
    stack, suffix = ((e,), "_exps") if e else ((), "")
    layer = {
        "attn_norm": (d,), "attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d),
        "ffn_norm": (d,), f"ffn_gate{suffix}": (*stack, ff, d), f"ffn_up{suffix}": (*stack, ff, d),
        f"ffn_down{suffix}": (*stack, d, ff),
    } | ({"ffn_gate_inp": (e, d)} if e else {})  # fmt: skip
    shapes = {"token_embd": (f["n_vocab"], d), "output_norm": (d,)} | (
        {} if f["tied"] else {"output": (f["n_vocab"], d)}
    )
    shapes |= {f"blk.{i}.{name}": shape for i in range(f["n_layer"]) for name, shape in layer.items()}
    numbers = {
        "block_count": f["n_layer"], "context_length": 4096, "embedding_length": d, "feed_forward_length": ff,
        "attention.head_count": f["n_head"], "attention.head_count_kv": f["n_head_kv"],
    } | ({"expert_count": e, "expert_used_count": 2} if e else {})  # fmt: skip
    metadata = {"general.architecture": MetaValue("llama", GGUFValueType.STRING)}
    metadata |= {f"llama.{key}": MetaValue(value, GGUFValueType.UINT32) for key, value in numbers.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = MetaValue(1e-5, GGUFValueType.FLOAT32)
    f16, f32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32
    tensors = [
        SourceTensor(f"{name}.weight", shape, f32 if len(shape) == 1 or "gate_inp" in name else f16, [])
        for name, shape in shapes.items()
    ]
    return SourceModel(metadata, tensors, e, f["n_layer"], "shapes", origin="gguf")


def write_hole(model: Any, path: Path) -> None:
    """The model's header, and a hole where its weights would be."""
    from localmoe.converters.output import TensorHeader, header_bytes, padded

    headers = []
    for tensor in model.tensors:
        n_bytes = tensor.n_rows * tensor.n_columns * tensor.type.name.endswith("16") * 2
        n_bytes = n_bytes or tensor.n_rows * tensor.n_columns * 4
        headers.append(TensorHeader(tensor.name, tensor.shape, tensor.type, n_bytes))
    head = header_bytes(model.metadata, headers)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + sum(padded(h.n_bytes) for h in headers))


def compare_types(folder: Path, types: list[str]) -> tuple[dict[str, dict[str, dict[str, str]]], list[str]]:
    """What llama-quantize chooses for real shapes, and where the recipes choose otherwise.

    Of a type with an importance matrix only what differs from the type without is recorded, as `TYPE with an imatrix`.
    """
    import numpy as np

    from localmoe.converters.recipe import RECIPES, Options, choose_types

    matrix = folder / "any.npz"
    np.savez(matrix, **{"blk.0.attn_q.weight.sums": np.ones((1, 4), np.float32), "blk.0.attn_q.weight.counts": [1]})
    jobs, keys = [], []
    for name, fields in SHAPES.items():
        path = folder / f"{name}.gguf"
        write_hole(shape_model(fields), path)
        for recipe, imatrix in product((RECIPES[t] for t in types), (None, str(matrix))):
            keys.append((name, recipe.name, imatrix is not None))
            jobs.append({
                "source": str(path), "out": str(folder / "none"), "file_type": int(recipe.file_type), "dry_run": True,
                "imatrix": imatrix,
            })  # fmt: skip
    answers = dict(zip(keys, ask_llama(jobs, folder), strict=True))
    differ = []
    recorded: dict[str, dict[str, dict[str, str]]] = {name: {} for name in SHAPES}
    for (name, type_name, with_imatrix), answer in answers.items():
        choices = choose_types(shape_model(SHAPES[name]), type_name, Options(has_imatrix=with_imatrix))
        if list(answer.items()) != [(choice.tensor.name, choice.type.name) for choice in choices]:
            differ.append(f"types of {name} -> {type_name}{IMATRIX if with_imatrix else ''}")
        kinds = by_kind(answer)
        if kinds != recorded[name].get(type_name):
            recorded[name][type_name + (IMATRIX if with_imatrix else "")] = kinds
    return recorded, differ


def by_kind(types: dict[str, str]) -> dict[str, str]:
    """Types by the part of the name after the layer; one type a layer, or a single one where all agree."""
    kinds: dict[str, list[str]] = {}
    for name, type_name in types.items():
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "blk.", name), []).append(type_name)
    return {
        kind: " ".join(dict.fromkeys(all_) if len(set(all_)) == 1 else all_) for kind, all_ in sorted(kinds.items())
    }


def main() -> int:
    """Compare, print, and record if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--types", help="only these file types; all without")
    options = parser.parse_args()
    from localmoe.converters.recipe import RECIPES

    types = options.types.split(",") if options.types else list(RECIPES)
    with tempfile.TemporaryDirectory() as folder:
        n_files, differ = compare_files(Path(folder), types)
        n_options, with_options = compare_options(Path(folder))
        recorded, other = compare_types(Path(folder), types)
    if options.record:
        options.record.write_text(json.dumps({"shapes": SHAPES, "types": recorded}, indent=1) + "\n")
    n_types = sum(len(types) for types in recorded.values())
    differ += with_options + other
    print(
        json.dumps(
            {"test": "quantize", "files": n_files, "with_options": n_options, "type_tables": n_types, "differ": differ}
        )
    )
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
