"""Running a model to see what its routers do: the figures behind `localmoe experts check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localmoe.engine.api import Model
from localmoe.engine.experiments import Cost, OnRun, Setting, all_shuffled, costs, router_rows
from localmoe.engine.recorder import Recorder
from localmoe.experts.health import LayerHealth, as_json, cost_lines, layer_health, lines, verdict


@dataclass(frozen=True)
class Check:
    """What was found: every layer's figures, and what changes cost on the text, by name ("" is no change)."""

    n_expert: int
    n_used: int
    n_token: int
    layers: list[LayerHealth]
    changes: dict[str, Cost]

    def lines(self) -> list[str]:
        """In plain words, the costs as a table, and a verdict."""
        table = {name or "as it is": (c.mean_kl, c.same_top, c.perplexity) for name, c in self.changes.items()}
        return [
            *lines(self.layers, self.n_expert, self.n_used, self.n_token),
            "",
            f"what a change costs on {self.changes[''].n} tokens (KL in nats to the answers as they are):",
            *cost_lines(table),
            "",
            verdict(self.layers, self.changes[SHUFFLED].mean_kl),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "n_expert": self.n_expert,
            "n_expert_used": self.n_used,
            "tokens": self.n_token,
            "layers": as_json(self.layers),
            "costs": {name or "own": cost.as_json() for name, cost in self.changes.items()},
            "verdict": verdict(self.layers, self.changes[SHUFFLED].mean_kl),
        }


SHUFFLED = "every router shuffled"


def _top(k: int, n_used: int) -> str:
    return f"top-{k} instead of {n_used}"


def side_by_side(found: Sequence[tuple[str, Check]]) -> list[str]:
    """The same figures of several models, a column each under its name, over their layers from least to most."""
    columns = [[name for name, _ in found], *zip(*(_figures(check).values() for _, check in found), strict=True)]
    names = ["", *_figures(found[0][1])]
    widths = [max(map(len, names)), *(max(map(len, column)) for column in zip(*columns, strict=True))]
    rows = [[name, *column] for name, column in zip(names, columns, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _figures(check: Check) -> dict[str, str]:
    """What `side_by_side` shows of one model."""

    def span(values: Sequence[float | None], form: str) -> str:
        known = [value for value in values if value is not None and value == value]
        return f"{min(known):{form}} to {max(known):{form}}" if known else "-"

    def kl(name: str) -> str:
        return f"{check.changes[name].mean_kl:.4f}" if name in check.changes else "-"

    layers, missed = check.layers, sum(len(h.unreached) for h in check.layers)
    own, shuffled = check.changes[""], check.changes[SHUFFLED]
    return {
        "closest two rows of a layer, cosine": span([h.cosine for h in layers], ".2f"),
        "experts that no token reached": f"{missed} of {len(layers) * check.n_expert}",
        "tokens with a layer's most usual experts": span([h.usual_share for h in layers], ".0%"),
        "entropy of the load": span([h.entropy for h in layers], ".2f"),
        "margin of the last chosen": span([h.margin for h in layers], ".3f"),
        "KL of one expert less": kl(_top(check.n_used - 1, check.n_used)),
        "KL of one expert more": kl(_top(check.n_used + 1, check.n_used)),
        "KL of every router shuffled": kl(SHUFFLED),
        "perplexity, as it is and shuffled": f"{own.perplexity:.1f}, {shuffled.perplexity:.1f}",
    }


def check_routers(model: Model, ids: Sequence[int], *, on_run: OnRun | None = None) -> Check:
    """Run a text as the model is, with one expert less and more, and with every router's rows shuffled."""
    n_used, n_expert = model.session().routing.n_used, model.config.n_expert
    settings = {_top(k, n_used): Setting({"n_expert_used": k}) for k in (n_used - 1, n_used + 1) if 1 <= k <= n_expert}
    settings[SHUFFLED] = all_shuffled(model)
    recorder = Recorder(model)
    found = costs(model, ids, settings, on_run=on_run, recorders={"": recorder})
    recorder.skip()
    recording = recorder.finish()
    rows = np.stack([router_rows(model, layer) for layer in range(model.config.n_layer)])
    return Check(n_expert, n_used, len(ids), layer_health(rows, recording), found)
