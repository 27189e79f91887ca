"""Sums of squared inputs of llama.cpp's matrices, with the steps of its tools/imatrix/imatrix.cpp.

    python llama_imatrix.py MODEL.gguf CHUNKS.npy OUT.npz

CHUNKS.npy: (n_chunk, n_ctx) token ids. OUT.npz: NAME.in_sum2 (matrices, columns) and NAME.counts (matrices,).
llama.cpp calls back before and after each operation of its graph; an operation's tensor is read as ggml.h lays it out.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llama_cpp as lc
import numpy as np


class Tensor(ctypes.Structure):
    """struct ggml_tensor"""


Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip
MUL_MAT, MUL_MAT_ID, F32 = 29, 30, 0


def view(tensor: Any, kind: Any) -> np.ndarray:
    """A tensor's elements (ne2, ne1, ne0) by its strides."""
    shape = tuple(tensor.ne[i] for i in (2, 1, 0))
    strides = tuple(tensor.nb[i] for i in (2, 1, 0))
    size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + np.dtype(kind).itemsize
    memory = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), np.uint8)
    return np.lib.stride_tricks.as_strided(memory.view(kind), shape, strides)


class Collector:
    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    def __call__(self, pointer: int, ask: bool, _: Any) -> bool:
        t = ctypes.cast(pointer, ctypes.POINTER(Tensor)).contents
        if t.op not in (MUL_MAT, MUL_MAT_ID):
            return not ask
        weight, inputs = t.src[0].contents, t.src[1].contents
        name = weight.name.decode()
        if t.op == MUL_MAT and not (name.startswith("blk.") and inputs.ne[1] >= 16 and inputs.type == F32):
            return not ask
        if not ask:
            self.add(name, t, weight, inputs)
        return True

    def add(self, name: str, t: Any, weight: Any, inputs: Any) -> None:
        x = view(inputs, np.float32)
        n = weight.ne[2] if t.op == MUL_MAT_ID else 1
        sums = self.sums.setdefault(name, np.zeros((n, inputs.ne[0]), np.float64))
        counts = self.counts.setdefault(name, np.zeros(n, np.int64))
        if t.op == MUL_MAT:
            rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
            sums[0] += (rows**2).sum(axis=0)
            counts[0] += len(rows)
            return
        ids = view(t.src[2].contents, np.int32)[0]  # (tokens, used)
        for token in range(ids.shape[0]):
            for k, expert in enumerate(ids[token]):
                sums[expert] += x[token, k % x.shape[1]].astype(np.float64) ** 2
                counts[expert] += 1


def main() -> None:
    path, chunks_path, out = sys.argv[1:4]
    chunks = np.load(chunks_path)
    n_ctx = chunks.shape[1]
    collector = Collector()
    callback = lc.ggml_backend_sched_eval_callback(collector)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    params = lc.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads_batch = n_ctx, n_ctx, n_ctx, 2
    params.cb_eval = callback
    context = lc.llama_init_from_model(model, params)
    vocab = lc.llama_model_get_vocab(model)
    batch = lc.llama_batch_init(n_ctx, 0, 1)
    for chunk in chunks.tolist():
        if lc.llama_vocab_get_add_bos(vocab):
            chunk[0] = lc.llama_vocab_bos(vocab)
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        batch.n_tokens = n_ctx
        for i, token in enumerate(chunk):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        assert lc.llama_decode(context, batch) == 0
    arrays = {f"{name}.in_sum2": x for name, x in collector.sums.items()}
    np.savez(out, **arrays, **{f"{name}.counts": x for name, x in collector.counts.items()})


main()
