"""What a router made from a recipe looks like: how alike its rows are, and which experts nothing reaches.

The rows are compared by their cosine. Which experts are reached is found by running the finished model on the recipe's
own prompts and on PROBES, and counting, in each layer, the tokens that chose each expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from localmoe.errors import LocalMoeError
from localmoe.gguf_file import visible

from .franken_prompts import prompt_ids
from .franken_recipe import PROMPT_MODES, Recipe

if TYPE_CHECKING:
    from localmoe.engine.api import Model

    from .franken import Franken

Array = np.ndarray[Any, np.dtype[Any]]
PROBE_CONTEXT = 1024  # a longer prompt is cut
ALIKE = 0.99  # rows with a greater cosine give nearly the same score to everything
NO_SKILL = "A label is the recipe's name for an expert, or its first prompt, not a skill."
FROM_PROMPTS = (
    "This router was made from prompts and was not trained: it sends text that resembles an expert's prompts to that "
    f"expert. {NO_SKILL}"
)
AT_RANDOM = f"This router is random numbers: where it sends a token means nothing until it is trained. {NO_SKILL}"
PROBES = (
    "The train left the station at noon, and nobody on the platform noticed that one window was still open.",
    "def total(items):\n    result = 0\n    for item in items:\n        result += item.price\n    return result\n",
    "Q: A box holds 12 eggs. How many eggs are in 7 boxes?\nA: 12 * 7 = 84",
    "Hi! How are you today? I hope you had a good weekend.",
    "Die Sitzung beginnt um neun Uhr. La réunion commence à neuf heures. La reunión empieza a las nueve.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
)


@dataclass(frozen=True)
class Reached:
    """Uses of each expert by the probes' `n_tokens` tokens, (L, E), and by each expert's own prompts.

    `own` (E,) is the part of its own prompts' tokens that chose the expert, averaged over layers; NaN without prompts.
    """

    uses: Array
    own: Array
    n_tokens: int


@dataclass(frozen=True)
class RouterReport:
    """`cosines` (L, E, E) between the rows of each layer; `reached` is None where the model cannot run (`why`)."""

    recipe: Recipe
    cosines: Array
    reached: Reached | None
    why: str = ""


def describe(built: Franken, *, n_threads: int | None = None) -> RouterReport:
    """Compare the rows of a model that was written, and run it on the probes."""
    assert built.router is not None
    cosines = row_cosines(built.router)
    import localmoe

    try:
        with localmoe.load(str(built.written.path), n_ctx=PROBE_CONTEXT, n_threads=n_threads) as model:
            return RouterReport(built.recipe, cosines, probe(model, built.recipe))
    except LocalMoeError as error:
        return RouterReport(built.recipe, cosines, None, str(error))


def row_cosines(router: Array) -> Array:
    """(L, E, E) float64 cosines between the rows of a router (L, E, D)."""
    lengths = np.linalg.norm(router.astype(np.float64), axis=-1, keepdims=True)
    unit: Array = router / np.maximum(lengths, 1e-30)
    cosines: Array = unit @ unit.transpose(0, 2, 1)
    return cosines


def probe(model: Model, recipe: Recipe) -> Reached:
    """Count the experts that the recipe's prompts and PROBES choose, layer by layer."""
    n_layer, n_expert = model.config.n_layer, model.config.n_expert
    own = np.full(n_expert, np.nan)
    uses, n_tokens = np.zeros((n_layer, n_expert), np.int64), 0
    for i, texts in enumerate([*(expert.positive for expert in recipe.experts), PROBES]):
        counts, n = _count(model, texts)
        uses, n_tokens = uses + counts, n_tokens + n
        if i < n_expert and n:
            own[i] = counts[:, i].mean() / n
    return Reached(uses, own, n_tokens)


def _count(model: Model, texts: Sequence[str]) -> tuple[Array, int]:
    """Uses (L, E) of the experts by all tokens of `texts`, and how many tokens there are."""
    session = model.session()
    n_layer, n_expert = model.config.n_layer, model.config.n_expert
    counts, n_tokens = np.zeros((n_layer, n_expert), np.int64), 0
    for text in texts:
        ids = prompt_ids(model.tokenizer, text)[: model.n_ctx]
        if not ids:
            continue
        session.reset()
        for result in session.run_all(ids, want_logits=False):
            np.add.at(counts, (np.arange(n_layer)[None, :, None], result.experts), 1)
        n_tokens += len(ids)
    session.reset()
    return counts, n_tokens


