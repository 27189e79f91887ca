"""Split output against llama.cpp: --keep-split byte for byte llama-quantize's, and any split loads in llama.cpp.

    python tests/parity/split_parity.py

LLAMA_PYTHON names an interpreter that has llama-cpp-python. Prints a JSON line; exit 1 where something differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from localmoe.cli import main as localmoe
from tests.tiny import write_tiny

SHAPE = {"n_layer": 2, "n_embd": 64, "n_ff": 96}
PEER = """
import sys
import llama_cpp

source, out, model = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.keep_split, options.ftype = True, llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
code = llama_cpp.llama_model_quantize(source.encode(), out.encode(), options)
print(code, llama_cpp.Llama(model, n_ctx=64, verbose=False).n_vocab())
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = write_tiny(folder / "in.gguf", split_max_tensors=9, **SHAPE)
        localmoe(["quantize", str(first), str(folder / "ours.gguf"), "Q8_0", "--keep-split"])
        localmoe(["quantize", str(first), str(folder / "cut.gguf"), "F16", "--split-max-tensors", "5"])
        cut = next(folder.glob("cut-00001-of-*.gguf"))
        command = [os.environ["LLAMA_PYTHON"], "-c", PEER, first, folder / "theirs", cut]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        theirs = sorted(folder.glob("theirs-*.gguf"))
        same = [part.read_bytes() == Path(str(part).replace("theirs-", "ours-")).read_bytes() for part in theirs]
    print(json.dumps({"parts": len(theirs), "same": same, "quantized": said[0] == "0", "n_vocab": int(said[1])}))
    sys.exit(0 if theirs and all(same) and said[0] == "0" else 1)


if __name__ == "__main__":
    main()
