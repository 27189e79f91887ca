"""What the compiled forward pass is told: plain records of numbers and addresses, laid out once when a model opens.

A weight is a row of numbers: its kernels' addresses, its data's address, its shape. The records keep no memory
alive; `Plan.keep` does.
"""

from __future__ import annotations

import numpy as np

I8, F4 = np.int64, np.float32

# What a team's threads tell each other (workers.py): words on lines of LINE int64, since different threads write them.
# The order (its number << COUNT_SHIFT | how many threads it is for), stop, wanted, how many sleep until an order, what
# to call (the step's address, then its records); then, for each worker, its last order and whether it is parked.
LINE, COUNT_SHIFT = 16, 16
ORDER, STOP, WANTED, SLEEPERS, CALL, WORKER = 0, 1, 2, 3, 4, 5

MAX_CHUNKS = 32  # parts of the context in decode, each of whole blocks; by position alone, whatever the threads
PART_BYTES = 640 << 10  # of a thread's gate or up values of one item (forward_experts.py)

# The steps of a pass that a profile tells apart (forward_profile.py).
STEPS = (
    "norm, quantize", "q, k, v", "rope, cache", "attention", "attention output", "router", "choose, group",
    "gate, up", "silu, quantize", "down", "add", "logits", "barriers",
)  # fmt: skip
NORM, QKV, CACHE, ATTENTION, OUTPUT, ROUTER, CHOOSE, GATE_UP, SILU, DOWN, ADD, LOGITS, WAIT = range(len(STEPS))
ROW = 16  # int64 of a thread: ticks by step, and in the last when its current step began


def record(*fields: str | tuple[str, object]) -> np.dtype:
    """A record type; a field without a type is an int64."""
    return np.dtype([(f, I8) if isinstance(f, str) else f for f in fields])


# act: 0 float32, 1 q8_0, 2 q8_k. experts: address of the addresses of each expert's matrix, (n_expert,) int64.
# expert_bytes: of one expert's matrix, by which threads size their pieces of work.
WEIGHT = record("matvec", "matmul", "rows", "cols", "act", "experts", "expert_bytes")

# needs_*: which forms (bit 0 float32, 1 q8_0, 2 q8_k) of their input the weights that share it want
LAYER = record(
    "attn_norm",
    ("attn_q", WEIGHT),
    ("attn_k", WEIGHT),
    ("attn_v", WEIGHT),
    ("attn_output", WEIGHT),
    "ffn_norm",
    ("router", WEIGHT),
    ("gate", WEIGHT),
    ("up", WEIGHT),
    ("down", WEIGHT),
    "k_cache",
    "v_cache",
    "needs_attn",
    "needs_output",
    "needs_ffn",
    "needs_down",
)

# Rows of one activation in each form: the address of row 0 and bytes from row to row.
ROWS = record("f32", "q8_0", "q8_k", "f32_stride", "q8_0_stride", "q8_k_stride")

# Buffers whose rows are private to a thread when one token is computed, shared when many are.
BUFFERS = record("x", ("normed", ROWS), ("attended", ROWS), ("hidden", ROWS))

MODEL = record(
    "n_layer",
    "n_embd",
    "n_head",
    "n_head_kv",
    "head_dim",
    "rope_dim",
    "n_ff",
    "n_expert",  # 0: dense
    "n_vocab",
    "interleaved",
    "weights_norm",
    "bfloat16",  # whether what each operation gives is rounded to bfloat16; over an f32 cache
    # the KV cache: types (kernels/attention.py's KINDS), bytes of a block of keys, a row of values, a head of each
    "k_kind",
    "v_kind",
    "k_block",
    "v_row",
    "k_head",
    "v_head",
    # attention: kernels for `rows_one` query rows (decode) and for as many as they take, bytes of a query's row
    "rows_one",
    "scores_one",
    "values_one",
    "scores_many",
    "values_many",
    "q_row",
    # of a long prompt: the same by pairs of int16; 0 where float32 is as fast or wanted
    "key_pairs",
    "value_pairs",
    "pair_scores",
    "pair_values",
    ("rms_eps", F4),
    ("rope_magnitude", F4),
    ("rope_step", F4),  # from one pair's frequency to the next
    "attn_scale",  # address of a float32
    "output_norm",
    ("output", WEIGHT),
    "needs_logits",
    # shared buffers
    "q",
    "k",
    "v",
    "projected",  # (T, n_embd): attention's output before it is added
    "router_logits",
    "up",  # (K, n_ff), of one token
    "hidden_done",  # of one token: (K, blocks of n_ff) int64, values computed of a block that is not quantized yet
    "parts",  # of many: gate and up of each thread's item (forward_experts.py)
    "expert_out",  # (T * K, n_embd)
    "slot_ids",
    "starts",
    "slot_tokens",
    "slots",
    "iota",
    "angles",
    "attn_work",  # attention's scratch, attn_bytes a thread
    "attn_bytes",
    "stats",  # decode attention: maximum and sum of every chunk and query row
    "partial",  # decode attention: accumulators of the same
    # threads
    "n_team",
    "n_thread",  # the first of them, which take this step
    "sync",
    "yield_to",
    "scratch",
    "scratch_bytes",
    "profile",  # 0, or (n_thread, forward_profile.ROW) int64 to add times of steps to
)

# One step: n_tok tokens from position `pos`; logits of the last n_out of them are written to `logits`. What every step
# passes anew comes first.
PASSED = (
    "n_tok",
    "pos",
    "n_used",
    "n_out",
    "failed_layer",  # out: 1 + the first layer whose router was not finite, BAD_LOGITS, INTERRUPTED, or 0
)
BAD_LOGITS, INTERRUPTED = -1, -2
STEP = record(
    *PASSED,
    "interrupt",  # set from outside: a step of many tokens ends after the layer that it is at
    "logits",
    "hidden",  # 0, or (n_layer + 1, n_tok, n_embd) float32 to fill
    "squares",  # 0, or (n_layer, squares_width) float32 to add to: see forward_squares.py
    "squares_width",
    "experts",  # (n_tok, n_layer, width) int32, the routing trace's rows
    "weights",
    "probs",  # (n_tok, n_layer, n_expert) float32
    "trace_width",
    "rules",  # 0, or (n_layer, n_expert) int32: -1 never chosen, 0 free, 1 always chosen
    "limits",  # with rules: (n_layer,) int32, experts of a token at most
    ("threshold", F4),  # with rules: a weight below it is dropped
)