# --- for people and for programs ---


def lines(report: RouterReport) -> list[str]:
    """The report as lines of text."""
    recipe, closest = report.recipe, _closest(report.cosines)
    n_layer, n_expert = report.cosines.shape[:2]
    alike = [layer for layer, (_, _, cosine) in enumerate(closest) if cosine > ALIKE]
    values = [cosine for *_, cosine in closest]
    out = [
        f"router: {recipe.gate_mode}, {n_layer} layers x {n_expert} experts, {recipe.n_used} chosen per token",
        f"  the two most alike rows of a layer have a cosine of {min(values):.3f} to {max(values):.3f} "
        f"(median {np.median(values):.3f})",
    ]
    if alike:
        pairs = sorted({closest[layer][:2] for layer in alike})
        named = ", ".join(f"{a} and {b}" for a, b in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
        out.append(f"  above {ALIKE}, so scored nearly alike, in {_layers(alike, n_layer)}: experts {named}")
    out += _reached_lines(report)
    if same := _same_weights(recipe):
        out.append(f"  experts {', '.join(map(str, same))} are the same weights: choosing among them changes nothing")
    return [*out, note(recipe)]


def _reached_lines(report: RouterReport) -> list[str]:
    if report.reached is None:
        return [f"  it could not be run to see which experts are reached: {report.why}"]
    reached, recipe = report.reached, report.recipe
    chance = recipe.n_used / len(recipe.experts)
    out = []
    for i, expert in enumerate(recipe.experts):
        own = reached.own[i]
        text = (
            "no prompts" if np.isnan(own) else f"chosen by {own:.0%} of its own prompts' tokens (chance: {chance:.0%})"
        )
        missed = np.flatnonzero(reached.uses[:, i] == 0).tolist()
        if missed:
            text += f"; reached by nothing in {_layers(missed, len(reached.uses))}"
        out.append(f'  expert {i} "{visible(expert.label, 60)}": {text}')
    texts = f"{reached.n_tokens} tokens (the recipe's prompts and {len(PROBES)} other texts)"
    if reached.uses.all():
        return [*out, f"  every expert is reached in every layer by some of {texts}"]
    return [*out, f"  (reached by nothing: none of {texts} chose it there)"]


def note(recipe: Recipe) -> str:
    """What the router is, in words."""
    return FROM_PROMPTS if recipe.gate_mode in PROMPT_MODES else AT_RANDOM


def as_json(report: RouterReport) -> dict[str, Any]:
    """The report as JSON values."""
    recipe, reached = report.recipe, report.reached
    experts = []
    for i, expert in enumerate(recipe.experts):
        entry: dict[str, Any] = {"label": expert.label, "source": str(expert.source)}
        if reached is not None:
            own = float(reached.own[i])
            entry["own_prompts_share"] = None if np.isnan(own) else own
            entry["unreached_layers"] = np.flatnonzero(reached.uses[:, i] == 0).tolist()
            entry["uses"] = reached.uses[:, i].tolist()
        experts.append(entry)
    layers = [
        {"layer": layer, "most_alike": [a, b], "cosine": cosine, "cosines": report.cosines[layer].tolist()}
        for layer, (a, b, cosine) in enumerate(_closest(report.cosines))
    ]
    return {
        "gate_mode": recipe.gate_mode,
        "n_expert_used": recipe.n_used,
        "probe_tokens": None if reached is None else reached.n_tokens,
        "same_weights": _same_weights(recipe),
        "experts": experts,
        "layers": layers,
        "note": note(recipe),
    }


def _closest(cosines: Array) -> list[tuple[int, int, float]]:
    """Of every layer the two experts whose rows are most alike, and their cosine."""
    first, second = np.triu_indices(cosines.shape[1], 1)
    best = cosines[:, first, second].argmax(axis=1)
    return [(int(first[k]), int(second[k]), float(cosines[i, first[k], second[k]])) for i, k in enumerate(best)]


def _same_weights(recipe: Recipe) -> list[int]:
    """Experts that are another's exact copies."""
    keys = [(e.source.resolve(), e.residual_scale) if not e.noise_scale else None for e in recipe.experts]
    return [i for i, key in enumerate(keys) if key is not None and keys.count(key) > 1]


def _layers(layers: Sequence[int], n_layer: int) -> str:
    """`layers 0, 3-7`."""
    if len(layers) == n_layer:
        return "every layer"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer {shown}" if len(layers) == 1 else f"layers {shown}"
