"""What a model's routers do, in plain words, from their rows and a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.experts.recording import Recording

ALIKE = 0.99  # a cosine of rows that gives nearly the same score to everything
ALWAYS = 0.9  # of a layer's tokens go to the same experts: it hardly chooses
HARDLY = 0.05  # nats; routers shuffled: 4.1 for a small trained MoE, 0.01 for a frankenMoE of near-copies


@dataclass(frozen=True)
class LayerHealth:
    """One layer: the closest two rows and their `cosine` (None for one expert), pairs above ALIKE, experts that no
    token reached, the set of experts most tokens went to and their share, entropy of the load, mean margin.
    """

    layer: int
    closest: tuple[int, int] | None
    cosine: float | None
    alike: tuple[tuple[int, int], ...]
    unreached: tuple[int, ...]
    usual_set: tuple[int, ...]
    usual_share: float
    entropy: float
    margin: float


def layer_health(rows: npt.NDArray[np.float32], recording: Recording) -> list[LayerHealth]:
    """Every layer's figures; rows (L, E, D) are the routers'."""
    figures = recording.statistics().layers()
    found = []
    for layer in range(recording.n_layer):
        closest, cosine, alike = _cosines(rows[layer].astype(np.float64))
        sets, counts = np.unique(np.sort(recording.experts[:, layer], axis=1), axis=0, return_counts=True)
        usual = int(counts.argmax())
        found.append(
            LayerHealth(
                layer,
                closest,
                cosine,
                alike,
                tuple(np.flatnonzero(figures.dead[layer]).tolist()),
                tuple(e for e in sets[usual].tolist() if e >= 0),
                float(counts[usual] / recording.n_token),
                float(figures.entropy[layer]),
                float(figures.margin[layer]),
            )
        )
    return found


def _cosines(
    rows: npt.NDArray[np.float64],
) -> tuple[tuple[int, int] | None, float | None, tuple[tuple[int, int], ...]]:
    if len(rows) < 2:
        return None, None, ()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1), 1e-30)[:, None]
    first, second = np.triu_indices(len(rows), 1)
    cosines = (unit @ unit.T)[first, second]
    best = int(cosines.argmax())
    alike = np.flatnonzero(cosines > ALIKE)
    pairs = tuple((int(first[i]), int(second[i])) for i in alike)
    return (int(first[best]), int(second[best])), float(cosines[best]), pairs


def lines(layers: Sequence[LayerHealth], n_expert: int, n_used: int, n_token: int) -> list[str]:
    """Rows, reach and choice in sentences; each names the layers it is about."""
    out = [_rows(layers), _reach(layers, n_expert, n_token), _choice(layers)]
    margins = [h.margin for h in layers if not np.isnan(h.margin)]
    entropy = [h.entropy for h in layers]
    out.append(
        f"load: entropy {min(entropy):.2f} to {max(entropy):.2f} over the layers (1 is even, 0 one expert for all)"
    )
    if margins:
        out.append(
            f"confidence: the last of {n_used} chosen is on average {min(margins):.3f} to {max(margins):.3f} likelier "
            "than the first left out"
        )
    return out


def _rows(layers: Sequence[LayerHealth]) -> str:
    cosines = [h.cosine for h in layers if h.cosine is not None]
    if not cosines:
        return "rows: one expert a layer, nothing to choose"
    span = f"the closest two rows of a layer have a cosine of {min(cosines):.3f} to {max(cosines):.3f}"
    alike = [h for h in layers if h.alike]
    if not alike:
        return f"rows: all different; {span}"
    named = ", ".join(f"{a} and {b}" for a, b in sorted({pair for h in alike for pair in h.alike})[:4])
    return f"rows: nearly alike in {_of(alike, layers)} (above {ALIKE}): experts {named}; {span}"


def _reach(layers: Sequence[LayerHealth], n_expert: int, n_token: int) -> str:
    missed = [h for h in layers if h.unreached]
    if not missed:
        return f"reach: every expert of every layer was chosen by some of {n_token} tokens"
    count = sum(len(h.unreached) for h in missed)
    some = "; ".join(f"layer {h.layer}: {', '.join(map(str, h.unreached[:6]))}" for h in missed[:4])
    more = " ..." if len(missed) > 4 or any(len(h.unreached) > 6 for h in missed) else ""
    return f"reach: {count} of {len(layers) * n_expert} experts were chosen by none of {n_token} tokens ({some}{more})"


def _choice(layers: Sequence[LayerHealth]) -> str:
    fixed = [h for h in layers if h.usual_share >= ALWAYS]
    shares = [h.usual_share for h in layers]
    span = f"a layer's most usual experts serve {min(shares):.0%} to {max(shares):.0%} of its tokens"
    if not fixed:
        return f"choice: no layer always takes the same experts; {span}"
    some = "; ".join(f"layer {h.layer}: {' and '.join(map(str, h.usual_set))}" for h in fixed[:4])
    verb = "chooses" if len(fixed) == len(layers) or len(fixed) == 1 else "choose"
    return f"choice: {_of(fixed, layers)} hardly {verb}: the same for {ALWAYS:.0%} of tokens or more ({some}); {span}"


def _of(some: Sequence[LayerHealth], layers: Sequence[LayerHealth]) -> str:
    return "every layer" if len(some) == len(layers) else f"{len(some)} of {len(layers)} layers"


def cost_lines(found: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """A row a change: name -> (divergence, share of tokens with the same likeliest next token, perplexity)."""
    wide = max(len(name) for name in found)
    head = f"{'':{wide}}  {'KL':>8}  {'same next':>9}  {'perplexity':>10}"
    return [
        head,
        *(f"{name:{wide}}  {kl:>8.4f}  {same:>9.1%}  {ppl:>10.2f}" for name, (kl, same, ppl) in found.items()),
    ]


def verdict(layers: Sequence[LayerHealth], shuffled_kl: float) -> str:
    """One sentence: does the router do anything?"""
    alike = sum(bool(h.alike) for h in layers)
    if shuffled_kl < HARDLY:
        return (
            f"verdict: it hardly matters which experts run: with every router's rows shuffled the answers change by "
            f"{shuffled_kl:.3f} nats"
        )
    fixed = sum(h.usual_share >= ALWAYS for h in layers)
    if 2 * max(alike, fixed) >= len(layers):
        return (
            "verdict: the experts differ, but the router hardly tells texts apart: "
            f"rows nearly alike in {alike} of {len(layers)} layers, the same experts for nearly everything in {fixed}"
        )
    return (
        f"verdict: the router chooses, and the choice matters: shuffled, the answers change by {shuffled_kl:.2f} nats. "
        "Whether its choice is a good one, only a comparison with other settings can tell"
    )


def as_json(layers: Sequence[LayerHealth]) -> list[dict[str, Any]]:
    """The figures as JSON values; NaN is null."""
    return [
        {
            "layer": h.layer, "closest": h.closest, "cosine": h.cosine, "alike": h.alike, "unreached": h.unreached,
            "usual_set": h.usual_set, "usual_share": h.usual_share, "entropy": h.entropy,
            "margin": None if np.isnan(h.margin) else h.margin,
        }
        for h in layers
    ]  # fmt: skip
