"""A model ready to run: its weights as records, its buffers, its threads, and one method that runs a step."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.ggml import GGMLQuantizationType
from localmoe.kernels.shapes import BLOCK, HAS_PAIRS, KINDS, MATMUL_SCRATCH, MAX_ROWS, act_bytes, padded, pairs_bytes
from localmoe.kernels.table import (
    KERNELS,
    key_pairs_address,
    matmul_address,
    matvec_address,
    pair_scores_address,
    pair_values_address,
    scores_address,
    value_pairs_address,
    values_address,
)
from localmoe.kernels.waits import HAS_FUTEX, LONG_WAITS, PART, SLEEP, allow_cores, sync_ints, yield_address
from localmoe.model.config import ModelConfig, rope_frequencies
from localmoe.model.embeddings import Embeddings
from localmoe.model.kv_cache import KVCache, new_cache
from localmoe.model.plan import BUFFERS, LAYER, MAX_CHUNKS, MODEL, PART_BYTES, PASSED, ROW, STEP
from localmoe.model.step import RoutingRules, StepResult, failure
from localmoe.model.team_size import TeamSize
from localmoe.model.weights import LayerWeights, Weight, Weights
from localmoe.model.workers import Workers

BATCH = 512  # tokens of one step at most
Observe = Callable[[int, int, int, npt.NDArray[np.int32], float], None]  # n_tok, pos, n_out, experts, seconds
_FORMS = {"f32": 0, "q8_0": 1, "q8_k": 2}


def _needs(*weights: Weight) -> int:
    """Bits of the activation forms that these weights multiply."""
    bits = 0
    for weight in weights:
        bits |= 1 << _FORMS[KERNELS[weight.type].act]
    return bits


class Runner:
    """Owns the KV cache, the buffers and the threads of one model; not safe for two callers at once."""

    def __init__(
        self, config: ModelConfig, weights: Weights, n_ctx: int, n_thread: int, type_k: str, type_v: str
    ) -> None:
        self.config = config
        self.weights = weights
        self.n_ctx = n_ctx
        self.n_thread = n_thread
        self.n_slot = max(BATCH * max(config.n_expert_used, 1), config.n_expert)
        self.cache: KVCache = new_cache(config, n_ctx, type_k, type_v)
        self._alive: list[np.ndarray] = []
        self._squares: npt.NDArray[np.float32] | None = None
        self._replaced: dict[int, tuple[np.void, np.ndarray]] = {}  # a router's own record, and what stands for it
        self._observe: Observe | None = None
        self._n_ff = config.n_ff_exp if config.n_expert else config.n_ff
        self._model = np.zeros(1, MODEL)
        self._layers = np.zeros(config.n_layer, LAYER)
        self._buffers = np.zeros(n_thread + 1, BUFFERS)
        self._step = np.zeros(1, STEP)
        self._passed = self._step.view(np.uint8)[: 8 * len(PASSED)].view(np.int64)  # what every step passes
        self._rules: RoutingRules | None = None
        self._embeddings = Embeddings(weights.token_embd)
        self._last_result: tuple[tuple[int, int, int], StepResult] | None = None
        self._heeds = False
        self._told = (0, 0)  # how many threads take a step, and how they wait
        self._cache_types = (type_k, type_v)
        self._sync = self._array(sync_ints(n_thread), np.int64)
        self._team = TeamSize(n_thread)
        # how barriers wait in steps of one token, which are shorter than a busy program's turn on a core, and of many
        self._waits = (SLEEP, PART) if HAS_FUTEX else (yield_address(), yield_address())
        allow_cores(self._sync)
        self._fill_model(weights)
        for i, layer in enumerate(weights.layers):
            self._fill_layer(i, layer)
        self._fill_buffers()
        exact = rope_frequencies(config, weights.rope_freqs)
        unscaled = config.rope_freq_base ** (-2.0 * np.arange(exact.size) / config.rope_dim)
        frequencies = np.stack([exact, exact / unscaled])
        records = (self._model, self._layers, self._buffers, self._step, frequencies)
        self._workers = Workers(n_thread, records)
        self._workers.start()
        self._process = os.getpid()
        self._end = weakref.finalize(self, self._workers.stop)  # threads of a model that nobody closed
        self._end.atexit = False

    # --- laying out -------------------------------------------------------------------------------------------

    def _array(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """Zeroed memory that lives as long as this runner, at a multiple of 64."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.zeros(n_bytes + 64, np.uint8)
        at = -raw.ctypes.data % 64
        array: np.ndarray = raw[at : at + n_bytes].view(dtype).reshape(shape)
        self._alive.append(array)
        return array

    def _address(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> int:
        return int(self._array(shape, dtype).ctypes.data)

    def _constant(self, values: npt.NDArray[np.float32]) -> int:
        values = np.ascontiguousarray(values, np.float32)
        self._alive.append(values)
        return int(values.ctypes.data)

    def _weight_row(self, weight: Weight) -> tuple[int, ...]:
        """A WEIGHT record; compiles the type's kernels where no cache has them."""
        form = _FORMS[KERNELS[weight.type].act]
        experts = self._array(weight.n_expert, np.int64)
        experts[:] = [weight.matrix(expert).ctypes.data for expert in range(weight.n_expert)]
        kernels = matvec_address(weight.type), matmul_address(weight.type)
        return (*kernels, weight.rows, weight.cols, form, int(experts.ctypes.data), weight.rows * weight.row_bytes)

    def _fill_model(self, weights: Weights) -> None:
        config = self.config
        self._logits = np.empty((0, config.n_vocab), np.float32)
        trace = (BATCH, config.n_layer, max(config.n_expert, 1))
        self._experts = self._array(trace, np.int32)
        self._weights_out = self._array(trace, np.float32)
        self._probs = self._array(trace, np.float32)
        step = self._step[0]
        step["experts"], step["weights"] = self._experts.ctypes.data, self._weights_out.ctypes.data
        step["probs"], step["trace_width"] = self._probs.ctypes.data, trace[2]
        for name, value in {**self._numbers(weights), **self._attention(), **self._shared_buffers()}.items():
            self._model[0][name] = value

    def _numbers(self, weights: Weights) -> dict[str, Any]:
        """MODEL's sizes, constants, kernels and the output matrix."""
        config = self.config
        return {
            "n_layer": config.n_layer, "n_embd": config.n_embd, "n_head": config.n_head,
            "n_head_kv": config.n_head_kv, "head_dim": config.n_embd_head_k, "rope_dim": config.rope_dim,
            "n_ff": self._n_ff, "n_expert": config.n_expert, "n_vocab": config.n_vocab,
            "interleaved": config.architecture.rope_interleaved, "weights_norm": config.expert_weights_norm,
            "rms_eps": config.rms_eps,
            "attn_scale": self._constant(np.array([config.n_embd_head_k**-0.5], np.float32)),
            "rope_magnitude": config.rope_scaling.mscale,
            "rope_step": np.float32(config.rope_freq_base) ** np.float32(-2.0 / config.rope_dim),
            "output_norm": self._constant(weights.output_norm), "output": self._weight_row(weights.output),
            "needs_logits": _needs(weights.output), "n_team": self.n_thread,
        }  # fmt: skip

    def _attention(self) -> dict[str, int]:
        """MODEL's attention: the cache's layout, kernels and scratch."""
        config, (type_k, type_v), cache = self.config, self._cache_types, self.cache
        group, head_dim = config.n_head // config.n_head_kv, config.n_embd_head_k
        rows = -(-group // -(-group // MAX_ROWS))  # a KV head's query heads in as few, equal parts as will do
        room = -(-group // rows) * rows
        width = padded(config.n_embd_head_v)
        q_row = act_bytes("q8_0", head_dim) if type_k == "q8_0" else 4 * head_dim
        chunks = min(MAX_CHUNKS, cache.n_room // BLOCK) * config.n_head_kv * room
        most = max(room, MAX_ROWS)
        work = 16 * head_dim + MAX_ROWS * (4 * BLOCK + 4 * width + 8) + most * q_row
        pairs = HAS_PAIRS and "f32" not in (type_k, type_v) and head_dim % 4 == 0
        if pairs:
            work = max(work, 16 * head_dim + pairs_bytes(head_dim))
        work = -(-work // 4096) * 4096
        return {
            "key_pairs": key_pairs_address(type_k) if pairs else 0,
            "value_pairs": value_pairs_address(type_v) if pairs else 0,
            "pair_scores": pair_scores_address() if pairs else 0,
            "pair_values": pair_values_address() if pairs else 0,
            "k_kind": KINDS[type_k], "v_kind": KINDS[type_v], "k_block": cache.k.shape[3], "v_row": cache.v.shape[3],
            "k_head": cache.k[0, 0].nbytes, "v_head": cache.v[0, 0].nbytes, "rows_one": rows, "q_row": q_row,
            "scores_one": scores_address(type_k, rows), "values_one": values_address(type_v, rows),
            "scores_many": scores_address(type_k, MAX_ROWS), "values_many": values_address(type_v, MAX_ROWS),
            "attn_work": self._address((self.n_thread, work), np.uint8), "attn_bytes": work,
            "stats": self._address((chunks, 2)), "partial": self._address((chunks, width)),
        }  # fmt: skip

    def _shared_buffers(self) -> dict[str, int]:
        """MODEL's buffers, by address."""
        config, n_ff = self.config, self._n_ff
        scratch = MATMUL_SCRATCH // 4096 * 4096 + 8192
        iota = self._array(max(self.n_slot, BATCH), np.int32)
        iota[:] = np.arange(iota.size)
        return {
            "q": self._address((BATCH, config.n_head * config.n_embd_head_k)),
            "k": self._address((BATCH, config.n_head_kv * config.n_embd_head_k)),
            "v": self._address((BATCH, config.n_head_kv * config.n_embd_head_v)),
            "projected": self._address((BATCH, config.n_embd)),
            "router_logits": self._address((BATCH, max(config.n_expert, 1))),
            "up": self._address((max(config.n_expert, 1), n_ff)),
            "hidden_done": self._address((max(config.n_expert, 1), -(-n_ff // 32)), np.int64),
            "parts": self._address((self.n_thread, 2 * PART_BYTES), np.uint8),
            "expert_out": self._address((self.n_slot, config.n_embd)),
            "slot_ids": self._address(self.n_slot, np.int32), "slots": self._address(self.n_slot, np.int32),
            "slot_tokens": self._address(self.n_slot, np.int32),
            "starts": self._address(max(config.n_expert, 1) + 2, np.int32), "iota": iota.ctypes.data,
            "angles": self._address((BATCH, config.rope_dim)),
            "sync": self._sync.ctypes.data,
            "scratch": self._address((self.n_thread, scratch), np.uint8), "scratch_bytes": scratch,
        }  # fmt: skip

    def _fill_layer(self, index: int, layer: LayerWeights) -> None:
        row = self._layers[index]
        row["attn_norm"], row["ffn_norm"] = self._constant(layer.attn_norm), self._constant(layer.ffn_norm)
        named = {
            "attn_q": layer.attn_q, "attn_k": layer.attn_k, "attn_v": layer.attn_v, "attn_output": layer.attn_output,
            "gate": layer.ffn_gate, "up": layer.ffn_up, "down": layer.ffn_down,
        }  # fmt: skip
        routers = () if layer.ffn_gate_inp is None else (layer.ffn_gate_inp,)
        for name, weight in named.items():
            row[name] = self._weight_row(weight)
        for router in routers:
            row["router"] = self._weight_row(router)
        row["needs_attn"] = _needs(layer.attn_q, layer.attn_k, layer.attn_v)
        row["needs_output"] = _needs(layer.attn_output)
        row["needs_ffn"] = _needs(layer.ffn_gate, layer.ffn_up, *routers)
        row["needs_down"] = _needs(layer.ffn_down)
        row["k_cache"] = self.cache.k[index].ctypes.data
        row["v_cache"] = self.cache.v[index].ctypes.data

    def _fill_buffers(self) -> None:
        config, n_ff = self.config, self._n_ff
        n_attended = config.n_head * config.n_embd_head_v
        self._x_one = self._array((self.n_thread, config.n_embd), np.float32)
        self._x_many = self._array((BATCH, config.n_embd), np.float32)
        # one token's attention output and hidden rows are written by all threads together
        n_used = max(config.n_expert, 1)
        attended = self._rows(1, n_attended)
        hidden_one = self._rows(n_used, n_ff)
        hidden_many = self._rows(self.n_slot, n_ff)
        for thread in range(self.n_thread):
            b = self._buffers[thread]
            b["x"] = self._x_one[thread].ctypes.data
            b["normed"] = self._rows(1, config.n_embd)
            b["attended"] = self._rows(1, n_attended, f32=attended[0])
            b["hidden"] = hidden_one
        shared = self._buffers[self.n_thread]
        shared["x"] = self._x_many.ctypes.data
        shared["normed"] = self._rows(BATCH, config.n_embd)
        shared["attended"] = self._rows(BATCH, n_attended)
        shared["hidden"] = hidden_many

    def _rows(self, n: int, width: int, f32: int = 0) -> tuple[int, ...]:
        """A ROWS record of n rows in every form; `f32` shares another record's float32 rows."""
        strides = (4 * width, act_bytes("q8_0", width), act_bytes("q8_k", width))
        first = f32 or self._address((n, strides[0]), np.uint8)
        return (first, *(self._address((n, stride), np.uint8) for stride in strides[1:]), *strides)

    # --- running ----------------------------------------------------------------------------------------------

    def batch_size(self, n_used: int) -> int:
        """Tokens that fit in one step when each uses `n_used` experts."""
        return max(1, min(BATCH, self.n_slot // max(n_used, 1)))

    def step(
        self,
        ids: npt.NDArray[np.int32],
        pos: int,
        n_out: int,
        n_used: int,
        *,
        rules: RoutingRules | None = None,
        want_hidden: bool = False,
    ) -> StepResult:
        """Run tokens `ids` at positions pos, pos + 1, ...; logits of the last `n_out` of them.

        The caller has checked ids, positions, `n_used` and `rules`. Raises LocalMoeError when a router's scores or the
        last token's logits are not finite, and Interrupted after `interrupt`.
        """
        config, step = self.config, self._step[0]
        n_tok = len(ids)
        assert 1 <= n_tok <= self.batch_size(n_used)
        assert pos + n_tok <= self.n_ctx
        assert 0 <= n_out <= n_tok
        if n_tok == 1:
            self._x_one[0] = self._embeddings.row(int(ids[0]))
        else:
            self._x_many[:n_tok] = self._embeddings.rows(ids)
        if len(self._logits) < n_out:
            self._logits, self._last_result = np.empty((n_out, config.n_vocab), np.float32), None
            step["logits"] = self._logits.ctypes.data
        hidden = np.empty((config.n_layer + 1, n_tok, config.n_embd), np.float32) if want_hidden else None
        if hidden is not None or step["hidden"]:
            step["hidden"] = 0 if hidden is None else hidden.ctypes.data
        if rules is not self._rules:
            self._follow(rules)
        self._passed[:] = n_tok, pos, n_used if config.n_expert else 1, n_out, 0
        taken = self._run(n_tok == 1)
        if step["failed_layer"]:
            raise failure(int(step["failed_layer"]))
        result = self._result(n_tok, n_out, n_used if config.n_expert else 0, hidden)
        if self._observe is not None:
            self._observe(n_tok, pos, n_out, result.experts, taken)
        return result

    def _result(self, n_tok: int, n_out: int, n_used: int, hidden: npt.NDArray[np.float32] | None) -> StepResult:
        """Views of what a step wrote; those of the last step if it was as large, as in decode."""
        kept, size = self._last_result, (n_tok, n_out, n_used)
        if kept is not None and kept[0] == size and hidden is None:
            return kept[1]
        probs = self._probs[:n_tok, :, : self.config.n_expert]
        experts, weights = self._experts[:n_tok, :, :n_used], self._weights_out[:n_tok, :, :n_used]
        result = StepResult(self._logits[:n_out], experts, weights, probs, hidden)
        self._last_result = (size, result) if hidden is None else None
        return result

    def _follow(self, rules: RoutingRules | None) -> None:
        """Choose by `rules` from the next step on."""
        step, self._rules = self._step[0], rules
        step["rules"] = 0 if rules is None else rules.of_expert.ctypes.data
        step["limits"] = 0 if rules is None else rules.limits.ctypes.data
        step["threshold"] = 0.0 if rules is None else rules.threshold

    def _run(self, one: bool) -> float:
        """Run the step that the records describe; its seconds."""
        long_waits = int(self._sync[LONG_WAITS // 8])
        n_thread = self._team.choose() if one else self.n_thread
        told = n_thread, self._waits[0 if one else 1]
        if told != self._told:
            self._told = told
            self._model[0]["n_thread"], self._model[0]["yield_to"] = told
        fewer = n_thread < self.n_thread
        on_core = time.thread_time() if fewer else 0.0
        began = time.perf_counter()
        self._workers.run(n_thread)
        taken = time.perf_counter() - began
        on_core = time.thread_time() - on_core if fewer else taken
        if one:
            self._team.observe(n_thread, taken, on_core, int(self._sync[LONG_WAITS // 8]) - long_waits)
        return taken

    def add_squares_to(self, squares: npt.NDArray[np.float32] | None) -> None:
        """Let steps add their inputs' squares to (n_layer, width) `squares` (forward_squares.py), or no longer."""
        self._squares = squares
        step = self._step[0]
        step["squares"] = 0 if squares is None else squares.ctypes.data
        step["squares_width"] = 0 if squares is None else squares.shape[1]

    def watch(self, ticks: npt.NDArray[np.int64] | None, observe: Observe | None) -> None:
        """Add every thread's clock ticks by step to its row of (threads, ROW) `ticks`, and tell each pass; or stop."""
        assert ticks is None or ticks.shape == (self.n_thread, ROW)
        self._ticks, self._observe = ticks, observe
        self._model[0]["profile"] = 0 if ticks is None else ticks.ctypes.data

    def round_to_bfloat16(self, on: bool) -> None:
        """From the next step on, let every operation's result be rounded to bfloat16, or no longer."""
        self._model[0]["bfloat16"] = on

    def replace_router(self, layer: int, rows: npt.NDArray[np.float32] | None) -> None:
        """Let a layer's router be `rows` (E, D) until told otherwise, None: the file's own."""
        weights, row = self.weights.layers[layer], self._layers[layer]
        own = weights.ffn_gate_inp
        assert own is not None
        kept = self._replaced.pop(layer, None)
        record = row["router"].copy() if kept is None else kept[0]
        row["router"] = record
        if rows is not None:
            assert rows.shape == (own.rows, own.cols)
            data = np.ascontiguousarray(rows, np.float32)
            own = Weight(own.name, GGMLQuantizationType.F32, own.rows, own.cols, 1, 4 * own.cols, data.view(np.uint8))
            self._replaced[layer] = (record, data)
            row["router"] = self._weight_row(own)
        row["needs_ffn"] = _needs(weights.ffn_gate, weights.ffn_up, own)

    def heed(self, on: bool) -> None:
        """Let `interrupt` end steps from now on, or no longer."""
        self._step[0]["interrupt"] = 0
        self._heeds = on

    def interrupt(self) -> None:
        """End the step of many tokens that another thread runs after the layer that it is at, where it may be ended."""
        if self._heeds:
            self._step[0]["interrupt"] = 1

    def close(self) -> None:
        """End the threads; the runner cannot be used afterwards."""
        self._end()

    @property
    def closed(self) -> bool:
        return not self._end.alive

    @property
    def orphaned(self) -> bool:
        """Whether this is a forked copy of the process, in which none of the threads are: a step would never end."""
        return self.n_thread > 1 and os.getpid() != self._process
