"""The KV cache: keys transposed in blocks of 16 positions, values a row a position (see kernels/attention.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.errors import MemoryLimitError, UsageError
from localmoe.kernels.attention import BLOCK, padded
from localmoe.model.config import ModelConfig

CACHE_TYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}


@dataclass(frozen=True)
class KVCache:
    """`k`: (n_layer, n_head_kv, n_room / 16, head_dim, 16). `v`: (n_layer, n_head_kv, n_room, padded head_dim).

    `n_room` is the context rounded up to whole attention blocks. Memory is committed as positions are written.
    """

    n_room: int
    type: str
    k: npt.NDArray[np.generic]
    v: npt.NDArray[np.generic]

    @property
    def n_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def new_cache(config: ModelConfig, n_ctx: int, cache_type: str) -> KVCache:
    """An empty cache for `n_ctx` positions; raises MemoryLimitError when it cannot be reserved."""
    dtype = CACHE_TYPES.get(cache_type)
    if dtype is None:
        raise UsageError("unknown KV cache type", got=cache_type, expected=" or ".join(CACHE_TYPES))
    room = -(-n_ctx // BLOCK) * BLOCK
    heads = (config.n_layer, config.n_head_kv)
    try:
        k = np.zeros((*heads, room // 16, config.n_embd_head_k, 16), dtype)
        v = np.zeros((*heads, room, padded(config.n_embd_head_v)), dtype)
    except MemoryError:
        size = 2 * np.prod(heads) * room * padded(config.n_embd_head_k) * dtype.itemsize / 2**30
        reason = f"a KV cache for {n_ctx} positions does not fit in memory, it needs {size:.1f} GiB"
        raise MemoryLimitError(reason) from None
    return KVCache(room, cache_type, k, v)
