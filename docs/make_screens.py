"""Write docs/screens/*.svg: the app at four sizes, and its other screens.

    python docs/make_screens.py [MODEL.gguf]

Without a model the tests' stand-in answers (its routing is random); the pictures are for layout then.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((80, 24), (120, 40), (160, 50), (200, 60))
QUESTION = "Tell me a short story about a cat."
LABELS = [
    "Once upon a time there was a fox who | Write a story about a lighthouse",
    "def fibonacci(n): | Write a Python function",
    "What is 17 + 25? | 12 * 12 =",
    "Hi! How are you? | Hello there",
]


async def picture(app: Any, size: tuple[int, int], keys: tuple[str, ...], to: Path) -> None:
    """Ask the question, wait for the reply, press keys and save what is seen."""
    from localmoe.tui.screens.chat import ChatScreen

    async with app.run_test(size=size) as pilot:
        while not isinstance(app.screen, ChatScreen):
            await pilot.pause(0.05)
        chat = app.screen
        await pilot.pause(0.5)  # the input has the focus by then
        await pilot.press(*QUESTION, "enter")
        await pilot.pause(0.2)
        while chat.busy:
            await pilot.pause(0.05)
        await pilot.press(*keys)
        await pilot.pause(0.3)
        to.write_text(app.export_screenshot(title="localmoe"), encoding="utf-8")
    app.worker.close()
    sys.stderr.write(f"{to}\n")


def main(arguments: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    os.environ["COLORTERM"] = "truecolor"  # whatever terminal this is run from
    os.environ.pop("NO_COLOR", None)
    from localmoe.tui.app import create_app
    from localmoe.tui.options import AppOptions
    from tests.tui.fake_model import FakeModel

    out = ROOT / "docs" / "screens"
    out.mkdir(parents=True, exist_ok=True)
    path = Path(arguments[0]) if arguments else Path("demo.gguf")
    options = AppOptions(sampling={"max_tokens": 120, "temperature": 0.0})

    def loader(progress: Any) -> Any:  # noqa: ARG001
        return FakeModel(labels=LABELS, delay=0.002)

    shots = [(f"chat-{width}x{height}", (width, height), ()) for width, height in SIZES]
    shots.append(("help-120x40", (120, 40), ("f1",)))
    shots.append(("rules-120x40", (120, 40), ("f8",)))
    shots.append(("figures-120x40", (120, 40), ("f10",)))
    shots.append(("tokens-120x40", (120, 40), ("f7",)))
    for name, size, keys in shots:
        app = create_app(path, options, None if arguments else loader)
        asyncio.run(picture(app, size, keys, out / f"{name}.svg"))


if __name__ == "__main__":
    main(sys.argv[1:])
