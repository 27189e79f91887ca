"""Rendering templates from model files without trusting them: no Python objects, and bounded time and memory.

Jinja's sandbox keeps a template from Python's objects, but not from counting to 10^9 or doubling a string forty times.
Here every loop step, call, filter and arithmetic operation asks a budget first, and whatever could make something
large out of something small is bounded before it runs.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
CALL_STEPS = 10  # a call costs some ten loop steps
MAX_SECONDS = 5.0
MAX_SIZE = 4_000_000  # characters of a string, items of a list
MAX_RANGE = 100_000
MAX_ARGUMENT = 10_000  # widths, counts and repetitions
MAX_BITS = 4096
MAX_SOURCE = 1_000_000

# what a broken or hostile template raises while it is compiled and rendered
TEMPLATE_FAULTS = (
    TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, SyntaxError, RecursionError,
    MemoryError, NameError, AssertionError, RuntimeError,
)  # fmt: skip

_DROPPED_FILTERS = ("filesizeformat", "format", "pprint", "random", "striptags", "sum", "urlize", "wordwrap", "xmlattr")
_DROPPED_GLOBALS = ("lipsum", "cycler", "joiner")
_DROPPED_METHODS = ("translate", "expandtabs", "maketrans")
_POSITIONS = ("count", "find", "rfind", "index", "truncate", "split", "rsplit", "batch", "slice")
_LONG_NUMBER = re.compile(r"\d{4}|\*")
_SIZED = (str, bytes, list, tuple, dict)


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.steps = MAX_STEPS
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise SecurityError(f"the template does more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"the template runs longer than {MAX_SECONDS:g} s")

    def size(self, size: int) -> None:
        if size > MAX_SIZE:
            raise SecurityError(f"the template makes a value of more than {MAX_SIZE} characters or items")

    def items(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.step()
            yield item

    def concat(self, parts: Iterable[str]) -> str:
        kept, total = [], 0
        for part in parts:
            total += len(part)
            self.size(total)
            kept.append(part)
        return "".join(kept)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model says, for training: here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that Hugging Face's chat templates expect, with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation], optimized=False,
            cache_size=0,
        )  # fmt: skip
        self.concat = self.budget.concat  # type: ignore[method-assign]
        for name in _DROPPED_FILTERS:
            self.filters.pop(name, None)
        for name in _DROPPED_GLOBALS:
            self.globals.pop(name, None)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = self._tojson
        self.filters["join"] = self._join
        self.filters["_counted"] = self.budget.items
        self.filters["_joined"] = lambda parts: self.budget.concat(map(str, parts))
        self.globals["range"] = self._range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then send loops and `~` through the budget."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        _join_by_budget(template)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self
        self.budget.step(CALL_STEPS + max((len(a) for a in args if isinstance(a, (list, tuple, dict))), default=0))
        self._check_arguments(args, kwargs)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, bytes)):
            if name == "join":
                args = tuple(list(self.budget.items(arg)) for arg in args)
            self._check_method(owner, name, args)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, _SIZED):
            self.budget.size(len(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, _SIZED) and isinstance(other, int):
                    self.budget.size(len(one) * max(other, 0))
        elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            self.budget.size(len(left) + len(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            self._check_format(str(left))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError("the template makes a number too large")
        return super().call_binop(context, operator, left, right)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks the budget before it runs and shows its result's size after."""
        shift = int(hasattr(function, "jinja_pass_arg"))

        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[shift] if len(args) > shift else None, args[shift + 1 :]
            self.budget.step(1 + (len(value) // 64 if isinstance(value, _SIZED) else 0))
            self._check_arguments(rest, kwargs)
            if isinstance(value, str):
                self._check_method(value, name, (*rest, *kwargs.values()))
            result = function(*args, **kwargs)
            if isinstance(result, _SIZED):
                self.budget.size(len(result))
            return result

        for key, value in getattr(function, "__dict__", {}).items():  # marks such as @pass_environment
            setattr(bounded, key, value)
        return bounded

    def _check_arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_RANGE:
                raise SecurityError(f"the template passes a number above {MAX_RANGE}")

    def _check_method(self, owner: str | bytes, name: str, args: Sequence[Any]) -> None:
        """Bound what a string's method or the filter of that name makes, from its arguments."""
        numbers = [value for value in args if isinstance(value, int)]
        texts = [value for value in args if isinstance(value, (str, bytes))]
        if name in _DROPPED_METHODS:
            raise SecurityError(f"the method {name} is not available to templates")
        if name in ("format", "format_map"):
            self._check_format(str(owner))
        if name == "replace" and len(texts) >= 2:
            times = len(owner) + 1 if not texts[0] else len(owner) // len(texts[0])
            self.budget.size(len(owner) + times * len(texts[1]))
        elif name == "join":
            for values in args:
                self.budget.size(sum(len(owner) + len(value) for value in values if isinstance(value, (str, bytes))))
        elif name == "indent":
            lines = str(owner).count("\n") + 1
            self.budget.size(lines * (max(numbers, default=4) + max(map(len, texts), default=0)) + len(owner))
        elif name not in _POSITIONS and any(abs(number) > MAX_ARGUMENT for number in numbers):
            raise SecurityError(f"the template asks for a width above {MAX_ARGUMENT}")

    def _check_format(self, text: str) -> None:
        if _LONG_NUMBER.search(text):
            raise SecurityError("the template formats with a large or computed width")

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MAX_RANGE:
            raise SecurityError(f"the template counts over more than {MAX_RANGE} numbers")
        return numbers

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        getter = None if attribute is None else make_attrgetter(self, attribute)
        parts: list[str] = []
        for value in self.budget.items(values):
            parts += [str(d), str(value if getter is None else getter(value))]
        return self.budget.concat(parts[1:])

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: int | None = None,
        separators: tuple[str, str] | None = None, sort_keys: bool = False,
    ) -> str:  # fmt: skip
        if indent is not None and not 0 <= indent <= 16:
            raise SecurityError("the template indents JSON by more than 16")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.budget.step(1 + len(text) // 64)
        self.budget.size(len(text))
        return text


def _join_by_budget(node: nodes.Node) -> None:
    """Replace every `a ~ b` below `node` by a filter that asks the budget; changes the tree in place."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            _join_by_budget(value)
            setattr(node, name, _budgeted(value))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, nodes.Node):
                    _join_by_budget(item)
            value[:] = [_budgeted(item) for item in value]


def _budgeted(value: Any) -> Any:
    if not isinstance(value, nodes.Concat):
        return value
    parts = nodes.List(value.nodes, lineno=value.lineno)
    return nodes.Filter(parts, "_joined", [], [], None, None, lineno=value.lineno)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form[:200])
