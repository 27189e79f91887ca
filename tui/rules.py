"""How the next reply is routed: top-k, experts left out or forced, a threshold; as text fields and as options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localmoe.engine.routing import Routing, make_routing
from localmoe.errors import UsageError

if TYPE_CHECKING:
    from localmoe.model.config import ModelConfig

FIELDS = {
    "used": ("experts a token", "a number, or one a layer: 2,2,4"),
    "left": ("left out", "LAYER:EXPERTS, as in 3:1,5 or 0-7:2 *:4"),
    "forced": ("forced", "LAYER:EXPERTS that every token goes through"),
    "threshold": ("skip below", "gate weights below this are skipped; 0: none"),
}
"""What can be set: its name and how it is written."""


@dataclass(frozen=True)
class Rules:
    """A checked way to route; `options` are keywords of `Model.generate`."""

    routing: Routing

    @property
    def options(self) -> dict[str, Any]:
        """Every keyword is given, so that nothing of the model's defaults stays."""
        routing = self.routing
        return {
            "n_expert_used": list(routing.limits) or routing.n_used,
            "leave_out": dict(routing.leave_out),
            "force_experts": dict(routing.force),
            "expert_threshold": routing.threshold,
        }

    @property
    def texts(self) -> dict[str, str]:
        """The fields of FIELDS, as they are typed."""
        routing = self.routing
        return {
            "used": ",".join(map(str, routing.limits or (routing.n_used,))),
            "left": _words(routing.leave_out),
            "forced": _words(routing.force),
            "threshold": f"{routing.threshold:g}",
        }

    @property
    def used(self) -> str:
        """How many experts a token goes through in a layer: `2`, or `1 to 3` where layers differ."""
        limits = set(self.routing.limits) or {self.routing.n_used}
        return f"{min(limits)}" if len(limits) == 1 else f"{min(limits)} to {max(limits)}"

    def kept(self, config: ModelConfig) -> dict[str, str]:
        """What is kept with a chat: `texts`, or {} where nothing but top-k differs from the model's own routing."""
        plain = Routing(self.routing.n_used)
        return {} if not config.n_expert or self.routing == plain else self.texts

    def brief(self, start: Rules) -> str:
        """What differs from how the app was started, in few characters; "" where nothing does."""
        own, first = self.routing, start.routing
        parts = []
        if (own.n_used, own.limits) != (first.n_used, first.limits):
            parts.append("top-k by layer" if own.limits else f"top-{own.n_used}")
        for now, before, word in ((own.leave_out, first.leave_out, "out"), (own.force, first.force, "forced")):
            if now != before:
                parts.append(f"{sum(len(experts) for _, experts in now)} {word}")
        if own.threshold != first.threshold:
            parts.append(f"skip <{own.threshold:g}")
        return ", ".join(parts)

    def with_used(self, config: ModelConfig, n_used: int) -> Rules:
        """The same with another top-k in every layer, which forced experts may raise."""
        least = max((len(experts) for _, experts in self.routing.force), default=1)
        return Rules(make_routing(config, self.routing, n_expert_used=max(least, n_used)))


def _words(chosen: tuple[tuple[int, tuple[int, ...]], ...]) -> str:
    """`3:1,5 4-6:2`: layers with the same experts in a row share a word."""
    words: list[tuple[int, int, tuple[int, ...]]] = []
    for layer, experts in chosen:
        if words and words[-1][1] == layer - 1 and words[-1][2] == experts:
            words[-1] = (words[-1][0], layer, experts)
        else:
            words.append((layer, layer, experts))
    return " ".join(f"{a if a == b else f'{a}-{b}'}:{','.join(map(str, e))}" for a, b, e in words)


def rules_of(config: ModelConfig, options: Mapping[str, Any]) -> Rules:
    """Rules of `localmoe.load`'s or `Model.generate`'s keywords; UsageError for what cannot be."""
    names = ("n_expert_used", "leave_out", "force_experts", "expert_threshold")
    given = {name: options[name] for name in names if options.get(name) is not None}
    return Rules(make_routing(config, Routing(config.n_expert_used or 0), **given))


def read_rules(config: ModelConfig, texts: Mapping[str, str]) -> Rules:
    """Rules of what was typed into FIELDS; UsageError says what is wrong."""
    used = [_number(int, word, "experts a token") for word in texts["used"].replace(",", " ").split()]
    if not used:
        raise UsageError("how many experts a token goes through is missing", expected=f"1 to {config.n_expert}")
    return rules_of(
        config,
        {
            "n_expert_used": used if len(used) > 1 else used[0],
            "leave_out": texts["left"].split(),
            "force_experts": texts["forced"].split(),
            "expert_threshold": _number(float, texts["threshold"].strip() or "0", "skip below"),
        },
    )


def kept_rules(config: ModelConfig, texts: Mapping[str, str]) -> Rules:
    """Rules that were kept with a chat; UsageError where the model has no such layers or experts."""
    return read_rules(
        config, {"used": str(config.n_expert_used or 1), "left": "", "forced": "", "threshold": "", **texts}
    )


def in_words(texts: Mapping[str, Any]) -> str:
    """What was kept of a chat's rules, for a person, whatever the model: `top-2, 3:1,5 left out`; "" for none."""
    said = {"used": "top-{}", "left": "{} left out", "forced": "{} forced", "threshold": "weights below {} skipped"}
    return ", ".join(
        words.format(texts[name]) for name, words in said.items() if texts.get(name) not in (None, "", "0")
    )


def _number(kind: type[Any], word: str, name: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise UsageError(f"{name}: not a number", got=repr(word)) from None
