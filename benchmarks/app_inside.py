"""What benchmarks/app.py runs in a pseudo-terminal: localmoe's own command line with every generation timed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from localmoe.engine.api import Model


@dataclasses.dataclass(frozen=True)
class Plan:
    """`out` takes a JSON line for each generation, of `n` tokens.

    pace: numbered words in place of the model's, at most so many a second; 0: the model's own. phase: seconds for
    which the app's screen follows the reply and lets it be in turn; 0: it always follows.
    """

    out: str
    n: int
    pace: float = 0.0
    phase: float = 0.0


def main(plan: Plan, command: list[str]) -> None:
    """Run a command; one other than the app for each line of standard input, over a model that stays open."""
    from localmoe.cli import app

    _time_generations(plan)
    if plan.phase:
        _look_in_turn(plan.phase)
    if command[0] == "tui":
        app.main(command)
        return
    _open_once()
    for _ in sys.stdin:
        app.main(command)


def _time_generations(plan: Plan) -> None:
    from localmoe.experts.trace import RoutingTrace

    spent = [0.0]
    for name in ("append", "read"):
        setattr(RoutingTrace, name, _timed(getattr(RoutingTrace, name), spent))
    generate = Model.generate

    def timed(self: Model, prompt: Any, **options: Any) -> Iterator[Any]:
        if self.chat_template is not None and isinstance(prompt, str):
            prompt = self.chat_template.encode(self.tokenizer, [{"role": "user", "content": prompt}])
        options.update(max_tokens=plan.n, ignore_eos=True)
        began = time.perf_counter()
        times: list[float] = []
        screen = time.pthread_getcpuclockid(threading.main_thread().ident or 0)
        for number, step in enumerate(generate(self, prompt, **options)):
            if not times:
                spent[0], drawn = 0.0, time.clock_gettime(screen)
            elif plan.pace:
                time.sleep(max(0.0, times[0] + number / plan.pace - time.perf_counter()))
            times.append(time.perf_counter())
            yield dataclasses.replace(step, text=word(number)) if plan.pace and step.token >= 0 else step
        seconds = times[-1] - times[0]
        gaps = sorted(b - a for a, b in itertools.pairwise(times))
        row = {
            "rate": len(gaps) / seconds,
            "prompt_s": times[0] - began,
            "p99_ms": 1e3 * gaps[int(0.99 * len(gaps))],
            "trace_part": spent[0] / seconds,
            "screen_part": (time.clock_gettime(screen) - drawn) / seconds,
        }
        if plan.phase:
            row["ratios"] = phase_ratios(times, plan.phase)
        with Path(plan.out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    Model.generate = timed  # type: ignore[method-assign]


def _timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def wrapper(*args: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **keywords)
        finally:
            spent[0] += time.perf_counter() - began

    return wrapper


def _open_once() -> None:
    """Let every command find the model open that the first one has opened."""
    import localmoe

    load, opened = localmoe.load, list[Model]()

    def once(*arguments: Any, **keywords: Any) -> Model:
        if not opened:
            opened.append(load(*arguments, **keywords))
        return opened[0]

    localmoe.load = once
    Model.close = lambda _: None  # type: ignore[method-assign]


def _look_in_turn(seconds: float) -> None:
    """Let the chat's screen draw a reply in odd phases alone, and throw away what comes in the others."""
    from localmoe.tui.screens.chat import ChatScreen

    look = ChatScreen._look

    async def sometimes(self: ChatScreen) -> None:
        if _follows(time.perf_counter(), seconds) or not self.busy or self.status.state == "reading":
            await look(self)
        else:
            self._last = self.worker.drain()

    ChatScreen._look = sometimes  # type: ignore[method-assign]


def _follows(now: float, seconds: float) -> bool:
    return int(now / seconds) % 2 == 1


def phase_ratios(times: list[float], seconds: float) -> list[float]:
    """Tokens' rate in each phase that the screen follows over the mean rate in the phases around it."""
    phases = [list(part) for _, part in itertools.groupby(itertools.pairwise(times), lambda gap: int(gap[0] / seconds))]
    rates = [len(part) / (part[-1][1] - part[0][0]) for part in phases]
    middle = [i for i in range(2, len(phases) - 2) if _follows(phases[i][0][0], seconds)]
    return [2 * rates[i] / (rates[i - 1] + rates[i + 1]) for i in middle]


def word(number: int) -> str:
    """Numbered words that no line breaks, in paragraphs and a list in turn, some of them bold."""
    place = number % 160
    begins = "\n\n" if place in (0, 60, 100) else "\n- " if place > 100 and place % 12 == 0 else " "
    begins += "- " if place == 100 else ""
    return f"{begins}**w{number:04d}**" if number % 9 == 4 else f"{begins}w{number:04d}"


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])), sys.argv[2:])
