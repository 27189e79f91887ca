"""What the app is started with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmoe.experts.recording import Recording


@dataclass(frozen=True)
class AppOptions:
    """Keywords: `load` for `localmoe.load`, `sampling` for every `model.chat`; `system` is the system prompt.

    `saved` is a run to show differences from. `sessions` is the file that keeps the chats, None: they are not kept;
    `resume` is the number of the one to go on with. `models` are files that the picker lists besides those it finds.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    saved: Recording | None = None
    sessions: Path | None = None
    resume: int | None = None
    models: Sequence[tuple[str, Path]] = ()
