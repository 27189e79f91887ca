"""`localmoe bench --profile`: where a pass's time goes, step by step, beside what the machine could do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmoe.engine.api import Model


def profile_test(model: Model, repetitions: int, run: Callable[[], float]) -> dict[str, Any]:
    """Time `run`, which returns the seconds that count, `repetitions` times by step.

    Seconds are those of all repetitions and, of a step, the mean of the threads; filling the context is in the steps
    too. "share" is the least time that the machine needs for a step's bytes and multiplications over the step's time.
    """
    limits = model.limits()
    profile = model.profile()
    profile.start()
    wall = sum(run() for _ in range(repetitions))
    profile.stop()
    steps = []
    for i, (name, cost) in enumerate(profile.costs.items()):
        by_thread = profile.step_s[:, i]
        mean = float(by_thread.mean())
        steps.append(
            {
                "step": name,
                "seconds": mean,
                "by_thread": [float(s) for s in by_thread],
                "bytes": cost.n_bytes,
                "gbs": cost.n_bytes / mean / 1e9 if mean else 0.0,
                "gmacs": (cost.int_macs + cost.float_macs) / mean / 1e9 if mean else 0.0,
                "share": limits.seconds(cost) / mean if mean else 0.0,
            }
        )
    found = {"read_gbs": limits.read, "int_gmacs": limits.int_macs, "float_gmacs": limits.float_macs}
    return {"n_tok": profile.n_tok, "seconds": wall, "pass_seconds": profile.pass_s, "limits": found, "steps": steps}


def profile_lines(test: str, profile: dict[str, Any] | None) -> Iterator[str]:
    """A Markdown table of `profile_test`'s figures, times a token of all that were run."""
    if profile is None:
        return
    n_tok, whole = profile["n_tok"], max(profile["pass_seconds"], 1e-9)
    limits = profile["limits"]
    yield ""
    yield f"{test}, steps: {1e6 * whole / n_tok:.1f} us a token in compiled code, mean of the threads."
    top = f"limits: reading {limits['read_gbs']:.1f} GB/s, FMA {limits['float_gmacs']:.0f} GMAC/s"
    yield top + (f", int8 dot product {limits['int_gmacs']:.0f} GMAC/s." if limits["int_gmacs"] else ".")
    yield ""
    yield "| step             | us a token |  time | MB a token |   GB/s | GMAC/s | of the limit |"
    yield "| ---------------- | ---------: | ----: | ---------: | -----: | -----: | -----------: |"
    rest = whole
    for step in profile["steps"]:
        rest -= step["seconds"]
        work = ("", "", "", "")
        if step["bytes"]:
            size, speed = f"{step['bytes'] / n_tok / 1e6:.3f}", f"{step['gbs']:.1f}"
            work = (size, speed, f"{step['gmacs']:.0f}", f"{step['share']:.0%}")
        yield _line(step["step"], step["seconds"] / n_tok, step["seconds"] / whole, *work)
    yield _line("starting", rest / n_tok, rest / whole)


def _line(name: str, seconds: float, share: float, size: str = "", gbs: str = "", gmacs: str = "", of: str = "") -> str:
    return f"| {name:16s} | {1e6 * seconds:10.2f} | {share:5.1%} | {size:>10s} | {gbs:>6s} | {gmacs:>6s} | {of:>12s} |"
