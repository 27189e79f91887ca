"""What a request asks of the router beyond the model's own top-k, checked once before any of it reaches a kernel."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localmoe.errors import UsageError
from localmoe.model.config import ModelConfig
from localmoe.model.step import RoutingRules

ExpertsByLayer = Mapping[int, Sequence[int]] | Sequence[str]  # {3: [1, 5]} or ["3:1,5"]
_Chosen = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Routing:
    """How tokens are routed: `n_used` experts a token at most, `limits` the same layer by layer (() is n_used each).

    `leave_out` and `force` are (layer, experts) pairs. A choice whose gate weight is below `threshold` is skipped,
    from the last one on, but for the first and those forced. The router's probabilities stay those over all experts;
    the chosen ones' are renormalised where the architecture does so.
    """

    n_used: int
    limits: tuple[int, ...] = ()
    leave_out: _Chosen = ()
    force: _Chosen = ()
    threshold: float = 0.0

    def asked(self, n_layer: int) -> tuple[int, ...]:
        """How many experts a token is to use in each layer."""
        return self.limits or (self.n_used,) * n_layer

    def describe(self, n_expert: int) -> str:
        """The same in words: `top-2 of 8, 3:1,5 left out, weights below 0.2 skipped`."""
        used = "top-" + (f"({','.join(map(str, self.limits))})" if self.limits else str(self.n_used))
        parts = [f"{used} of {n_expert}"]
        for chosen, word in ((self.leave_out, "left out"), (self.force, "forced")):
            if chosen:
                parts.append(" ".join(f"{layer}:{','.join(map(str, e))}" for layer, e in chosen) + f" {word}")
        if self.threshold:
            parts.append(f"weights below {self.threshold:g} skipped")
        return ", ".join(parts)

    def rules(self, config: ModelConfig) -> RoutingRules | None:
        """The same as arrays, None where it is top-k alone."""
        if not (self.limits or self.leave_out or self.force or self.threshold):
            return None
        of_expert = np.zeros((config.n_layer, config.n_expert), np.int32)
        for rule, chosen in ((-1, self.leave_out), (1, self.force)):
            for layer, experts in chosen:
                of_expert[layer, list(experts)] = rule
        limits = np.array(self.limits or [self.n_used] * config.n_layer, np.int32)
        return RoutingRules(of_expert, limits, self.threshold)


def make_routing(
    config: ModelConfig,
    default: Routing,
    *,
    n_expert_used: int | Sequence[int] | None = None,
    leave_out: ExpertsByLayer | None = None,
    force_experts: ExpertsByLayer | None = None,
    expert_threshold: float | None = None,
) -> Routing:
    """A checked Routing; what is None is as in `default`, a sequence as `n_expert_used` has one a layer.

    UsageError for a number, layer or expert out of range, a layer with no expert left or more forced than used.
    """
    if not config.n_expert and (n_expert_used is not None or leave_out or force_experts or expert_threshold):
        raise UsageError("this model has no experts to choose")
    if n_expert_used is None:
        n_expert_used = default.limits or default.n_used
    n_expert_used, limits = _numbers_used(n_expert_used)
    if limits and len(limits) != config.n_layer:
        raise UsageError("a number of experts for every layer is needed", got=len(limits), expected=config.n_layer)
    for n_used in limits or (n_expert_used,):
        if config.n_expert and not 1 <= n_used <= config.n_expert:
            expected = f"1 to {config.n_expert}"
            raise UsageError("number of experts used is out of range", got=n_used, expected=expected)
    threshold = default.threshold if expert_threshold is None else expert_threshold
    if not isinstance(threshold, (int, float, np.integer, np.floating)) or not 0.0 <= threshold <= 1.0:
        raise UsageError("the threshold of gate weights is out of range", got=expert_threshold, expected="0 to 1")
    left = default.leave_out if leave_out is None else _chosen(config, leave_out)
    forced = default.force if force_experts is None else _chosen(config, force_experts)
    routing = Routing(n_expert_used, limits, left, forced, float(threshold))
    _check_layers(config, routing)
    return routing


def _numbers_used(given: int | Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Experts a token uses at most, and layer by layer, () if one number is for all; UsageError for other things."""
    try:
        if isinstance(given, (Sequence, np.ndarray)):
            limits = tuple(operator.index(n) for n in given)
            return max(limits, default=0), limits
        return operator.index(given), ()
    except TypeError:
        expected = "a whole number, or one for every layer"
        raise UsageError("number of experts used", got=repr(given), expected=expected) from None


def _chosen(config: ModelConfig, given: ExpertsByLayer) -> _Chosen:
    """Sorted (layer, experts) pairs without empty ones."""
    pairs = []
    for layer, experts in sorted(_by_layer(given, config.n_layer).items()):
        if not 0 <= layer < config.n_layer:
            raise UsageError("no such layer", got=layer, expected=f"0 to {config.n_layer - 1}")
        for expert in experts:
            if not 0 <= expert < config.n_expert:
                raise UsageError(f"no such expert in layer {layer}", got=expert, expected=f"0 to {config.n_expert - 1}")
        if experts:
            pairs.append((layer, tuple(sorted(set(experts)))))
    return tuple(pairs)


def _by_layer(given: ExpertsByLayer, n_layer: int) -> dict[int, tuple[int, ...]]:
    """Layers and their experts as whole numbers; UsageError for other things, of which none is rounded or parsed."""
    texts: list[Any] = [given]
    try:
        if isinstance(given, Mapping):
            return {operator.index(layer): tuple(map(operator.index, experts)) for layer, experts in given.items()}
        texts = texts if isinstance(given, str) else list(given)
    except TypeError:
        pass
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("not a choice of experts", got=repr(given)[:80], expected="{layer: [expert, ...]} or texts")
    return parse_experts(texts, n_layer)


def _check_layers(config: ModelConfig, routing: Routing) -> None:
    left = dict(routing.leave_out)
    for layer, experts in routing.leave_out:
        if len(experts) == config.n_expert:
            raise UsageError(f"no expert is left in layer {layer}", got=f"all {len(experts)} left out")
    for layer, experts in routing.force:
        both = set(experts) & set(left.get(layer, ()))
        if both:
            raise UsageError(f"expert {min(both)} of layer {layer} cannot be forced and left out")
        most = routing.limits[layer] if routing.limits else routing.n_used
        if len(experts) > most:
            raise UsageError(
                f"too many experts are forced in layer {layer}", got=len(experts), expected=f"up to {most}"
            )


def parse_experts(texts: Iterable[str], n_layer: int) -> dict[int, tuple[int, ...]]:
    """Layers and experts of texts like `3:1,5`, `0-7:2` or `*:2`; several for one layer add up.

    UsageError for anything else; whether the experts exist is `make_routing`'s to say.
    """
    chosen: dict[int, tuple[int, ...]] = {}
    for text in texts:
        found = re.fullmatch(r"(\*|\d{1,6}|\d{1,6}-\d{1,6}):(\d{1,6}(?:,\d{1,6})*)", text.strip())
        if not found:
            raise UsageError("not a choice of experts", got=repr(text), expected="LAYER:EXPERT[,EXPERT...]")
        first, _, last = ("0", "-", str(n_layer - 1)) if found[1] == "*" else found[1].partition("-")
        layers = range(int(first), int(last or first) + 1)
        if not layers or (found[1] != "*" and layers[-1] >= n_layer):
            raise UsageError("no such layers", got=repr(text), expected=f"0 to {n_layer - 1}")
        for layer in layers:
            chosen[layer] = chosen.get(layer, ()) + tuple(int(e) for e in found[2].split(","))
    return chosen
