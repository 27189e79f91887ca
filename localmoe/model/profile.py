"""What a forward pass costs and where its time goes: bytes and multiplications of each step, and seconds measured.

Bytes are those of weights, each expert's once a batch, and of cached keys and values: what must come from memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from localmoe.kernels.table import KERNELS
from localmoe.model.config import ModelConfig
from localmoe.model.plan import ROW, STEPS
from localmoe.model.runner import Runner
from localmoe.model.weights import Weight, Weights

READ_BYTES = 1 << 30  # weights that the read loop goes over, well above any cache


@dataclass(frozen=True)
class Cost:
    """Bytes read, and multiply-adds by the unit that does them."""

    n_bytes: int = 0
    int_macs: int = 0
    float_macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.n_bytes + other.n_bytes, self.int_macs + other.int_macs, self.float_macs + other.float_macs)


def weight_cost(weight: Weight | None, n_rows: int, n_expert: int = 1) -> Cost:
    """Of `n_rows` activation rows times a matrix, or times `n_expert` different ones of a stack."""
    if weight is None or n_rows == 0:
        return Cost()
    macs = n_rows * weight.rows * weight.cols
    n_bytes = n_expert * weight.rows * weight.row_bytes
    return Cost(n_bytes, 0, macs) if KERNELS[weight.type].act == "f32" else Cost(n_bytes, macs, 0)


def attention_cost(config: ModelConfig, n_tok: int, pos: int, item_bytes: float) -> Cost:
    """Of one layer's attention; in a batch, cached keys and values are taken to be read once."""
    seen = n_tok * pos + n_tok * (n_tok + 1) // 2
    width = config.n_embd_head_k + config.n_embd_head_v
    n_bytes = round((pos + n_tok) * config.n_head_kv * width * item_bytes)
    return Cost(n_bytes, 0, seen * config.n_head * width)


def pass_costs(
    config: ModelConfig,
    weights: Weights,
    n_tok: int,
    pos: int,
    n_out: int,
    n_distinct: Sequence[int],
    n_used: int,
    item_bytes: float,
) -> dict[str, Cost]:
    """Cost of each step of one pass; `n_distinct`: experts chosen by any token, by layer."""
    costs = dict.fromkeys(STEPS, Cost())
    n_slot = n_tok * max(n_used, 1)
    for layer, distinct in zip(weights.layers, n_distinct, strict=True):
        parts = {
            "q, k, v": [weight_cost(w, n_tok) for w in (layer.attn_q, layer.attn_k, layer.attn_v)],
            "attention": [attention_cost(config, n_tok, pos, item_bytes)],
            "attention output": [weight_cost(layer.attn_output, n_tok)],
            "router": [weight_cost(layer.ffn_gate_inp, n_tok)],
            "gate, up": [weight_cost(w, n_slot, distinct) for w in (layer.ffn_gate, layer.ffn_up)],
            "down": [weight_cost(layer.ffn_down, n_slot, distinct)],
        }
        for name, few in parts.items():
            costs[name] = sum(few, costs[name])
    costs["logits"] = weight_cost(weights.output, n_out)
    return costs


@dataclass(frozen=True)
class Limits:
    """GB/s of a plain read loop over the weights, GMAC/s of nothing but the instruction; on all threads."""

    read: float
    int_macs: float
    float_macs: float

    def seconds(self, cost: Cost) -> float:
        """The least time a step can take: of reading, or of multiplying, whichever is longer."""
        ints = cost.int_macs / self.int_macs if self.int_macs else 0.0
        return max(cost.n_bytes / self.read, ints + cost.float_macs / self.float_macs) / 1e9


def read_limit(weights: Weights, n_threads: int) -> float:
    """GB/s of a plain read loop over some of the model's weights where they lie, the experts first."""
    from localmoe.kernels import limits

    arrays: list[npt.NDArray[np.uint8]] = []
    for layer in weights.layers:
        arrays += [w.data.reshape(-1) for w in (layer.ffn_gate, layer.ffn_up, layer.ffn_down)]
        if sum(array.nbytes for array in arrays) >= READ_BYTES:
            break
    return limits.read_speed(arrays, n_threads)


def measure_limits(weights: Weights, n_threads: int, runs: int = 3) -> Limits:
    """The best of a few runs of each loop; what they read is in memory after the first."""
    from localmoe.kernels import limits

    read = max(read_limit(weights, n_threads) for _ in range(runs))
    return Limits(read, limits.peak("int", n_threads), limits.peak("float", n_threads))


def decode_bytes(runner: Runner, pos: int, n_used: int) -> int:
    """Bytes that one token at position `pos` has to read."""
    distinct = [max(n_used, 1)] * len(runner.weights.layers)
    costs = pass_costs(runner.config, runner.weights, 1, pos, 1, distinct, n_used, item_bytes(runner))
    return sum(cost.n_bytes for cost in costs.values())


def item_bytes(runner: Runner) -> float:
    """Bytes of a number in the KV cache."""
    config, cache = runner.config, runner.cache
    per_position = config.n_layer * config.n_head_kv * (config.n_embd_head_k + config.n_embd_head_v)
    return cache.n_bytes / cache.n_room / per_position


@dataclass
class Profile:
    """Times of a runner's passes from `start` to `stop`, by step and thread, and what those passes had to do."""

    runner: Runner
    costs: dict[str, Cost] = field(default_factory=lambda: dict.fromkeys(STEPS, Cost()))
    n_tok: int = 0
    pass_s: float = 0.0  # wall time of the compiled calls
    step_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, len(STEPS))))  # (threads, steps)

    def start(self) -> None:
        """Have every pass timed from now on."""
        from localmoe.kernels.limits import now

        self._ticks = np.zeros((self.runner.n_thread, ROW), np.int64)
        self._passes: list[tuple[int, int, int, list[int], int]] = []
        now()  # compiled or loaded
        self._began = time.perf_counter(), now()
        self.runner.watch(self._ticks, self._note)

    def stop(self) -> None:
        """Stop timing, and turn ticks into seconds."""
        from localmoe.kernels.limits import now

        self.runner.watch(None, None)
        rate = (time.perf_counter() - self._began[0]) / (now() - self._began[1])
        self.step_s = self._ticks[:, : len(STEPS)] * rate
        for one in self._passes:
            self.n_tok += one[0]
            for name, cost in pass_costs(
                self.runner.config, self.runner.weights, *one, item_bytes(self.runner)
            ).items():
                self.costs[name] += cost

    def _note(self, n_tok: int, pos: int, n_out: int, experts: npt.NDArray[np.int32], seconds: float) -> None:
        """Keep what `stop` needs: little, since this runs between two passes."""
        n_used = experts.shape[2]
        distinct = [n_used or 1] * len(self.runner.weights.layers)
        if n_tok > 1 and n_used:
            distinct = [len(np.unique(chosen[chosen >= 0])) for chosen in np.moveaxis(experts, 1, 0)]
        self._passes.append((n_tok, pos, n_out, distinct, n_used))
        self.pass_s += seconds
