"""`localmoe bench`: which tests run, what is timed, and how it is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localmoe.cli import main
from localmoe.cli.bench import Case, Row, _token_ids, bandwidth, markdown_row, measure, whole_numbers
from localmoe.errors import UsageError
from tests.cli.fake_model import FakeModel, FakeSession


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FakeModel, dict[str, Any]]]:
    opened: list[tuple[FakeModel, dict[str, Any]]] = []

    def load(path: str, **options: Any) -> FakeModel:
        opened.append((FakeModel(), options))
        return opened[-1][0]

    monkeypatch.setattr("localmoe.load", load)
    return opened


def test_json_rows_have_llama_benchs_keys(
    models: list[tuple[FakeModel, dict[str, Any]]], capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["-p", "8,4", "-n", "2", "-d", "0,16", "-t", "1,2", "-r", "3", "-o", "json"]
    assert main(["bench", "-m", "m.gguf", *flags]) == 0
    rows = json.loads(capfd.readouterr().out)
    names = ["pp8", "pp4", "pp8 @ d16", "pp4 @ d16", "tg2", "tg2 @ d16"]
    assert [(row["test"], row["n_threads"]) for row in rows] == [(name, 1) for name in names] + [(n, 2) for n in names]
    deep = rows[3]
    assert (deep["n_prompt"], deep["n_gen"], deep["n_depth"]) == (4, 0, 16)
    assert len(deep["samples"]) == 3
    assert deep["avg_ts"] == pytest.approx(sum(deep["samples"]) / 3)
    assert (deep["model_filename"], deep["model_size"], deep["model_n_params"]) == ("m.gguf", 3 * 2**20, 2_000_000)
    assert [options["n_threads"] for _, options in models] == [1, 2]
    assert all(model.closed for model, _ in models)


def test_the_context_holds_the_deepest_test(models: list[tuple[FakeModel, dict[str, Any]]]) -> None:
    main(["bench", "-m", "m.gguf", "-p", "100", "-n", "7", "-d", "1000", "-r", "1", "-t", "2"])
    assert models[0][1]["n_ctx"] == 1100


@pytest.mark.parametrize(
    ("n_past", "test", "calls"),
    [
        (0, Case(8, 0, 0), [("keep", 0), ("prefill", 8)]),
        (0, Case(8, 0, 16), [("keep", 0), ("prefill", 16), ("prefill", 8)]),
        (24, Case(0, 3, 16), [("keep", 16), "decode", "decode", "decode"]),
        (24, Case(8, 0, 32), [("keep", 24), ("prefill", 8), ("prefill", 8)]),
        (24, Case(8, 0, 0), [("keep", 0), ("prefill", 8)]),
    ],
)
def test_what_a_test_runs(n_past: int, test: Case, calls: list[Any]) -> None:
    """What an earlier test left in the context is kept as far as this one's depth."""
    session = FakeSession(n_past)
    assert measure(FakeModel(), session, test) > 0  # type: ignore[arg-type]
    assert [name if name == "decode" else (name, n) for name, n in session.calls] == calls


def test_a_deeper_context_begins_with_the_same_tokens() -> None:
    """Otherwise nothing of a filled context could be kept."""
    deep = _token_ids(FakeModel(), 4096)  # type: ignore[arg-type]
    assert deep[:1024] == _token_ids(FakeModel(), 1024)  # type: ignore[arg-type]
    assert len(set(deep)) > 100


def test_filling_the_context_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a prefilled token moves by 1 s and a decoded one by 10 s."""
    now = [0.0]

    class Clocked(FakeSession):
        def prefill(self, ids: list[int]) -> None:
            now[0] += len(ids)

        def decode(self, token: int) -> None:  # noqa: ARG002
            now[0] += 10

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert measure(FakeModel(), Clocked(), Case(8, 0, 100)) == 8  # type: ignore[arg-type]
    assert measure(FakeModel(), Clocked(), Case(0, 8, 100)) == 80  # type: ignore[arg-type]


def test_markdown_table(models: list[tuple[FakeModel, dict[str, Any]]], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", "some/m.gguf", "-p", "4", "-n", "0", "-t", "2", "-r", "1"]) == 0
    header, rule, row = capfd.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["model", "size", "params", "threads", "test", "t/s"]
    assert len(header) == len(rule) == len(row)
    assert [cell.strip() for cell in row.split("|")[1:6]] == ["m", "3.00 MiB", "2.00 M", "2", "pp4"]
    assert len(models) == 1


def test_a_row_of_a_large_model() -> None:
    row = Row("8x7b.gguf", 17 * 2**30, 46_700_000_000, 2, 0, 128, 4096, "tg128 @ d4096", 6.9, 0.123, [6.9])
    expected = "| 8x7b | 17.00 GiB | 46.70 B | 2 | tg128 @ d4096 | 6.90 ± 0.12 |"
    assert " ".join(markdown_row(row).split()) == expected


def test_decode_is_compared_with_reading(models: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes of the middle token: from 1.100 MB at position 100 to 1.102 MB."""
    assert main(["bench", "-m", "m.gguf", "-p", "4", "-n", "3", "-d", "100", "-r", "1", "-t", "1", "-o", "json"]) == 0
    prompt, decode = json.loads(capfd.readouterr().out)
    assert prompt["read_share"] is None
    assert (decode["token_bytes"], decode["read_gbs"]) == (1_101_000, 50.0)
    assert decode["read_share"] == pytest.approx(decode["avg_ts"] * 1_101_000 / 50e9)
    row = Row("m.gguf", 1, 1, 1, 0, 3, 0, "tg3", 40.0, 0.0, [40.0], 50.0, 1_000_000_000, 0.8)
    assert bandwidth(row) == ["tg3: 1.000 GB a token, 40.0 GB/s, 80% of a plain read loop's 50.0 GB/s"]
    assert models


def test_profile_of_steps(models: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """100 GB take 2 s on average; reading them at 50 GB/s takes as long, so the step is at its limit."""
    flags = ["bench", "-m", "m.gguf", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--profile"]
    assert main([*flags, "-o", "json"]) == 0
    idle, down = json.loads(capfd.readouterr().out)[0]["profile"]["steps"]
    assert idle == {"step": "norm, quantize", "seconds": 0.25, "by_thread": [0.0, 0.5]} | dict.fromkeys(
        ("bytes", "gbs", "gmacs", "share"), 0
    )
    assert (down["seconds"], down["gbs"], down["gmacs"], down["share"]) == (2.0, 50.0, 40.0, 1.0)
    assert main(flags) == 0
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in capfd.readouterr().out.splitlines()]
    assert ["down", "100000.00", "66.7%", "5000.000", "50.0", "40", "100%"] in cells
    assert ["starting", "37500.00", "25.0%", "", "", "", ""] in cells
    assert models


@pytest.mark.parametrize(
    "flags", [["-p", "x"], ["-p", "-1"], ["-t", "0"], ["-p", "0", "-n", "0"], ["-o", "csv"], ["-r", "0"], ["-d", ""]]
)
def test_wrong_flags_exit_2(flags: list[str], models: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(Path("m.gguf")), *flags]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not models


def test_lists_of_numbers() -> None:
    assert whole_numbers("-p", "512, 128,512") == [512, 128]
    with pytest.raises(UsageError, match=r"^-p: .*got '5,'"):
        whole_numbers("-p", "5,")
    with pytest.raises(UsageError, match="not a list of whole numbers"):
        whole_numbers("-p", "9" * 5000)
