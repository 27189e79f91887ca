"""localmoe franken against mergekit-moe on sources whose vocabularies differ: every tensor, in F32.

    PARITY_PYTHON=... python tests/parity/franken_vocabulary_parity.py [--record tests/converters/data/mergekit.json]

mergekit-moe's output is converted by localmoe. Prints one JSON line a base; exit 1 where a tensor differs. `--record`
writes what ordinary tests compare with: digests, and the router's numbers.
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

BASES = ("plain", "more")


def merged(recipe: Path, out: Path) -> None:
    """Run mergekit-moe, which stands beside PARITY_PYTHON."""
    program = Path(os.environ.get("PARITY_PYTHON", sys.executable)).with_name("mergekit-moe")
    command = [str(program), str(recipe), str(out), "--i-understand-this-is-not-useful-without-training"]
    environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def tensors(path: Path) -> dict[str, Any]:
    """name -> digest of a tensor, or for a router its numbers."""
    import numpy as np

    from localmoe.gguf_file import open_gguf

    with open_gguf(path) as opened:
        return {
            name: opened.raw(name).view(np.float32).tolist()
            if "ffn_gate_inp" in name
            else hashlib.sha256(opened.raw(name)).hexdigest()
            for name in opened.tensors
        }


def compare(base: str, folder: Path) -> tuple[dict[str, Any], bool]:
    """(the tensors of mergekit-moe's output, whether localmoe's are the same)."""
    import numpy as np

    from localmoe.converters.franken import build
    from localmoe.converters.franken_recipe import read_recipe
    from localmoe.converters.huggingface import load_source
    from localmoe.converters.pipeline import write_model
    from tests.franken_sources import write_sources

    recipe = write_sources(folder, base)
    merged(recipe, folder / f"merged-{base}")
    source = load_source(folder / f"merged-{base}", pre="gpt-2", warn=lambda _: None)
    write_model(source, folder / "theirs.gguf", "F32", notify=lambda _: None)
    build(read_recipe(recipe, print), folder / "ours.gguf", "F32", notify=lambda _: None)
    theirs, own = tensors(folder / "theirs.gguf"), tensors(folder / "ours.gguf")
    different = sorted(theirs.keys() ^ own.keys())
    for name in theirs.keys() & own.keys():
        if isinstance(theirs[name], str):
            same = theirs[name] == own[name]
        else:
            same = np.allclose(theirs[name], own[name], atol=3e-7)
        different += [] if same else [name]
    print(json.dumps({"check": f"base {base}", "passed": not different, "tensors": len(own), "different": different}))
    return theirs, not different


def main() -> int:
    """Merge behind each base, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="franken-parity-") as temporary:
        results = {base: compare(base, Path(temporary)) for base in BASES}
    if arguments.record:
        table = {base: found for base, (found, _) in results.items()}
        arguments.record.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0 if all(same for _, same in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
