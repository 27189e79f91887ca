"""The Typer application: which commands there are, and how a failure becomes a line and an exit code.

Exit codes: 0 done, 1 a bug, 2 usage, 3 bad input, 4 I/O, 5 memory, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any, cast

import typer
import typer.core
import typer.main

from localmoe import __version__
from localmoe.cli.examples import epilog
from localmoe.cli.lost_signals import no_lost_signals
from localmoe.cli.values import use_plain_values
from localmoe.errors import LocalMoeError, UsageError

# Each command is the function of that name in the module of that name.
COMMANDS = {
    "demo": "Do the main job on real weights, from nothing.",
    "convert": "Turn a checkpoint folder or a GGUF into a quantized GGUF.",
    "franken": "Build a frankenMoE from a mergekit-moe recipe, straight to a quantized GGUF.",
    "quantize": "Quantize a GGUF.",
    "inspect": "Say what a model is, what it needs in memory, and why it would not run.",
    "run": "Complete a prompt.",
    "chat": "Chat, line by line.",
    "tui": "Chat in the terminal app, with the experts' activity beside it.",
    "sessions": "List, export, rename or delete kept chats.",
    "tokenize": "Turn text into token ids.",
    "experts": "Record, measure and change what a model's routers do.",
    "bench": "Measure prompt and decode speed.",
    "imatrix": "Compute an importance matrix: which columns of a model's matrices matter for a text.",
    "perplexity": "Measure how well a model predicts a text, and how far it is from another model.",
}
INTERRUPTED = 130
BROKEN_PIPE = 141

# Click's own errors (unknown options, missing values): typer vendors click and exports this one subclass alone.
CommandLineError = cast(type[Exception], typer.BadParameter.__mro__[2])


class CommandGroup(typer.core.TyperGroup):
    """The group of COMMANDS, whose modules are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import one command; UsageError for a name that is none."""
        if cmd_name not in COMMANDS:
            near = get_close_matches(cmd_name, COMMANDS, n=1)
            expected = near[0] if near else "one of " + ", ".join(COMMANDS)
            raise UsageError("no such command", got=repr(cmd_name), expected=expected)
        module = importlib.import_module(f"localmoe.cli.{cmd_name}")
        if isinstance(group := getattr(module, cmd_name), typer.Typer):
            return use_plain_values(typer.main.get_command(group))
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=cmd_name, epilog=epilog(cmd_name))(getattr(module, cmd_name))
        return use_plain_values(typer.main.get_command(single))

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"localmoe {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def localmoe(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run Mixture-of-Experts models from GGUF on the machine you have, and see which experts work."""


def one_line(text: str) -> str:
    """Text with everything that is not printable escaped, so that no file's content reaches the terminal raw."""
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; failures become one `error:` line on stderr."""
    _ready_streams()
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        with no_lost_signals():
            code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except KeyboardInterrupt:
        code = _fail(INTERRUPTED, "interrupted")
    except LocalMoeError as error:
        code = _fail(error.exit_code, str(error))
    except MemoryError as error:
        code = _fail(5, f"out of memory{': ' if str(error) else ''}{error}")
    except OSError as error:
        code = _fail(4, f"{error.filename or 'standard output'}: {error.strerror or error}")
    except Exception as error:  # a bug, said in one line; LOCALMOE_DEBUG shows where
        if os.environ.get("LOCALMOE_DEBUG"):
            raise
        code = _fail(1, f"internal: {type(error).__name__}: {error} (LOCALMOE_DEBUG=1 shows where)")
    exec("")  # where a Ctrl-C passed through exec of a string, as in dataclasses, CPython would still die by SIGINT
    if argv is None:  # the process ends here, and a Ctrl-C while Python takes itself down must not change its code
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code if _flushed() else code or BROKEN_PIPE


def _ready_streams() -> None:
    """Make stdout and stderr usable: one that was closed swallows its text, one of few characters replaces others."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  for the process's life
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _run(arguments: list[str]) -> int:
    """Parse and run; typer's own exceptions become exit codes or ours."""
    group = use_plain_values(typer.main.get_command(app))
    try:
        with group.make_context("localmoe", arguments) as context:
            group.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except typer.Abort as aborted:
        raise KeyboardInterrupt from aborted
    except CommandLineError as error:
        message: str = cast(Any, error).format_message()
        raise UsageError(" ".join(message.split()).rstrip(".")) from error
    return 0


def _fail(code: int, message: str) -> int:
    with suppress(OSError):  # nobody reads stderr: the code still tells
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def _flushed() -> bool:
    """Whether stdout took everything; where it did not it is closed, or Python would complain when it leaves."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
