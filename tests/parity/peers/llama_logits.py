"""Every token's logits by llama.cpp, through llama-cpp-python.

    python llama_logits.py MODEL.gguf IDS.npy OUT.npy

IDS.npy: (T,) token ids, evaluated as one prompt. OUT.npy: (T, V) float32.
"""

from __future__ import annotations

import sys

import llama_cpp
import numpy as np


def main() -> None:
    model, ids_path, out_path = sys.argv[1:4]
    ids = np.load(ids_path).tolist()
    llm = llama_cpp.Llama(model, n_ctx=max(len(ids) + 8, 64), logits_all=True, n_threads=2, verbose=False, n_batch=512)
    llm.eval(ids)
    np.save(out_path, np.array(llm.scores[: len(ids)], np.float32))


main()
