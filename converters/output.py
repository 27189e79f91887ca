"""Writing a GGUF so that nobody ever sees half of it: beside its target, flushed, then renamed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian, alignment 32.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import stat
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from localmoe.errors import FileError, UsageError

from .source import MetaValue

ALIGNMENT = 32
_SCALARS: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d", GGUFValueType.BOOL: "<?",
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header lists it; `shape` in NumPy order, `n_bytes` without padding."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int


def padded(n: int) -> int:
    """n rounded up to the alignment."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def header_bytes(metadata: Mapping[str, MetaValue], tensors: Sequence[TensorHeader]) -> bytes:
    """Everything before the first tensor's data, padding included."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, entry in metadata.items():
        out += _string(key) + struct.pack("<I", entry.type)
        out += _array(entry) if entry.type == GGUFValueType.ARRAY else _value(entry.value, entry.type)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out += _string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", tensor.type, offset)
        offset += padded(tensor.n_bytes)
    return bytes(out.ljust(padded(len(out)), b"\0"))


def _string(text: str) -> bytes:
    # a reader may have kept bytes that are not UTF-8 as surrogates
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, type_: GGUFValueType) -> bytes:
    return _string(value) if type_ == GGUFValueType.STRING else struct.pack(_SCALARS[type_], value)


def _array(entry: MetaValue) -> bytes:
    assert entry.element is not None
    head = struct.pack("<IQ", entry.element, len(entry.value))
    if entry.element in _SCALARS:
        kind = _SCALARS[entry.element]
        return head + np.asarray(entry.value).astype(np.dtype(kind), copy=False).tobytes()
    return head + b"".join(_value(item, entry.element) for item in entry.value)


def check_target(out: Path, inputs: Sequence[Path], *, file: str) -> Path:
    """The path that will be replaced, links resolved.

    UsageError if it is one of the inputs, under any name; FileError if it is no regular file or its folder is missing.
    """
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise FileError("the folder does not exist", file=out)
    try:
        status = target.stat()
    except FileNotFoundError:
        return target
    except OSError as error:
        raise FileError(error.strerror or str(error), file=out) from None
    for path in inputs:
        if path.exists() and os.path.samestat(path.stat(), status):
            raise UsageError("input and output are the same file", file=file)
    if not stat.S_ISREG(status.st_mode):
        raise FileError("cannot be replaced: not a regular file", file=out)
    return target


def check_space(target: Path, n_bytes: int) -> None:
    """FileError if the file system cannot hold `n_bytes` more."""
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise FileError(
            "not enough space on the disk", file=target, got=f"{free} bytes free", expected=f"{n_bytes} bytes"
        )


class OutputFile:
    """The file being written: every refusal of the system becomes a FileError that names the target."""

    def __init__(self, descriptor: int, target: Path) -> None:
        self._descriptor = descriptor
        self._target = target

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        while left:
            with _naming(self._target):
                left = left[os.write(self._descriptor, left) :]


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Turn what the system says about the target into a FileError."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot be written: {error.strerror or error}", file=target) from None


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[OutputFile]:
    """A file that becomes `target` when the block ends, and vanishes when it is left by any exception.

    Where the system has unnamed files (Linux) not even SIGKILL leaves anything behind; elsewhere a hidden name beside
    the target is removed. SIGTERM counts as an exception. FileError: the system refused to write.
    """
    hidden = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    with _terminating():
        with _naming(target):
            descriptor, named = _open_unnamed(hidden)
        try:
            yield OutputFile(descriptor, target)
            with _naming(target):
                os.fchmod(descriptor, _mode(target))
                os.fsync(descriptor)
                if not named:
                    _name(descriptor, hidden)
                os.replace(hidden, target)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        _sync_folder(target.parent)


def _open_unnamed(hidden: Path) -> tuple[int, bool]:
    """A descriptor to write to, and whether it already has the name `hidden`."""
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if os.path.isdir("/proc/self/fd"):  # through which it gets its name in the end
        with contextlib.suppress(AttributeError, OSError):  # not this system, or not this file system
            return os.open(hidden.parent, flags | os.O_TMPFILE, 0o600), False
    return os.open(hidden, flags | os.O_CREAT | os.O_EXCL, 0o600), True


def _name(descriptor: int, path: Path) -> None:
    """Give an unnamed file a name; only linkat follows /proc's link, and Python calls it when given a folder."""
    folder = os.open("/", os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _mode(target: Path) -> int:
    """The permissions of the file replaced, or those a new one gets."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143) for as long as there is something to clean up."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
