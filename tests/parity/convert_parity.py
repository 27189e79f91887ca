"""localmoe convert against llama.cpp's convert_hf_to_gguf.py: whole files, byte for byte.

    LLAMA_CPP=path/to/llama.cpp python tests/parity/convert_parity.py [--record tests/converters/data/convert.json]

The converter runs from a checkout of llama.cpp, in the interpreter PARITY_PYTHON names (torch and transformers). Prints
one JSON line; exit 1 where a byte differs. `--record` writes the digests that ordinary tests use. Its recognition of
pre-tokenizers by hash is replaced by "gpt-2": it knows published vocabularies only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TYPES = ("F32", "F16", "BF16", "Q8_0")


def theirs(jobs: list[dict[str, str]], llama_cpp: str) -> None:
    """Run llama.cpp's converter for jobs {source, out, type}, in this interpreter."""
    import logging

    sys.path[:0] = [f"{llama_cpp}/gguf-py", llama_cpp]
    import gguf
    import torch
    from conversion import ModelType, get_model_architecture, get_model_class
    from conversion.base import ModelBase, TextModel

    logging.disable(logging.CRITICAL)
    file_types = {
        "F32": gguf.LlamaFileType.ALL_F32,
        "F16": gguf.LlamaFileType.MOSTLY_F16,
        "BF16": gguf.LlamaFileType.MOSTLY_BF16,
        "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    for job in jobs:
        hparams = ModelBase.load_hparams(Path(job["source"]), False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)
        with torch.inference_mode():
            model_class(Path(job["source"]), file_types[job["type"]], Path(job["out"])).write()


def ask_theirs(jobs: list[dict[str, str]], llama_cpp: str, folder: Path) -> None:
    """`theirs` in PARITY_PYTHON, which borrows this environment's sentencepiece."""
    import sentencepiece

    borrowed = folder / "borrowed"
    borrowed.mkdir()
    (borrowed / "sentencepiece").symlink_to(Path(sentencepiece.__file__).parent)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    environment = os.environ | {"PYTHONPATH": str(borrowed), "TRANSFORMERS_VERBOSITY": "error"}
    command = [python, __file__, "--theirs", str(folder / "jobs.json"), "--llama-cpp", llama_cpp]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def ours(source: Path, out: Path, file_type: str) -> None:
    """Convert one checkpoint by the project's own code."""
    from localmoe.converters.huggingface import load_source
    from localmoe.converters.pipeline import write_model

    write_model(load_source(source, warn=lambda _: None), out, file_type, notify=lambda _: None)


def metadata_of(path: Path) -> dict[str, Any]:
    """key -> value of a GGUF; long arrays as their length and digest."""
    import gguf

    table: dict[str, Any] = {}
    for key, entry in gguf.GGUFReader(path).fields.items():
        value = entry.contents()
        if isinstance(value, list) and len(value) > 8:
            value = [len(value), hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]]
        if not key.startswith("GGUF."):
            table[key] = value
    return table


def main() -> int:
    """Make the checkpoints, convert them twice, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--llama-cpp", default=os.environ.get("LLAMA_CPP"))
    arguments = parser.parse_args()
    if not arguments.llama_cpp:
        print(json.dumps({"convert": "skipped: LLAMA_CPP names no checkout of llama.cpp"}))
        return 0
    if arguments.theirs:
        theirs(json.loads(arguments.theirs.read_text()), arguments.llama_cpp)
        return 0
    with tempfile.TemporaryDirectory() as name:
        recorded, differing = compare(Path(name), arguments.llama_cpp)
    print(json.dumps({"convert": len(recorded), "types": TYPES, "differing": differing}))
    if arguments.record:
        arguments.record.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if differing else 0


def compare(folder: Path, llama_cpp: str) -> tuple[dict[str, Any], list[str]]:
    """(what the converter made of each case, the files that differ)."""
    from tests.checkpoint_variants import VARIANTS
    from tests.checkpoints import CASES, write_checkpoint

    sources = {name: write_checkpoint(folder / name, tiny) for name, tiny in (CASES | VARIANTS).items()}
    trained = ROOT.parent / "shared" / "data" / "tiny-moe"
    if trained.is_dir():
        sources["tiny-moe"] = trained
    jobs = [
        {"source": str(source), "type": kind, "out": str(folder / f"{name}.{kind}.gguf")}
        for name, source in sources.items()
        for kind in TYPES
    ]
    ask_theirs(jobs, llama_cpp, folder)
    recorded: dict[str, Any] = {}
    differing = []
    for name, source in sources.items():
        recorded[name] = {"metadata": metadata_of(folder / f"{name}.F16.gguf"), "sha256": {}}
        for kind in TYPES:
            expected = (folder / f"{name}.{kind}.gguf").read_bytes()
            ours(source, folder / "ours.gguf", kind)
            recorded[name]["sha256"][kind] = hashlib.sha256(expected).hexdigest()
            if (folder / "ours.gguf").read_bytes() != expected:
                differing.append(f"{name}.{kind}")
    return recorded, differing


if __name__ == "__main__":
    raise SystemExit(main())
