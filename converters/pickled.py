"""Weights in PyTorch's pickled files (.bin, .pt, .pth), without PyTorch and without running anything.

Such a file is a zip of `NAME/data.pkl`, which describes tensors, and `NAME/data/KEY`, their storages, uncompressed. The
pickle is a program for a small stack machine that may call any function there is. Here it meets a machine that knows
only the instructions torch.save needs for a table of tensors, and calls nothing: the names in _CALLS stand for what is
done here, any other name is refused. Storages stay in the file's memory map. Sources: Python's pickletools.py,
PyTorch's torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from localmoe.errors import BadInputError, FileError

from .checkpoint import DTYPE_BYTES, DTYPES, CheckpointTensor

MAX_PICKLE_BYTES = 16 << 20  # a description of 1000 tensors takes 100 KB and 50,000 instructions
MAX_INSTRUCTIONS = 1 << 19
_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_CALLS = {
    ("collections", "OrderedDict"): "table",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "parameter",
}


class _Mark:
    """Where a run of items on the stack begins."""


@dataclass(frozen=True)
class _Name:
    """What a global stands for: a key of the machine's calls, or a storage's dtype."""

    call: str
    dtype: str = ""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    n: int


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickled(path: Path, shown: Path) -> dict[str, CheckpointTensor]:
    """Map the tensors of one file: name -> tensor, in the file's order.

    `shown` is the path that errors name. BadInputError: no such file, one that would run code, or that lies.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise BadInputError("the file is empty", file=shown) from None
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=shown) from error
    members = _members(path, shown)
    listing = [name for name in members if name.endswith("/data.pkl")]
    if len(listing) != 1:
        raise BadInputError("is no file of torch.save: it has no data.pkl", file=shown)
    prefix = listing[0].removesuffix("data.pkl")
    program = _member_bytes(mapped, members[listing[0]], shown)
    order = members.get(f"{prefix}byteorder")
    if order is not None and _member_bytes(mapped, order, shown).strip() != b"little":
        raise BadInputError("is not little-endian", file=shown)
    table = _Machine(shown).run(program)
    if not isinstance(table, dict) or not table:
        raise BadInputError("is not a table of tensors", file=shown, got=type(table).__name__)
    return {str(name): _tensor(name, view, mapped, members, prefix, shown) for name, view in table.items()}


# --- the zip around it -----------------------------------------------------------------------------------------------


def _members(path: Path, shown: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        reason = "is no zip file of torch.save (one from before PyTorch 1.6 has to be saved again, as safetensors)"
        raise BadInputError(reason, file=shown, got=str(error)) from None
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=shown) from error
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise BadInputError("the zip holds a name twice", file=shown)
    return members


def _place(mapped: mmap.mmap, info: zipfile.ZipInfo, shown: Path) -> int:
    """Where a member's bytes begin, which must be stored as they are and lie within the file."""
    at = info.header_offset
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise BadInputError("is compressed or encrypted", file=shown, item=info.filename)
    if at < 0 or mapped[at : at + 4] != b"PK\3\4" or at + 30 > len(mapped):
        raise BadInputError("the zip's directory points to nothing", file=shown, item=info.filename)
    start = at + 30 + int.from_bytes(mapped[at + 26 : at + 28], "little")
    start += int.from_bytes(mapped[at + 28 : at + 30], "little")
    if start + info.file_size > len(mapped):
        needed = start + info.file_size
        raise BadInputError("file is truncated", file=shown, item=info.filename, got=len(mapped), expected=needed)
    return start


def _member_bytes(mapped: mmap.mmap, info: zipfile.ZipInfo, shown: Path) -> bytes:
    start = _place(mapped, info, shown)
    if info.file_size > MAX_PICKLE_BYTES:
        raise BadInputError(
            "is too large", file=shown, item=info.filename, got=info.file_size, expected=f"<= {MAX_PICKLE_BYTES}"
        )
    return mapped[start : start + info.file_size]


def _tensor(
    name: object, view: object, mapped: mmap.mmap, members: dict[str, zipfile.ZipInfo], prefix: str, shown: Path
) -> CheckpointTensor:
    """A described tensor as a view of its storage, after checking that it lies within."""
    if not isinstance(name, str) or not isinstance(view, _View):
        raise BadInputError("is not a tensor", file=shown, item=_shown(name), got=type(view).__name__)
    storage, info = view.storage, members.get(f"{prefix}data/{view.storage.key}")
    size = DTYPE_BYTES[storage.dtype]
    if info is None:
        raise BadInputError("its storage is missing", file=shown, item=name, got=storage.key)
    if info.file_size != storage.n * size:
        raise BadInputError(
            "its storage is of another size", file=shown, item=name, got=info.file_size, expected=storage.n * size
        )
    n = math.prod(view.shape)
    plain = tuple(math.prod(view.shape[i + 1 :]) for i in range(len(view.shape)))
    if any(a != b for a, b, axis in zip(view.strides, plain, view.shape, strict=True) if axis > 1):
        raise BadInputError("is not stored row by row", file=shown, item=name, got=view.strides, expected=plain)
    if view.offset + n > storage.n:
        raise BadInputError(
            "reaches past its storage", file=shown, item=name, got=storage.n, expected=view.offset + n
        )  # fmt: skip
    start, kind = _place(mapped, info, shown), DTYPES.get(storage.dtype)
    array = None
    if kind is not None:
        array = np.frombuffer(mapped, kind, n, start + view.offset * size).reshape(view.shape)
    return CheckpointTensor(name, storage.dtype, view.shape, shown, array, mapped)


