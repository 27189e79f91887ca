"""Compiled functions on disk, a file for each signature, which any number of processes read and write at once.

Numba's own cache numbers a function's files and keeps the numbers in an index. Two processes that compile two
signatures at the same time both take the next number, and later ones are given one signature's machine code for the
other. A file cut off by a crash stops every later run there; here it is compiled anew.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from localmoe.late_signals import signals_wait


class SignatureCache(FunctionCache):  # type: ignore[misc]  # numba has no types
    """Numba's cache of a function, with a file for each signature in place of its index."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = numba.__version__, self._impl.locator.get_source_stamp()
        self._cache_file = _SignatureFiles(Path(self.cache_path), self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """As Numba's; what a signal cuts off in LLVM's question for the code, Numba uses all the same, and crashes."""
        with signals_wait():
            return super().load_overload(sig, target_context)


class _SignatureFiles:
    """What Numba's cache asks of its files: `load`, `save` and `flush`."""

    def __init__(self, folder: Path, base: str, stamp: tuple[Any, ...]) -> None:
        self._folder = folder
        self._base = base
        self._stamp = stamp

    def _path(self, key: tuple[Any, ...]) -> Path:
        return self._folder / f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key: tuple[Any, ...]) -> Any:
        """What was saved under this key by this version from this source, or None."""
        with suppress(OSError, EOFError, pickle.UnpicklingError), self._path(key).open("rb") as file:
            if pickle.load(file) == self._stamp and pickle.load(file) == key:
                return pickle.load(file)
        return None

    def save(self, key: tuple[Any, ...], data: Any) -> None:
        """Keep `data` in one step; a disk that is full keeps nothing."""
        path = self._path(key)
        passing = path.with_suffix(f".{uuid4().hex[:16]}.tmp")
        with suppress(OSError):
            try:
                passing.write_bytes(b"".join(dumps(part) for part in (self._stamp, key, data)))
                os.replace(passing, path)
            finally:
                passing.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget all signatures."""
        for path in self._folder.glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)
