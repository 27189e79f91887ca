"""Rendering templates from model files without trusting them: no Python objects, and bounded time and memory.

Jinja's sandbox keeps a template from Python's objects, but not from counting to 10^9 or doubling a string forty times.
Here every loop step, call, filter and arithmetic operation asks a budget first (budget.py), whatever could make
something large out of something small is bounded before it runs, and what looks at all of a value walks it first.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localmoe.text.budget import Budget

CALL_STEPS = 10  # a call costs some ten loop steps
MAX_RANGE = 100_000
MAX_ARGUMENT = 10_000  # widths, counts and repetitions
MAX_BITS = 4096
MAX_SOURCE = 1_000_000
MAX_FORM = 200  # characters of a form of dates

# what a broken or hostile template raises while it is compiled and rendered
TEMPLATE_FAULTS = (
    TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, SyntaxError, RecursionError,
    MemoryError, NameError, AssertionError, RuntimeError,
)  # fmt: skip

_DROPPED_FILTERS = ("filesizeformat", "pprint", "random", "striptags", "sum", "urlize", "wordwrap", "xmlattr")
# what takes or gives values without a look at what is in them
_SHALLOW_FILTERS = frozenset((
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr",
    "reverse", "select", "selectattr", "slice",
))  # fmt: skip
_SHALLOW_TESTS = frozenset((
    "boolean", "callable", "defined", "divisibleby", "even", "false", "filter", "float", "integer", "iterable",
    "mapping", "none", "number", "odd", "sameas", "sequence", "string", "test", "true", "undefined",
))  # fmt: skip
_DROPPED_METHODS = ("translate", "expandtabs", "maketrans")
_POSITIONS = ("count", "find", "rfind", "index", "truncate", "split", "rsplit", "batch", "slice")
_LONG_NUMBER = re.compile(r"\d{4}|\*")
_PART = re.compile(r"\{[^{}]*[.\[].*?\}")
_SIZED = (str, bytes, list, tuple, dict)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model says, for training: here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=line)]  # what it sets is unknown after it, as in transformers


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment that Hugging Face's chat templates expect, with a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation], optimized=False,
            cache_size=0, finalize=self.budget.walked,
        )  # fmt: skip
        self.concat = self.budget.concat  # type: ignore[method-assign]
        for name in _DROPPED_FILTERS:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._walking(name, function) for name, function in tests.items()}
        self.filters["tojson"] = self._tojson
        self.filters["join"] = self._join
        self.filters["sum"] = self._sum
        self.filters["_counted"] = self.budget.items
        self.filters["_joined"] = lambda parts: self.budget.concat(str(self.budget.walked(part)) for part in parts)
        self.filters["_walked"] = self.budget.walked
        self.filters["_made"] = self.budget.made
        self.globals["range"] = self._range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then send loops, `~`, comparisons and what makes values through the budget."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "_counted")
        for operand in list(template.find_all(nodes.Operand)):
            operand.expr = _filtered(operand.expr, "_walked")
        for compared in list(template.find_all(nodes.Compare)):
            compared.expr = _filtered(compared.expr, "_walked")
        for pair in list(template.find_all(nodes.Pair)):
            pair.key = _filtered(pair.key, "_walked")
        _through_budget(template)
        return template

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Walk what is looked up: it is hashed."""
        return super().getitem(obj, self.budget.walked(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self
        self.budget.step(CALL_STEPS + max((len(a) for a in args if isinstance(a, (list, tuple, dict))), default=0))
        self._check_arguments(args, kwargs)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if not isinstance(__obj, (Macro, LoopContext)):  # these only pass on what they are given
            for value in (*args, *kwargs.values(), *([owner] if name in ("count", "index") else [])):
                self.budget.walked(value)
        if isinstance(owner, (str, bytes)):
            if name == "join":
                args = tuple(list(self.budget.items(arg)) for arg in args)
            self._check_method(owner, name, args)
        return self.budget.made(super().call(__context, __obj, *args, **kwargs))

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
            self.budget.walked(right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError("the template makes a number too large")
        return self.budget.made(super().call_binop(context, operator, left, right))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks the budget before it runs and shows its result's size after."""
        shift = int(hasattr(function, "jinja_pass_arg"))
        walks = name not in _SHALLOW_FILTERS

        def bounded(*args: Any, **kwargs: Any) -> Any:
            if walks:
                args = tuple(map(self._walked_items, args))
                self._walked_items(kwargs)
            value, rest = args[shift] if len(args) > shift else None, args[shift + 1 :]
            self.budget.step(1 + (len(value) // 64 if isinstance(value, _SIZED) else 0))
            self._check_arguments(rest, kwargs)
            if isinstance(value, str):
                self._check_method(value, name, (*rest, *kwargs.values()))
            return self.budget.made(function(*args, **kwargs))

        return _marked_as(function, bounded)

    def _walking(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A test that walks what it compares."""
        if name in _SHALLOW_TESTS:
            return function

        def walking(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                self.budget.walked(value)
            return function(*args, **kwargs)

        return _marked_as(function, walking)

    def _walked_items(self, value: Any) -> Any:
        """A value after a walk through it; of an iterator, one that walks item by item."""
        if isinstance(value, Iterator):
            return map(self.budget.walked, value)
        return self.budget.walked(value)

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
        if _PART.search(text):
            raise SecurityError("the template formats a part of a value")

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MAX_RANGE:
            raise SecurityError(f"the template counts over more than {MAX_RANGE} numbers")
        return numbers

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        getter = None if attribute is None else make_attrgetter(self, attribute)
        parts: list[str] = []
        for value in self.budget.items(values):
            parts += [str(d), str(self.budget.walked(value if getter is None else getter(value)))]
        return self.budget.concat(parts[1:])

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        getter = None if attribute is None else make_attrgetter(self, attribute)
        for value in self.budget.items(values):
            start = self.call_binop(None, "+", start, value if getter is None else getter(value))
        return start

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
        separators: tuple[str, str] | None = None, sort_keys: bool = False,
    ) -> str:  # fmt: skip
        if indent is not None and not 0 <= (len(indent) if isinstance(indent, str) else indent) <= 16:
            raise SecurityError("the template indents JSON by more than 16")
        self.budget.walked(value)
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.budget.step(1 + len(text) // 64)
        self.budget.size(len(text))
        return text


def _marked_as(function: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """`other` with the marks of `function`, such as @pass_environment."""
    for key, value in getattr(function, "__dict__", {}).items():
        setattr(other, key, value)
    return other


def _filtered(node: Any, name: str) -> Any:
    return node if isinstance(node, nodes.Const) else nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _through_budget(node: nodes.Node) -> None:
    """Replace what makes values below `node` by filters that ask the budget; changes the tree in place."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            _through_budget(value)
            setattr(node, name, _budgeted(value))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, nodes.Node):
                    _through_budget(item)
            value[:] = [_budgeted(item) for item in value]


def _budgeted(value: Any) -> Any:
    """`a ~ b` joined by the budget; a list, tuple, table or slice counted once it is made."""
    if isinstance(value, nodes.Concat):
        return _filtered(nodes.List(value.nodes, lineno=value.lineno), "_joined")
    makes = isinstance(value, (nodes.List, nodes.Dict)) or (isinstance(value, nodes.Tuple) and value.ctx == "load")
    makes = makes or (isinstance(value, nodes.Getitem) and isinstance(value.arg, nodes.Slice))
    return _filtered(value, "_made") if makes else value


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > MAX_FORM:
        raise SecurityError(f"the template asks for the date in more than {MAX_FORM} characters")
    return datetime.datetime.now().strftime(form)