# --- the machine -----------------------------------------------------------------------------------------------------

_PUSH = frozenset({
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
})  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": _Mark, "NONE": lambda: None,
    "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})


class _Machine:
    """Runs a pickle's instructions on a stack of plain values; nothing outside this file is called."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "BINPUT": self._put, "LONG_BINPUT": self._put, "MEMOIZE": self._memoize, "BINGET": self._get,
            "LONG_BINGET": self._get, "GLOBAL": self._global, "STACK_GLOBAL": self._stack_global,
            "TUPLE": self._tuple, "SETITEM": self._set_item, "SETITEMS": self._set_items, "APPEND": self._append,
            "APPENDS": self._appends, "BINPERSID": self._persistent, "REDUCE": self._reduce, "BUILD": self._build,
        }  # fmt: skip

    def run(self, program: bytes) -> Any:
        """The value that the pickle makes."""
        done = 0
        try:
            for opcode, argument, _ in pickletools.genops(BytesIO(program)):
                if done == MAX_INSTRUCTIONS:
                    raise ValueError(f"more than {done} instructions")
                self._step(opcode.name, argument)
                done += 1
            (value,) = self._stack
        except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
            reason = f"the pickle is damaged: {error}"
            raise BadInputError(reason, file=self._file, item=f"instruction {done}") from None
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            n = _TUPLES[name]
            self._stack[-n:] = [tuple(self._stack[-n:])]
        elif name in self._steps:
            self._steps[name](argument)
        elif name not in _NOTHING:
            raise self._refused(f"instruction {name}")

    def _refused(self, what: str) -> BadInputError:
        reason = "the pickle holds more than tensors, and could run code: refused, and not run"
        return BadInputError(reason, file=self._file, got=what[:120])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._named(_shown(module), _shown(name)))

    def _named(self, module: str, name: str) -> _Name:
        if (module, name) in _CALLS:
            return _Name(_CALLS[module, name])
        if module == "torch" and name in _STORAGES:
            return _Name("", _STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            reason = "holds weights of a newer dtype, as FP8, which are not read"
            raise BadInputError(reason, file=self._file, got=f"{module}.{name}", expected=", ".join(DTYPES))
        raise self._refused(f"{module}.{name}")

    def _from_mark(self) -> list[Any]:
        """The items above the last mark, taken off together with it."""
        at = len(self._stack) - 1
        while at >= 0 and not isinstance(self._stack[at], _Mark):
            at -= 1
        if at < 0:
            raise ValueError("no mark")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._from_mark()))

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _set_items(self, _: Any) -> None:
        self._fill(self._from_mark())

    def _fill(self, items: list[Any]) -> None:
        table = self._stack[-1]
        if not isinstance(table, dict):
            raise ValueError("items for no table")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in table:
                raise ValueError(f"key {_shown(key)!r} is no name, or there twice")
            table[key] = value

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._from_mark())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("values for no list")
        self._stack[-1].extend(values)

    def _persistent(self, _: Any) -> None:
        """("storage", a storage's class, key, device, elements) becomes a _Storage."""
        asked = self._stack.pop()
        if not isinstance(asked, tuple) or len(asked) != 5:
            raise self._refused("an object from elsewhere")
        kind, name, key, _, n = asked
        if kind != "storage" or not isinstance(name, _Name) or not name.dtype or not isinstance(key, str):
            raise self._refused("an object from elsewhere")
        self._stack.append(_Storage(name.dtype, key, _count(n)))

    def _reduce(self, _: Any) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, _Name) or not called.call or not isinstance(arguments, tuple):
            raise self._refused("a call")
        if called.call == "table":
            if arguments:
                raise self._refused("a table made of something")
            self._stack.append({})
        elif called.call == "parameter":
            if not isinstance(arguments[0], _View):
                raise ValueError("a parameter that is no tensor")
            self._stack.append(arguments[0])
        else:
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage) or len(shape) != len(strides):
                raise ValueError("a tensor without storage")
            view = _View(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))
            self._stack.append(view)

    def _build(self, _: Any) -> None:
        """A table's attributes (torch.save keeps versions there) are left out."""
        state = self._stack.pop()
        if not isinstance(self._stack[-1], dict) or not isinstance(state, dict):
            raise self._refused("an object's state")


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise ValueError(f"{_shown(value)} is no size")
    return value


def _shown(value: object) -> str:
    """A string or number; of anything else its kind alone, since a few nested tuples can be longer than memory."""
    return str(value)[:120] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
