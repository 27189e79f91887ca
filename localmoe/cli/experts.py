"""`localmoe experts`: record, measure and change what a model's routers do; one module a subcommand."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import Any

import typer
import typer.core
import typer.main

from localmoe.cli.examples import epilog
from localmoe.errors import UsageError

# Each subcommand is the function of that name in the module `experts_` and that name.
SUBCOMMANDS = {
    "record": "Record how a text, or a generation, is routed.",
    "report": "Show a recording: a table of every layer, or a page.",
    "diff": "Compare two recordings.",
    "export": "Turn a recording into CSV, JSON Lines or NPZ.",
    "check": "Say in plain words what a model's routers do.",
    "compare": "Run one text with two settings: how far the answers and the loads differ.",
    "ablate": "Replace each layer's router in turn and measure what it costs.",
}


class ExpertsGroup(typer.core.TyperGroup):
    """The group of SUBCOMMANDS, imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names in the order of the table."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import one subcommand; UsageError for a name that is none."""
        if cmd_name not in SUBCOMMANDS:
            near = get_close_matches(cmd_name, SUBCOMMANDS, n=1)
            expected = near[0] if near else "one of " + ", ".join(SUBCOMMANDS)
            raise UsageError("no such command of experts", got=repr(cmd_name), expected=expected)
        module = importlib.import_module(f"localmoe.cli.experts_{cmd_name}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=cmd_name, epilog=epilog(f"experts {cmd_name}"))(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the table without importing a subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


experts = typer.Typer(cls=ExpertsGroup, add_completion=False, rich_markup_mode=None, name="experts")


@experts.callback(invoke_without_command=True)
def _experts(context: typer.Context) -> None:
    """Record, measure and change what a model's routers do."""
    if context.invoked_subcommand is None:
        print(context.get_help())
