"""The last line of a command whose model's file is cut off while it is read, or whose disk is gone.

Weights are read where the file is mapped, and the system ends a process by SIGBUS that reads where there is no file any
more. Python cannot run then: the handler is machine code, which writes a line made beforehand and leaves.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

from localmoe.cli.app import one_line
from localmoe.errors import FileError

WHY = "was cut off while it was open, or its disk is gone"

# Of threads that come here at once the first one closes a descriptor that is there for this, and the others wait.
_CODE = """
declare i32 @close(i32)
declare i64 @write(i32, i64, i64)
declare void @_exit(i32)
declare i32 @pause()
define void @last_line(i32 %number) {{
  %closed = call i32 @close(i32 {once})
  %first = icmp eq i32 %closed, 0
  br i1 %first, label %say, label %wait
say:
  %written = call i64 @write(i32 {stderr}, i64 {text}, i64 {size})
  call void @_exit(i32 {code})
  unreachable
wait:
  %woken = call i32 @pause()
  br label %wait
}}
"""
_kept: list[Any] = []
"""What the handler needs: its code and its line."""


def tell_when_cut_off(path: Path, why: str = WHY) -> None:
    """From here on a bus error ends the process with a line that names this file, and the exit code of an I/O error."""
    if not hasattr(signal, "SIGBUS") or sys.maxsize < 1 << 32 or faulthandler.is_enabled():
        return
    error = f"error: {one_line(f'{path}: {why}')}\n"
    if sys.stdout.isatty() and sys.stderr.isatty():  # in the middle of a line of text
        error = f"\n{error}"
    line = ctypes.create_string_buffer(error.encode(errors="backslashreplace"))
    engine = _compiled(_CODE.format(once=_spare(), stderr=2, text=ctypes.addressof(line), size=len(line) - 1,
                                    code=FileError.exit_code))  # fmt: skip
    _kept.append((engine, line))
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    set_handler(signal.SIGBUS, engine.get_function_address("last_line"))


@cache
def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def _compiled(code: str) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    return engine
