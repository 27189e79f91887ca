"""What the app is started with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localmoe.progress import Progress

if TYPE_CHECKING:
    from localmoe.experts.recording import Recording


class Builder(Protocol):
    """Builds a model's file, telling of bytes done and of what it does; LocalMoeError where it cannot."""

    def __call__(self, progress: Progress, *, notify: Callable[[str], None]) -> object: ...


@dataclass(frozen=True)
class Buildable:
    """A model that can be built: its file, what it is and takes in words, and what builds it."""

    path: Path
    about: str
    build: Builder


@dataclass(frozen=True)
class AppOptions:
    """Keywords: `load` for `localmoe.load`, `sampling` for every `model.chat`; `system` is the system prompt.

    `parameters` are others of PARAMETERS that a new chat begins with. `saved` is a run to show differences from.
    `sessions` is the file that keeps the chats, None: they are not kept; `resume` is the number of the one to go on
    with. `models` are files that the picker lists besides those it finds, `demo` is one that it offers to build.
    `beginnings` are texts to try, by the file of the model that knows them.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    saved: Recording | None = None
    sessions: Path | None = None
    resume: int | None = None
    models: Sequence[tuple[str, Path]] = ()
    demo: Buildable | None = None
    beginnings: Mapping[Path, Sequence[str]] = field(default_factory=dict)
