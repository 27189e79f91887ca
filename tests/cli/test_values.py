"""Options' values are what typer makes of them, whoever takes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import typer.main

from localmoe.cli.values import plain_value, use_plain_values

ROWS: list[tuple[Any, dict[str, Any], str]] = [
    (int, {"min": -1}, "12"), (int, {"min": -1}, "-1"), (int, {"min": 0}, "-1"), (int, {}, "1_000"), (int, {}, " 7 "),
    (int, {}, "7.0"), (int, {}, "x"), (int, {}, "9" * 30), (float, {}, "0.25"), (float, {}, "-3"), (float, {}, "1e-3"),
    (float, {}, "inf"), (float, {"max": 1}, "2"), (str, {}, "text"), (str, {}, ""), (Path, {"readable": False}, "a/b"),
    (Path, {"exists": True}, "no/such"),
]  # fmt: skip


def outcome(kind: Any, options: dict[str, Any], text: str, plain: bool) -> Any:
    app, got = typer.Typer(add_completion=False), []

    @app.command()
    def command(value: Annotated[Any, typer.Option("--value", **options)]) -> None:
        got.append(value)

    command.__annotations__["value"] = Annotated[kind, typer.Option("--value", **options)]
    made = typer.main.get_command(app)
    if plain:
        use_plain_values(made)
    try:
        made.main(["--value", text], standalone_mode=False)
    except Exception as error:  # one of click's, which typer vendors
        return type(error), str(error)
    return got[0], type(got[0])


@pytest.mark.parametrize(("kind", "options", "text"), ROWS)
def test_a_value_or_an_error_is_typers(kind: Any, options: dict[str, Any], text: str) -> None:
    assert outcome(kind, options, text, plain=True) == outcome(kind, options, text, plain=False)


def test_what_is_plain() -> None:
    info = typer.Option("--value", min=0)
    assert [plain_value(v, int, info) for v in ("5", 5, "-5", "x", True)] == [5, 5, None, None, None]
    assert plain_value(("a", "b"), list[str], info) == ["a", "b"]


def test_a_command_line_without_errors_needs_no_pydantic(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom localmoe.cli import main\n"
        f"code = main(['run', '-m', {str(tmp_path / 'none.gguf')!r}, '-p', 'Hi', '-n', '1', '--temp', '0'])\n"
        "assert code in (3, 4), code\nassert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
