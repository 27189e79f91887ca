"""Where GGUF files may be, and what one is; a file is only looked into when someone asks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.engine.openable import refusal
from localmoe.errors import LocalMoeError
from localmoe.gguf_file import open_gguf

MOST = 300
"""Files that are listed."""
DEPTH = 4
"""Folders below one that is searched."""
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_NO_MODEL = re.compile(r"^(mmproj|imatrix)|imatrix.*\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A file, and how it was found."""

    path: Path
    where: str


@dataclass(frozen=True)
class Facts:
    """What a file is; `error` in place of all else where it is nothing that runs, `detail` all that is known then."""

    architecture: str = ""
    n_expert: int = 0
    n_used: int = 0
    error: str = ""
    detail: str = ""

    @property
    def kind(self) -> str:
        """The architecture, and its experts."""
        experts = f"{self.n_used} of {self.n_expert} experts" if self.n_expert else "dense"
        return f"{self.architecture}, {experts}"


def folders() -> list[tuple[str, Path]]:
    """Folders to search, with a name for each: where one is, where downloaders put models, LOCALMOE_MODELS."""
    env, home = os.environ, Path.home()
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    hub = env.get("HF_HUB_CACHE") or Path(env.get("HF_HOME") or cache / "huggingface") / "hub"
    own = [("LOCALMOE_MODELS", Path(part)) for part in env.get("LOCALMOE_MODELS", "").split(os.pathsep) if part]
    return [
        *own,
        ("this folder", Path.cwd()),
        ("Hugging Face cache", Path(hub)),
        ("llama.cpp cache", Path(env.get("LLAMA_CACHE") or cache / "llama.cpp")),
        ("LM Studio", home / ".lmstudio" / "models"),
        ("models", home / "models"),
    ]


def find(recent: Sequence[str] = (), places: Sequence[tuple[str, Path]] | None = None) -> list[Found]:
    """GGUF files: those opened lately first, then those in the folders; each once, of split ones the first part."""
    found: dict[str, Found] = {}
    candidates = [Found(Path(path), "recent") for path in recent]
    for name, folder in folders() if places is None else places:
        candidates += [Found(path, name) for path in _walk(folder, DEPTH)]
    for item in candidates:
        try:
            key = os.path.realpath(item.path)
            if item.path.is_file() and len(found) < MOST:
                found.setdefault(key, item)
        except (OSError, ValueError):  # not ours to read, or no path at all
            continue
    return list(found.values())


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.lower())
    except OSError:
        return
    below = []
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry)
            elif is_model_name(entry.name):
                yield Path(entry.path)
        except OSError:
            continue
    for entry in below if depth else ():
        if not entry.name.startswith((".", "__")) and entry.name not in ("node_modules", "blobs"):
            yield from _walk(Path(entry.path), depth - 1)


def is_model_name(name: str) -> bool:
    """Whether a file's name may be that of a model: no later part of a split one, no projector, no matrix."""
    return name.lower().endswith(".gguf") and not _LATER_PART.search(name) and not _NO_MODEL.search(name)


def look_into(path: Path) -> Facts:
    """Read a file's header, and whether what it says can run here."""
    try:
        with open_gguf(path) as gguf:
            arch = gguf.metadata.get("general.architecture")
            arch = arch if isinstance(arch, str) else "?"
            n_expert, n_used = (gguf.metadata.get(f"{arch}.expert_{name}count", 0) for name in ("", "used_"))
            wrong = refusal(gguf)
            return Facts(error=wrong) if wrong else Facts(arch, _whole(n_expert), _whole(n_used))
    except LocalMoeError as error:
        return Facts(error=error.reason, detail=str(error).removeprefix(f"{error.file}: "))
    except OSError as error:
        return Facts(error=error.strerror or str(error))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def size_text(path: Path) -> str:
    """A file's size, short; split ones as a whole."""
    match = re.match(r"(.*)-\d{5}-of-(\d{5})\.gguf$", path.name)
    parts = sorted(path.parent.glob(f"{_escaped(match[1])}-?????-of-{match[2]}.gguf")) if match else [path]
    try:
        size = float(sum(part.stat().st_size for part in parts))
    except OSError:
        return "?"
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
