"""Files as torch.save makes them, written without PyTorch, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage", "int64": "LongStorage"}
TABLE = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(x: np.ndarray, key: str, offset: int = 0, n: int | None = None) -> bytes:
    """The instructions of one tensor over the storage `key`; uint16 stands for bfloat16."""
    strides = tuple(s // x.itemsize for s in np.empty(x.shape, x.dtype).strides)
    kind = STORAGES[x.dtype.name].encode()
    storage = (
        text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + number(x.size if n is None else n)
    )
    arguments = b"(" + storage + b"tQ" + number(offset) + numbers(x.shape) + numbers(strides) + b"\x89" + TABLE
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def write_torch(
    path: Path, tensors: Mapping[str, np.ndarray], *, extra: bytes = b"", program: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:  # fmt: skip
    """Write a table of tensors; `extra` is one more value's instructions, `program` replaces the whole pickle."""
    items = b"".join(text(name) + tensor(x, str(i)) for i, (name, x) in enumerate(tensors.items()))
    items += text("extra") + extra if extra else b""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program or b"\x80\x02" + TABLE + b"(" + items + b"u.")
        archive.writestr("archive/byteorder", "little")
        for i, x in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(x).tobytes())
    return path


class Call:
    """Unpickling it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def payloads(mark: Path) -> Iterator[tuple[bytes, str]]:
    """(instructions of a value that makes a folder `mark` when it is unpickled, what a refusal names)."""
    for protocol in (2, 4):
        made = pickle.dumps(Call(os.mkdir, str(mark)), protocol)
        yield made[2:-1] if protocol == 2 else made[11:-1], "posix.mkdir"
    command = f"__import__('os').mkdir({str(mark)!r})"
    yield b"c__builtin__\neval\n(" + text(command) + b"tR", "__builtin__.eval"
    yield b"ctorch._utils\n_rebuild_tensor\n(" + text(command) + b"tR", "torch._utils._rebuild_tensor"
    yield b"(" + text(command) + b"ibuiltins\neval\n", "instruction INST"
    yield b"cbuiltins\nexec\n" + text(command) + b"\x85R", "builtins.exec"
    yield TABLE + b"(" + text("x") + number(1) + b"tb", "an object's state"
    yield text("persistent") + b"\x85Q", "an object"
    yield b"\x82\x01", "instruction EXT1"
