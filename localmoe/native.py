"""Compiled functions by address; without Numba where their machine code is on disk.

To import Numba and to let it look into its cache takes longer than everything else from a start to the first token.
What the engine calls is therefore kept as the object file that LLVM made of it, and LLVM alone links that into the
process. So it is on Linux; elsewhere, and where anything is set for Numba, its own cache serves.

A file is a line of text (the CRC-32 of what follows, the function's symbol, the symbols it needs) and the object.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

import llvmlite.binding as llvm

from localmoe.target import cache_dir, chosen_cpu, numba_is_told

_RUNTIME = ("numba_", "NRT_")  # called where a kernel raises an exception, which none does, or frees what it never has


@cache
def address(module: str, name: str, n_args: int, *arguments: Any) -> int:
    """Address of a C function of int64 * n_args without a result: from its file, or compiled by Numba.

    It is the plain function `name` of a module below localmoe, or, with `arguments`, what that makes of them.
    """
    path = cache_dir() / ("-".join((f"{module}.{name}", *map(str, arguments))) + ".o")
    keeps = _keeps_objects()
    found = _load(path) if keeps else 0
    if found:
        return found
    from localmoe.jit import compile_c

    source = getattr(import_module(f"localmoe.{module}"), name)
    missing = keeps and not path.exists()
    # not in Numba's cache as well: from there it comes without the object, which would then be missing for ever
    compiled = compile_c(source(*arguments) if arguments else source, n_args, in_cache=not missing)
    if missing:
        _save(path, compiled.native_name, compiled._library._get_compiled_object())
    return int(compiled.address)


@cache
def function(module: str, name: str, n_args: int) -> Callable[..., None]:
    """What `address` gives as something that Python calls, without the GIL."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_args)(address(module, name, n_args))


@cache
def _keeps_objects() -> bool:
    return sys.platform == "linux" and sys.maxsize > 1 << 32 and not numba_is_told()


@cache
def _engine() -> Any:
    """What links objects into the process, and keeps them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = chosen_cpu()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=name or llvm.get_host_cpu_name(), features=features or "", jit=True
    )
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _load(path: Path) -> int:
    """The address of a kept function; 0 if there is none, it is damaged, or something that it needs is not here."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return 0
    check, symbol, *needed = head.decode(errors="replace").split(" ")
    if check != f"{crc32(code):08x}":
        path.unlink(missing_ok=True)
        return 0
    engine = _engine()
    if not all(map(_provide, needed)):
        return 0
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return int(engine.get_function_address(symbol))


def _provide(symbol: str) -> bool:
    """Whether LLVM will find a symbol in this process; Numba's own, where it is not here, ends the process."""
    if llvm.address_of_symbol(symbol):
        return True
    if symbol.startswith(_RUNTIME):
        abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
        llvm.add_symbol(symbol, abort)
        return True
    return False


def _save(path: Path, symbol: str, code: bytes) -> None:
    """Keep a function's object file, whole or not at all."""
    head = " ".join((f"{crc32(code):08x}", symbol, *_undefined(code)))
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        part.write_bytes(head.encode() + b"\n" + code)
        part.replace(path)
    except OSError:  # a full disk: compiled again the next time
        with suppress(OSError):
            part.unlink()


def _undefined(code: bytes) -> list[str]:
    """The symbols that a 64-bit ELF object takes from elsewhere."""
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(code).sections()}
    names = sections[b".strtab"]
    symbols = struct.iter_unpack("<IBBHQQ", sections[b".symtab"])  # name, info, other, section, value, size
    return [
        names[name : names.index(b"\0", name)].decode() for name, _, _, section, _, _ in symbols if name and not section
    ]
