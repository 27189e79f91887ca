"""Reading GGUF's numbers, strings and values from untrusted bytes.

Nothing is read past the end of the file, and nothing is allocated for a count before the file is known to hold it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from localmoe.errors import BadInputError

if TYPE_CHECKING:
    from localmoe.ggml import GGUFValueType

MAX_STRINGS = 1_000_000  # in all arrays of a file; the largest vocabularies hold some 850,000 with their merges
MAX_METADATA_BYTES = 32 << 20  # the largest vocabularies take 20 MB
MAX_STRING_BYTES = 8 << 20  # a key, a text or a template by itself

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
# GGUFValueType -> NumPy dtype of everything with a fixed size
_FIXED: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip


def visible(text: str, limit: int | None = None) -> str:
    """Show text from a file with control, format and unassigned characters escaped, cut to `limit` characters."""
    cut = text if limit is None or len(text) <= limit else text[:limit] + "..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in cut)


class Cursor:
    """A position in a mapped file that never reads past its end or past the limit on metadata."""

    __slots__ = ("data", "path", "pos", "size", "strings")

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.pos = 0
        self.size = len(data)
        self.strings = MAX_STRINGS

    def error(self, reason: str, item: str | None = None, got: object = None, expected: object = None) -> BadInputError:
        where = f"offset {self.pos}" if item is None else visible(item, 100)
        return BadInputError(reason, file=visible(str(self.path)), item=where, got=got, expected=expected)

    def need(self, n_bytes: int, what: str, item: str | None = None) -> None:
        """Raise unless `n_bytes` more can be read; `n_bytes` may be any number a file can state."""
        if n_bytes > self.size - self.pos:
            left = f"at most {self.size - self.pos} to the end of the file"
            raise self.error(f"{what} reaches past the end", item, f"{n_bytes} bytes", left)
        if self.pos + n_bytes > MAX_METADATA_BYTES:
            raise self.error(
                f"{what} makes the metadata too large", item, self.pos + n_bytes, f"<= {MAX_METADATA_BYTES}"
            )

    def u32(self, what: str, item: str | None = None) -> int:
        self.need(4, what, item)
        self.pos += 4
        return int(_U32.unpack_from(self.data, self.pos - 4)[0])

    def u64(self, what: str, item: str | None = None) -> int:
        self.need(8, what, item)
        self.pos += 8
        return int(_U64.unpack_from(self.data, self.pos - 8)[0])

    def string(self, what: str, item: str | None = None, limit: int | None = None) -> str:
        """A length and that many bytes of UTF-8; `limit` bounds the length in bytes."""
        length = self.u64(what, item)
        self.need(length, what, item)
        if length > (limit or MAX_STRING_BYTES):
            raise self.error(f"{what} is too long", item, f"{length} bytes", f"<= {limit or MAX_STRING_BYTES}")
        try:
            text = self.data[self.pos : self.pos + length].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 at its byte {error.start}", item) from None
        self.pos += length
        return text


def read_value(cursor: Cursor, key: str) -> tuple[tuple[GGUFValueType, GGUFValueType | None], Any]:
    from localmoe.ggml import GGUFValueType

    kind = cursor.u32("the value's type", key)
    if kind == _STRING:
        return (GGUFValueType.STRING, None), cursor.string("the string", key)
    if kind in _FIXED:
        value = _read_numbers(cursor, key, kind, 1)[0].item()
        return (GGUFValueType(kind), None), value
    if kind != _ARRAY:
        raise cursor.error("unknown value type", key, kind, "0 to 12")
    element = cursor.u32("the array's element type", key)
    count = cursor.u64("the array's length", key)
    if element == _STRING:
        return (GGUFValueType.ARRAY, GGUFValueType.STRING), _read_strings(cursor, key, count)
    if element in _FIXED:
        return (GGUFValueType.ARRAY, GGUFValueType(element)), _read_numbers(cursor, key, element, count)
    reason = "arrays of arrays are not supported" if element == _ARRAY else "unknown element type"
    raise cursor.error(reason, key, element, "0 to 8 or 10 to 12")


def _read_numbers(cursor: Cursor, key: str, kind: int, count: int) -> npt.NDArray[Any]:
    dtype = _FIXED[kind]
    cursor.need(count * dtype.itemsize, "the value" if count == 1 else "the array", key)
    values = np.frombuffer(cursor.data, dtype, count, cursor.pos).copy()
    if kind == _BOOL:
        if count and values.max() > 1:
            raise cursor.error("a bool is neither 0 nor 1", key, int(values.max()))
        values = values.view(np.bool_)
    cursor.pos += count * dtype.itemsize
    return values


def _read_strings(cursor: Cursor, key: str, count: int) -> list[str]:
    """An array of strings: one tight loop, since a vocabulary holds 300,000 of them."""
    cursor.need(count * 8, "the array", key)
    if count > cursor.strings:
        raise cursor.error("too many strings", key, count, f"<= {cursor.strings}")
    cursor.strings -= count
    data, pos, end = cursor.data, cursor.pos, min(cursor.size, MAX_METADATA_BYTES)
    length_at = _U64.unpack_from
    out: list[str] = []
    add = out.append
    try:
        for _ in range(count):
            start = pos + 8
            pos = start + length_at(data, pos)[0]
            if pos > end:
                break
            add(data[start:pos].decode())
    except (UnicodeDecodeError, struct.error) as error:
        bad_text = isinstance(error, UnicodeDecodeError)
        raise cursor.error(f"string {len(out)} {'is not UTF-8' if bad_text else 'reaches past the end'}", key) from None
    if len(out) < count:
        raise cursor.error(f"string {len(out)} reaches past the end", key, f"end {pos}", f"<= {end}")
    cursor.pos = pos
    return out


def what_else(data: mmap.mmap) -> str:
    """What stands where a GGUF should: what a download that went wrong leaves, or the first bytes."""
    if data[:24] == b"version https://git-lfs.":
        return "a Git LFS pointer (`git lfs pull` fetches the file itself)"
    if data[:1] == b"<":
        return "a web page (a download that went wrong)"
    return f"magic {data[:4]!r}"
