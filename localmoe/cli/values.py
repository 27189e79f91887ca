"""Values of options that need no work, without typer's own: that imports pydantic, 0.12 s of a start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NUMBERS = {int: re.compile(r"-?[0-9]{1,15}"), float: re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")}
_OF_TYPER = ("get_runtime_param", "type_descriptor")  # what is used of its own: a release without them does all itself
_PATH_CHECKS = ("exists", "writable", "readable", "resolve_path", "allow_dash", "path_type")


class PlainValue:
    """Takes what is of an option's type as it stands, and leaves everything else, errors too, to typer."""

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """What typer would make of a value."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        plain = plain_value(value, param.type_descriptor.annotation, param.type_descriptor.parameter_info)
        if plain is not None:
            return plain
        param._runtime_param = None  # typer makes its own
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def plain_value(value: Any, annotation: Any, info: Any) -> Any:
    """A value as `annotation`, or None where typer has to look at it."""
    if info.parser is not None or getattr(info, "click_type", None) is not None:
        return None
    if annotation in _NUMBERS:
        return _number(value, annotation, info.min, info.max)
    if annotation == list[str] and isinstance(value, tuple | list):
        return list(value) if all(type(item) is str for item in value) else None
    if annotation is Path and type(value) is str:
        checked = any(getattr(info, name) for name in _PATH_CHECKS) or not (info.file_okay and info.dir_okay)
        return None if checked else Path(value)
    return value if annotation in (str, bool) and type(value) is annotation else None


def _number(value: Any, kind: Any, least: float | None, most: float | None) -> Any:
    if type(value) is str and _NUMBERS[kind].fullmatch(value):
        value = kind(value)
    inside = type(value) is kind and (least is None or value >= least) and (most is None or value <= most)
    return value if inside else None


def use_plain_values(command: Any) -> Any:
    """Let a command, and those below it, take values so; the command."""
    make_help = command.get_help_option
    command.get_help_option = lambda ctx: _take(make_help(ctx))
    for param in command.params:
        _take(param)
    for other in getattr(command, "commands", {}).values():
        use_plain_values(other)
    return command


def _take(param: Any) -> Any:
    if getattr(param, "_runtime_param", param) is None and all(hasattr(param, name) for name in _OF_TYPER):
        param._runtime_param = PlainValue()
    return param
