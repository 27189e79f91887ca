"""Recordings as files: NPZ without pickle, every array's type, shape and values checked before it is believed.

Members: `meta` (JSON: format, model, settings, labels, n_expert), `text` (UTF-8 of all pieces) with `text_ends` (N,),
and the arrays of Recording by their names.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from localmoe.errors import BadInputError, FileError
from localmoe.experts.recording import Array, Recording
from localmoe.gguf_file import visible
from localmoe.output_file import check_target, replacing

FORMAT = 2
MAX_BYTES = 4 << 30  # of all arrays of one file together, unpacked
MAX_META = 64 << 20
MAX_LAYERS, MAX_EXPERTS = 4096, 65536
# member -> type and dimensions; router may be missing
ARRAYS: Mapping[str, tuple[str, str]] = {
    "tokens": ("<i4", "N"), "phase": ("|i1", "N"), "starts": ("|b1", "N"), "n_used": ("<i4", "NL"),
    "experts": ("<i4", "NLK"), "weights": ("<f4", "NLK"), "router": ("<f2", "NLE"), "expert_bytes": ("<i8", "L"),
    "text_ends": ("<i8", "N"), "text": ("|u1", "B"), "meta": ("|u1", "M"),
}  # fmt: skip
_META = {"format": int, "model": str, "settings": str, "labels": list, "n_expert": int}


def save_recording(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write a recording; FileError where that cannot be, and then an older file is as it was."""
    pieces = [piece.encode("utf-8", "surrogateescape") for piece in recording.pieces]
    meta = {
        "format": FORMAT, "model": recording.model, "settings": recording.settings,
        "labels": list(recording.labels), "n_expert": recording.n_expert,
    }  # fmt: skip
    arrays: dict[str, Array] = {
        name: getattr(recording, name)
        for name in ARRAYS
        if hasattr(recording, name) and getattr(recording, name) is not None
    }
    arrays["text_ends"] = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    arrays["text"] = np.frombuffer(b"".join(pieces), np.uint8)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                kind = np.dtype(ARRAYS[name][0])
                np.lib.format.write_array(member, np.ascontiguousarray(values, kind), allow_pickle=False)
    target = check_target(Path(path), [], file=str(path))
    with replacing(target) as out:
        out.write(packed.getvalue())  # of a view that an error holds on to Python 3.13 complains


@dataclass(frozen=True)
class Outline:
    """What a recording is, without what it holds."""

    n_token: int
    n_layer: int
    n_expert: int
    model: str


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read and check a recording; BadInputError names the member that is wrong, FileError what cannot be read."""
    name = visible(os.fspath(path))
    with _opened(path, name) as archive:
        members = _members(archive, name)
        meta = _meta(_array(archive, members.pop("meta"), "meta", name), name)
        arrays = {member: _array(archive, info, member, name) for member, info in members.items()}
    return _checked(arrays, meta, name)


def outline(path: str | os.PathLike[str]) -> Outline:
    """What a recording is, by its headers; errors as of `load_recording`, but for values that are wrong."""
    name = visible(os.fspath(path))
    with _opened(path, name) as archive:
        members = _members(archive, name)
        meta = _meta(_array(archive, members["meta"], "meta", name), name)
        with archive.open(members["experts"]) as member:
            n_token, n_layer, _ = _shape(member, "experts", name)
    return Outline(n_token, n_layer, meta["n_expert"], meta["model"])


@contextmanager
def _opened(path: str | os.PathLike[str], name: str) -> Iterator[zipfile.ZipFile]:
    """An archive to read; what is wrong with it or its members is a BadInputError or a FileError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        if error.errno == errno.EINVAL:  # the archive's directory points before the file's beginning
            raise BadInputError("no trace of localmoe", file=name, got="a damaged archive") from None
        raise FileError(f"cannot be read: {error.strerror or error}", file=name) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInputError("no trace of localmoe", file=name, got=visible(str(error), 100)) from None


