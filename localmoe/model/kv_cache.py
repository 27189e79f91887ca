"""The KV cache: keys transposed in blocks of 32 positions, values a row a position (kernels/attention_tiles.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.errors import MemoryLimitError, UsageError
from localmoe.gguf_file import visible
from localmoe.kernels.shapes import BLOCK, K_BLOCK, KINDS, k_block_bytes, v_row_bytes
from localmoe.model.config import ModelConfig

GROUP = 32  # values that share a scale in a q8_0 cache


@dataclass(frozen=True)
class KVCache:
    """Bytes of `k`: (n_layer, n_head_kv, n_room / 32, block's), and of `v`: (n_layer, n_head_kv, n_room, row's).

    `n_room` is the context rounded up to whole attention blocks. Memory is committed as positions are written.
    """

    n_room: int
    k: npt.NDArray[np.uint8]
    v: npt.NDArray[np.uint8]

    @property
    def n_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def check_cache_type(kind: str, head_dim: int, item: str) -> None:
    """Raise UsageError for a type that there is not, or whose groups a head of this size does not divide into."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError("unknown KV cache type", item=item, got=visible(str(kind), 40), expected=" or ".join(KINDS))
    if kind == "q8_0" and head_dim % GROUP:
        reason = f"a q8_0 cache needs heads of a multiple of {GROUP} values"
        raise UsageError(reason, item=item, got=f"heads of {head_dim}", expected="f16 or f32")


def new_cache(config: ModelConfig, n_ctx: int, type_k: str, type_v: str) -> KVCache:
    """An empty cache for `n_ctx` positions; raises MemoryLimitError when it cannot be reserved."""
    check_cache_type(type_k, config.n_embd_head_k, "cache_type_k")
    check_cache_type(type_v, config.n_embd_head_v, "cache_type_v")
    room = -(-n_ctx // BLOCK) * BLOCK
    heads = (config.n_layer, config.n_head_kv)
    k_shape = (*heads, room // K_BLOCK, k_block_bytes(type_k, config.n_embd_head_k))
    v_shape = (*heads, room, v_row_bytes(type_v, config.n_embd_head_v))
    try:
        return KVCache(room, np.zeros(k_shape, np.uint8), np.zeros(v_shape, np.uint8))
    except MemoryError:
        size = (np.prod(k_shape, dtype=float) + np.prod(v_shape, dtype=float)) / 2**30
        reason = f"a KV cache for {n_ctx} positions does not fit in memory, it needs {size:.1f} GiB"
        raise MemoryLimitError(reason) from None
