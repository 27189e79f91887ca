"""Rows 19 and 20 for every command that writes: stopped at random moments of the whole run, by each way to stop one.

A moment is a part of the time that the undisturbed command takes, counted from when its program heeds signals: before,
it is Python itself that answers. Seeded, so that a failure can be looked at again.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from localmoe.cli import main
from tests.acceptance.command import PATIENCE, contents, start
from tests.acceptance.writers import NAMES, OLD, Writers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses signals, and files without a name")

KILLS, INTERRUPTS, TERMINATIONS = 20, 9, 4


@dataclass(frozen=True)
class Case:
    """A command, where it writes, how long it takes and what it makes."""

    arguments: tuple[str, ...]
    out: Path
    seconds: float
    whole: bytes


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Writers:
    return Writers(tmp_path_factory.mktemp("inputs"), large=True)


@pytest.fixture(scope="module")
def cases(writers: Writers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Case]]:
    """Every command, each with a folder of its own."""
    found = []
    for name in NAMES:
        out = writers.target(tmp_path_factory.mktemp(name), name)
        arguments = writers.commands[name](out)
        with pytest.MonkeyPatch.context() as chats:
            chats.setenv("LOCALMOE_DATA", str(writers.data))
            assert main(list(arguments)) == 0  # compiles what it needs: the child's time is that of every later one
        with start(*arguments, env=writers.environment) as child:
            began = time.monotonic()
            _, said = child.communicate(timeout=PATIENCE)
            seconds = time.monotonic() - began
        assert child.returncode == 0, said.decode()
        found.append(Case(arguments, out, seconds, out.read_bytes()))
    before = contents(writers.folder)
    yield found
    assert contents(writers.folder) == before, "an input changed"


def stop(case: Case, writers: Writers, moment: float, number: int) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal at a moment (0 to 1); its folder is checked."""
    case.out.write_bytes(OLD)
    with start(*case.arguments, env=writers.environment) as child:
        time.sleep(moment * case.seconds)
        child.send_signal(number)
        _, said = child.communicate(timeout=PATIENCE)
    left = contents(case.out.parent)
    if number == signal.SIGKILL:  # between the two calls that replace a file the new one has a hidden name
        for name in [name for name in left if name.startswith(f".{case.out.name}.")]:
            assert left.pop(name) == case.whole
            (case.out.parent / name).unlink()
    assert left == {case.out.name: OLD} or left == {case.out.name: case.whole}, (case.arguments, moment, list(left))
    assert b"Traceback" not in said, said.decode()
    return child.returncode, said.decode()


def stopped(cases: list[Case], writers: Writers, n: int, number: int) -> Iterator[tuple[Case, int, str]]:
    """Stop commands in turn until `n` were stopped before they were done; (command, exit code, stderr) of each try.

    A command that was done before its signal came takes no longer than that on a machine that is less busy now.
    """
    chance = random.Random(number)
    waiting, done = deque(cases), 0
    for _ in range(20 * n):
        case, moment = waiting.popleft(), chance.random()
        code, said = stop(case, writers, moment, number)
        waiting.append(case if code else replace(case, seconds=moment * case.seconds))
        done += code != 0
        yield case, code, said
        if done == n:
            return
    raise AssertionError(f"{done} of {20 * n} commands were stopped before they were done, expected {n}")


def test_row_19_killed_at_20_random_moments(writers: Writers, cases: list[Case]) -> None:
    """SIGKILL: the older file or the new one, whole, and nothing beside it."""
    for case, code, said in stopped(cases, writers, KILLS, signal.SIGKILL):
        assert code in (0, -signal.SIGKILL), (case.arguments, code, said)


def test_row_20_interrupted_at_random_moments(writers: Writers, cases: list[Case]) -> None:
    """Ctrl-C: 130 and one line, or it was done."""
    for case, code, said in stopped(cases, writers, INTERRUPTS, signal.SIGINT):
        assert code in (0, 130), (case.arguments, code, said)
        errors = [line for line in said.splitlines() if line.startswith("error")]
        assert errors == (["error: interrupted"] if code else []), (case.arguments, said)


def test_row_20_terminated_at_random_moments(writers: Writers, cases: list[Case]) -> None:
    """SIGTERM: its code or the signal itself, or it was done."""
    for case, code, said in stopped(cases, writers, TERMINATIONS, signal.SIGTERM):
        assert code in (0, 143, -signal.SIGTERM), (case.arguments, code, said)
