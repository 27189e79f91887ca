"""Perplexity by llama.cpp, through llama-cpp-python, with the steps of its tools/perplexity/perplexity.cpp.

    python llama_perplexity.py MODEL.gguf IDS.npy N_CTX BASE OUT.json

IDS.npy: the text's token ids. BASE: the file of log-probabilities to write, as --kl-divergence-base does; - for none.
OUT.json: ppl, error.
"""

from __future__ import annotations

import json
import math
import sys
from typing import BinaryIO

import llama_cpp
import numpy as np


def row(logits: np.ndarray) -> bytes:
    """One row of the file: log_softmax() of perplexity.cpp with `log_prob`."""
    f = np.float32
    top = logits.max()
    least = max(logits.min(), top - f(16))
    log_sum = f(math.log(np.exp(logits - top).sum(dtype=np.float64)))
    scale = (top - least) / f(65535)
    q = np.zeros(2 * ((len(logits) + 1) // 2), np.uint16)
    if scale:
        rounded = np.rint((f(1) / scale) * (logits - least))
        q[: len(logits)] = np.where(logits > least, rounded, 0)
    return np.array([scale, least - top - log_sum], np.float32).tobytes() + q.tobytes()


def main() -> None:
    path, ids_path, n_ctx_text, base, out_path = sys.argv[1:6]
    n_ctx = int(n_ctx_text)
    llm = llama_cpp.Llama(path, n_ctx=n_ctx, logits_all=True, n_threads=2, verbose=False, n_batch=n_ctx)
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    add_bos, bos = llama_cpp.llama_vocab_get_add_bos(vocab), llama_cpp.llama_vocab_bos(vocab)
    ids = np.load(ids_path)
    chunks = ids[: len(ids) // n_ctx * n_ctx].reshape(-1, n_ctx)
    file: BinaryIO | None = None
    if base != "-":
        file = open(base, "wb")  # noqa: SIM115
        file.write(b"_logits_" + np.array([n_ctx, llm.n_vocab(), len(chunks)], np.int32).tobytes())
        file.write(chunks.astype(np.int32).tobytes())
    values = []
    for chunk in chunks:
        tokens = chunk.tolist()
        if add_bos:
            tokens[0] = bos
        llm.reset()
        llm.eval(tokens)
        for j in range(n_ctx // 2, n_ctx - 1):
            logits = np.array(llm.scores[j], np.float32)
            top = logits.max()
            total = np.exp(logits - top).sum(dtype=np.float64)
            values.append(math.log(total) - float(logits[chunk[j + 1]] - top))
            if file is not None:
                file.write(row(logits))
    if file is not None:
        file.close()
    n, mean = len(values), sum(values) / len(values)
    variance = sum(v * v for v in values) / n - mean * mean
    ppl = math.exp(mean)
    with open(out_path, "w") as out:
        json.dump({"ppl": ppl, "error": math.sqrt(variance / (n - 1)) * ppl}, out)


main()