def _members(archive: zipfile.ZipFile, file: str) -> dict[str, zipfile.ZipInfo]:
    """All members, by the names of ARRAYS; none is missing, and together they are not too large."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in ARRAYS or name in members:
            raise BadInputError("unexpected member", file=file, item=visible(info.filename, 60))
        members[name] = info
    missing = [name for name in ARRAYS if name not in members and name != "router"]
    if missing:
        raise BadInputError("no trace of localmoe", file=file, item=missing[0], got="nothing", expected="an array")
    total = sum(info.file_size for info in members.values())
    if total > MAX_BYTES or members["meta"].file_size > MAX_META:
        raise BadInputError("the trace is too large", file=file, got=f"{total} bytes", expected=f"at most {MAX_BYTES}")
    return members


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, file: str) -> Array:
    """One member, its header compared with what is stored before anything is unpacked."""
    dtype = np.dtype(ARRAYS[name][0])
    with archive.open(info) as member:
        shape = _shape(member, name, file)
        n_bytes = dtype.itemsize
        for size in shape:
            n_bytes *= size
        if min(shape, default=0) < 0 or n_bytes > info.file_size:
            raise BadInputError("the array is longer than what is stored", file=file, item=name)
        data = member.read(n_bytes)
    if len(data) != n_bytes:
        raise BadInputError("the array is cut short", file=file, item=name, got=len(data), expected=n_bytes)
    return np.frombuffer(data, dtype).reshape(shape)


def _shape(member: IO[bytes], name: str, file: str) -> tuple[int, ...]:
    """An array's shape by its header, which is of the right type and dimensions."""
    kind, dims = ARRAYS[name]
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise BadInputError("unknown version of an array", file=file, item=name, got=version, expected=(1, 0))
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=10_000)
    if dtype != np.dtype(kind) or by_columns or len(shape) != len(dims):
        got = f"{dtype.str} of {len(shape)} dimensions"
        raise BadInputError("wrong type", file=file, item=name, got=got, expected=f"{kind} of {len(dims)}")
    return tuple(shape)


def _meta(text: Array, file: str) -> dict[str, Any]:
    try:
        meta = json.loads(text.tobytes())
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict) or any(type(meta.get(key)) is not kind for key, kind in _META.items()):
        raise BadInputError("damaged", file=file, item="meta")
    if meta["format"] != FORMAT:
        raise BadInputError("unknown format", file=file, item="meta", got=meta["format"], expected=FORMAT)
    if not 1 <= meta["n_expert"] <= MAX_EXPERTS:
        raise BadInputError("impossible number of experts", file=file, item="meta", got=meta["n_expert"])
    if not all(isinstance(label, str) for label in meta["labels"]) or len(meta["labels"]) not in (0, meta["n_expert"]):
        raise BadInputError("labels do not fit the experts", file=file, item="meta")
    return meta


def _checked(arrays: dict[str, Array], meta: dict[str, Any], file: str) -> Recording:
    n, n_layer, n_slot = arrays["experts"].shape
    sizes = {"N": n, "L": n_layer, "K": n_slot, "E": meta["n_expert"]}
    for name, values in arrays.items():
        wanted = [sizes.get(d, values.shape[i]) for i, d in enumerate(ARRAYS[name][1])]
        if list(values.shape) != wanted:
            raise BadInputError("wrong shape", file=file, item=name, got=list(values.shape), expected=wanted)
    if not (n_layer <= MAX_LAYERS and n_slot <= meta["n_expert"]):
        raise BadInputError("impossible shape", file=file, item="experts", got=arrays["experts"].shape)
    bounds = {
        "tokens": (0, None), "phase": (0, 1), "n_used": (0, meta["n_expert"]), "experts": (-1, meta["n_expert"] - 1),
        "weights": (0, None), "router": (0, 1.01), "expert_bytes": (0, 1 << 48), "text_ends": (0, arrays["text"].size),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        if name in arrays and arrays[name].size:
            values = arrays[name]
            inside = np.isfinite(values).all() and values.min() >= low and (high is None or values.max() <= high)
            if not inside:
                raise BadInputError("a value is out of range", file=file, item=name, expected=f"{low} to {high}")
    if arrays["starts"].view(np.uint8).max(initial=0) > 1:
        raise BadInputError("a value is out of range", file=file, item="starts", expected="0 or 1")
    plain = ("tokens", "phase", "starts", "n_used", "experts", "weights", "expert_bytes")
    known: dict[str, Any] = {name: arrays[name] for name in plain} | {"router": arrays.get("router")}
    return Recording(
        **known,
        pieces=_pieces(arrays, file),
        n_expert=meta["n_expert"],
        labels=tuple(meta["labels"]),
        model=meta["model"],
        settings=meta["settings"],
    )


def _pieces(arrays: Mapping[str, Array], file: str) -> tuple[str, ...]:
    ends = arrays["text_ends"].tolist()
    if any(b < a for a, b in zip([0, *ends], ends, strict=False)) or (ends[-1] if ends else 0) != arrays["text"].size:
        raise BadInputError("ends of texts are not in order", file=file, item="text_ends")
    text = arrays["text"].tobytes()
    return tuple(text[a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *ends[:-1]], ends, strict=False))
