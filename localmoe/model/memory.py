"""What a model needs: parameters, bytes of weights and cache, and whether this machine has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import MemoryLimitError, UsageError
from localmoe.gguf_file import GGUFFile, TensorInfo, visible
from localmoe.model.config import ModelConfig

# bytes an element of the cache: blocks of 32 with a float16 scale are 34 bytes
CACHE_TYPES: dict[str, float] = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
# activations, the compiled code and the interpreter beside weights and cache (design: at most 300 MB)
WORKING_BYTES = 300 << 20

_EXPERTS = re.compile(r"^blk\.\d+\.ffn_(gate|up|down)(_exps|\.\d+)\.weight$")
_NOT_PARAMETERS = frozenset({"rope_freqs.weight"})


@dataclass(frozen=True, slots=True)
class ModelSize:
    """How large a model is; `active` counts what one token uses, the whole embedding included, as is customary.

    `bytes_per_token` is what decoding one token reads: the used experts' share, the output matrix, one embedding row.
    """

    parameters: int
    active: int
    weight_bytes: int
    bytes_per_token: int


def model_size(tensors: Iterable[TensorInfo], config: ModelConfig, n_expert_used: int | None = None) -> ModelSize:
    """Add up a model's tensors; `n_expert_used` overrides the model's own."""
    used = config.n_expert_used if n_expert_used is None else n_expert_used
    total = active = stored = read = 0
    for tensor in tensors:
        if tensor.name in _NOT_PARAMETERS:
            continue
        share = (used, config.n_expert) if config.n_expert and _EXPERTS.match(tensor.name) else (1, 1)
        total += tensor.n_elements
        stored += tensor.n_bytes
        active += tensor.n_elements * share[0] // share[1]
        if tensor.name == "token_embd.weight" and not config.tied:
            read += tensor.n_bytes // tensor.shape[0]
        else:
            read += tensor.n_bytes * share[0] // share[1]
    return ModelSize(total, active, stored, read)


def kv_cache_bytes(config: ModelConfig, n_ctx: int, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes of the keys and values of `n_ctx` positions in all layers."""
    for name in (type_k, type_v):
        if not isinstance(name, str) or name not in CACHE_TYPES:
            raise UsageError(
                "unknown cache type", got=visible(str(name), 40), expected=f"one of: {', '.join(CACHE_TYPES)}"
            )
    per_head = config.n_embd_head_k * CACHE_TYPES[type_k] + config.n_embd_head_v * CACHE_TYPES[type_v]
    return int(config.n_layer * config.n_head_kv * n_ctx * per_head)


def check_memory(
    gguf: GGUFFile, config: ModelConfig, n_ctx: int, type_k: str = "f16", type_v: str | None = None
) -> str | None:
    """`check_sizes` of an open file against this machine's memory now; `type_v` None is `type_k`."""
    stored = sum(tensor.n_bytes for tensor in gguf.tensors.values())
    available, file = available_memory(), visible(str(gguf.path))
    return check_sizes(config, n_ctx, stored, available, type_k=type_k, type_v=type_v or type_k, file=file)


def check_sizes(
    config: ModelConfig,
    n_ctx: int,
    weight_bytes: int,
    available: int | None,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    file: str | os.PathLike[str] | None = None,
) -> str | None:
    """Raise MemoryLimitError if the cache cannot fit; else say where the weights will not stay in memory, or None.

    `available` is in bytes; where it is unknown (None) nothing is refused.
    """
    if available is None:
        return None
    cache = kv_cache_bytes(config, n_ctx, type_k, type_v)
    if cache + WORKING_BYTES > available:
        raise MemoryLimitError(
            f"the cache of a context of {n_ctx} does not fit in memory: choose a smaller one",
            file=file, item=f"context {n_ctx}",
            got=f"{size_text(cache)} for the cache and {size_text(WORKING_BYTES)} to work in",
            expected=f"at most {size_text(available)}, what is available",
        )  # fmt: skip
    if cache + WORKING_BYTES + weight_bytes > available:
        return (
            f"weights of {size_text(weight_bytes)} and a cache of {size_text(cache)} are more than the "
            f"{size_text(available)} available: weights will be read from disk again and again, which is slow"
        )
    return None


def size_text(n_bytes: float) -> str:
    """Bytes for a person, in powers of 1024: `3.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def available_memory() -> int | None:
    """Bytes that can be used without swapping, file caches counted as free; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_available()
    known = [size for size in (_linux_available(), _cgroup_available()) if size is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _linux_available(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    text = _read(meminfo)
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _cgroup_available(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's own limit leaves (cgroup v2), with its file cache counted as free."""
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", _read(group / "memory.stat"), re.MULTILINE)))
    return max(0, int(limit) - int(used) + cached)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _windows_available() -> int | None:
    """ullAvailPhys of GlobalMemoryStatusEx."""
    import ctypes
    import struct

    status = ctypes.create_string_buffer(struct.pack("<II7Q", 64, 0, *[0] * 7), 64)
    if sys.platform != "win32" or not ctypes.windll.kernel32.GlobalMemoryStatusEx(status):
        return None
    return int(struct.unpack("<II7Q", status.raw)[3])
