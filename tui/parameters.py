"""The parameters of a chat: names and defaults are llama.cpp's; a table that says what each is and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from localmoe.engine.sampling import INTEGERS, SamplingParams
from localmoe.errors import UsageError

if TYPE_CHECKING:
    from localmoe.model.config import ModelConfig

OVERFLOWS = ("stop", "forget")
_SAMPLING = {field.name for field in fields(SamplingParams)}
_DEFAULTS = SamplingParams()
_LIMITS = {"max_tokens": (-1, 1 << 31), "n_ctx": (0, 1 << 24), "n_expert_used": (1, 1024)}


@dataclass(frozen=True)
class Parameter:
    """A row of the editor. `absent` is what an empty field means, where the default is no number."""

    name: str
    label: str
    meaning: str
    absent: str = ""

    @property
    def default(self) -> Any:
        """llama.cpp's default, None where it depends on the model or is drawn."""
        own = {"max_tokens": -1, "overflow": OVERFLOWS[0]}
        return own[self.name] if self.name in own else getattr(_DEFAULTS, self.name, None)


PARAMETERS = (
    Parameter("temperature", "temperature", "How bold: 0 always takes the likeliest token, 1 the model's own odds."),
    Parameter("top_k", "top-k", "Only the k likeliest tokens can come next; 0: all of them."),
    Parameter("top_p", "top-p", "Only the likeliest tokens that together have this probability; 1: all of them."),
    Parameter("min_p", "min-p", "Drops tokens less likely than this part of the likeliest one; 0: none."),
    Parameter("typical_p", "typical-p", "Prefers tokens that surprise as much as the model expects; 1: off."),
    Parameter("repeat_penalty", "repeat penalty", "Makes tokens that came lately less likely; 1: off, 1.1 is mild."),
    Parameter("repeat_last_n", "repeat last n", "How many tokens the penalties look back on; 0: off."),
    Parameter("frequency_penalty", "frequency penalty", "Less likely with every time that a token came; 0: off."),
    Parameter("presence_penalty", "presence penalty", "Less likely once a token came at all; 0: off."),
    Parameter("seed", "seed", "The same seed gives the same reply; empty: another one each time.", "random"),
    Parameter("max_tokens", "max tokens", "A reply ends after so many tokens; -1: when the model ends it."),
    Parameter("n_expert_used", "experts used", "Experts a token goes through in each layer (top-k of the router).",
              "the model's"),
    Parameter("n_ctx", "context", "Tokens it can look back on; another number opens the model again; 0: its most.",
              "the model's"),
    Parameter("overflow", "when full", "stop: the reply ends, nothing is cut; forget: the oldest turns are not read."),
)  # fmt: skip
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def parse(parameter: Parameter, text: str, n_expert: int = 0) -> Any:
    """The value that a text means; UsageError where it is none. `n_expert`: experts there are, 0 where unknown."""
    text = text.strip()
    if not text or text == parameter.absent:
        return parameter.default
    if parameter.name == "overflow":
        return check(parameter, text, n_expert)
    whole = parameter.name in INTEGERS or parameter.name in _LIMITS
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        wanted = "a whole number" if whole else "a number"
        raise UsageError("not understood", item=parameter.label, got=repr(text), expected=wanted) from None
    return check(parameter, value, n_expert)


def check(parameter: Parameter, value: Any, n_expert: int = 0) -> Any:
    """The value itself; UsageError where a request would refuse it."""
    if value == parameter.default:
        return value
    if parameter.name in _SAMPLING:
        SamplingParams(**{parameter.name: value})
    elif parameter.name == "overflow":
        if value not in OVERFLOWS:
            raise UsageError("not understood", item=parameter.label, got=repr(value), expected=" or ".join(OVERFLOWS))
    else:
        low, high = _LIMITS[parameter.name]
        high = n_expert if parameter.name == "n_expert_used" and n_expert else high
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError("out of range", item=parameter.label, got=repr(value), expected=f"{low} to {high}")
    return value


def shown_value(parameter: Parameter, value: Any) -> str:
    """A value as the editor's field has it; the default is an empty field."""
    return (
        "" if value is None or value == parameter.default else f"{value:g}" if isinstance(value, float) else str(value)
    )


def default_text(parameter: Parameter, config: ModelConfig) -> str:
    """What stands in an empty field, and what that is with a model."""
    if parameter.name == "n_ctx":
        usual, most = config.n_ctx_usual, config.n_ctx_train
        return f"{most}, its most" if usual == most else f"{usual} of {most}"
    if parameter.name == "n_expert_used":
        return f"{config.n_expert_used}, as its file says"
    return parameter.absent or f"{parameter.default}"


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `values` the parameters that are not as by default."""
    return {p.name: values[p.name] for p in PARAMETERS if values.get(p.name, p.default) not in (p.default, None)}


def checked(values: Mapping[str, Any], n_expert: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Of kept parameters those that are known and possible, and the names of the others."""
    good, bad = {}, []
    for name, value in values.items():
        try:
            good[name] = check(BY_NAME[name], value, n_expert)
        except (KeyError, UsageError):
            bad.append(name)
    return changed(good), bad


def sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `Model.chat` for a chat's parameters, defaults included."""
    names = [p.name for p in PARAMETERS if p.name in _SAMPLING or p.name == "max_tokens"]
    return {name: values.get(name, BY_NAME[name].default) for name in names}
