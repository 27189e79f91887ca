"""The runtime against Hugging Face transformers (float32) and llama.cpp (the same quantized files).

    python tests/parity/runtime_parity.py [--record tests/engine/data]

PARITY_PYTHON and LLAMA_PYTHON name interpreters that have them. Prints a JSON line a model; exit 1 where a bound does
not hold. Near-ties in routing may fall either way: tokens whose margin is below 1e-3 in some layer, and those after
them, are counted apart. `--record` writes the references the ordinary tests use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import LlamaFileType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import localmoe
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.pipeline import write_model
from localmoe.engine.api import EvalResult
from localmoe.gguf_file import open_gguf
from tests.naive_model import nmse
from tests.tiny import Tiny, tiny_weights, write_tiny

Writer = Callable[[Path, Path, str], None]  # (float model to write, quantized file to write, type)
PEERS = Path(__file__).parent / "peers"
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "8x2": {},
    "5x2": {"n_expert": 5},
    "8x3": {"n_expert_used": 3},
    "4x1": {"n_expert": 4, "n_expert_used": 1},
    "8x2-tied": {"tied": True},
    "5x2-tied": {"n_expert": 5, "tied": True, "n_head": 8, "n_head_kv": 1},
}
LLAMA_TYPES = ("F16", "Q8_0", "Q4_K_M", "Q6_K")
PURE_TYPES = (  # IQ2_M: most of a file of type IQ2_S is IQ2_XS
    "Q4_1", "Q5_1",
    "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0",
    "MXFP4_MOE",
)  # fmt: skip
LLAMA_MODEL: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "n_head": 4, "n_layer": 3}
STANDARD_DEVIATION = 0.02  # transformers' initializer_range
MARGIN = 1e-3


def token_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 250, n).astype(np.int32)


def evaluate(path: Path, ids: np.ndarray, cache: str) -> EvalResult:
    with localmoe.load(str(path), n_ctx=len(ids) + 8, cache_type_k=cache, cache_type_v=cache) as model:
        return model.eval(ids.tolist())


def transformers_logits(fields: dict[str, Any], ids: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
    tiny = Tiny(**fields)
    sizes = {n: getattr(tiny, n) for n in ("n_head", "n_head_kv", "n_expert_used", "rms_eps", "rope_freq_base")}
    np.savez(folder / "w.npz", ids=ids, **tiny_weights(**fields), **sizes)
    python = os.environ["PARITY_PYTHON"]
    subprocess.run([python, PEERS / "mixtral_logits.py", folder / "w.npz", folder / "o.npz"], check=True)
    return dict(np.load(folder / "o.npz"))


def against_transformers(name: str, record: Path | None) -> bool:
    fields, ids = TRANSFORMERS[name], token_ids(48)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        theirs = transformers_logits(fields, ids, folder)
        ours = evaluate(write_tiny(folder / "m.gguf", **fields), ids, "f32")
    if record is not None:
        np.savez_compressed(
            record / f"transformers-{name}.npz", ids=ids, logits=theirs["logits"][-8:], experts=theirs["experts"]
        )
    error = nmse(ours.logits, theirs["logits"])
    same = bool((ours.experts == theirs["experts"]).all())
    print(json.dumps({"peer": "transformers", "model": name, "nmse": error, "same_experts": same}), flush=True)
    return error <= 1e-9 and same


def margins(result: EvalResult) -> np.ndarray:
    """The least distance (T,) between the last chosen probability and the next, over all layers."""
    ordered = -np.sort(-result.router, axis=-1)
    k = result.experts.shape[2]
    return (ordered[..., k - 1] - ordered[..., k]).min(axis=1) if k < ordered.shape[2] else np.ones(len(ordered))


def kl(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Mean KL divergence, nats a token."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def initialised(fields: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights as transformers initialises a model: tests.tiny's are wilder, and amplify int8 activations' noise."""

    def scaled(values: np.ndarray) -> np.ndarray:
        return values * np.float32(STANDARD_DEVIATION / values.std(dtype=np.float64))

    return {
        name: scaled(values) if values.ndim > 1 else np.ones_like(values)
        for name, values in tiny_weights(**fields).items()
    }


def write_initialised(source: Path, path: Path, kind: str) -> None:
    """LLAMA_MODEL quantized to a file type by localmoe."""
    write_tiny(source, extra_tensors=initialised(LLAMA_MODEL), **LLAMA_MODEL)
    with open_gguf(source) as file:
        write_model(gguf_source(file), path, kind, notify=lambda line: None)


def write_pure(source: Path, path: Path, kind: str) -> None:
    """LLAMA_MODEL in one type throughout, quantized by llama.cpp with an importance matrix."""
    write_tiny(source, extra_tensors=initialised(LLAMA_MODEL), **LLAMA_MODEL)
    rng, matrix = np.random.default_rng(2), source.with_suffix(".npz")
    arrays = {}
    with open_gguf(source) as file:
        for name, tensor in file.tensors.items():
            if len(tensor.shape) > 1:
                rows = tensor.shape[0] if len(tensor.shape) == 3 else 1
                arrays[f"{name}.sums"] = rng.chisquare(3, (rows, tensor.shape[-1])).astype(np.float32)
                arrays[f"{name}.counts"] = np.ones(rows, np.float32)
    np.savez(matrix, **arrays)
    job = {"source": str(source), "out": str(path), "file_type": LlamaFileType[f"MOSTLY_{kind}"].value}
    job |= {"dry_run": False, "imatrix": str(matrix), "chunks": 1, "options": {"pure": True}}
    jobs, answer = source.with_suffix(".jobs"), source.with_suffix(".answer")
    jobs.write_text(json.dumps([job]), encoding="utf-8")
    command = [os.environ["LLAMA_PYTHON"], PEERS / "llama_quantize_jobs.py", jobs, answer]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def against_llama(kind: str, record: Path | None, write: Writer) -> bool:
    ids = token_ids(64, 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "q.gguf"
        write(folder / "m.gguf", path, kind)
        with open_gguf(path) as file:
            types = Counter(tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1)
        np.save(folder / "ids.npy", ids)
        command = [os.environ["LLAMA_PYTHON"], PEERS / "llama_logits.py", path, folder / "ids.npy", folder / "out.npy"]
        subprocess.run(command, check=True)
        theirs, ours = np.load(folder / "out.npy"), evaluate(path, ids, "f16")
    clear = margins(ours) > MARGIN
    error, divergence = nmse(ours.logits[clear], theirs[clear]), kl(theirs[clear], ours.logits[clear])
    row = {
        "peer": "llama.cpp", "type": kind, "tensors": dict(types), "nmse": error, "kl": divergence,
        "near_ties": int((~clear).sum()),
        "nmse_of_near_ties": nmse(ours.logits[~clear], theirs[~clear]) if (~clear).any() else None,
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    if record is not None:
        np.savez_compressed(record / f"llama-{kind}.npz", ids=ids, logits=theirs[-8:].astype(np.float32))
    return error <= 1e-4 and divergence <= 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    record = parser.parse_args().record
    results = [against_transformers(name, record) for name in TRANSFORMERS]
    results += [against_llama(kind, record, write_initialised) for kind in LLAMA_TYPES]
    results += [against_llama(kind, None, write_pure) for kind in PURE_TYPES]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
