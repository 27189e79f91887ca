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


def check_routers(model: Model, ids: Sequence[int], *, on_run: OnRun | None = None) -> Check:
    """Run a text as the model is, with one expert less and more, and with every router's rows shuffled."""
    n_used, n_expert = model.session().routing.n_used, model.config.n_expert
    settings = {
        f"top-{k} instead of {n_used}": Setting({"n_expert_used": k})
        for k in (n_used - 1, n_used + 1)
        if 1 <= k <= n_expert
    }
    settings[SHUFFLED] = all_shuffled(model)
    recorder = Recorder(model)
    found = costs(model, ids, settings, on_run=on_run, recorders={"": recorder})
    recorder.skip()
    recording = recorder.finish()
    rows = np.stack([router_rows(model, layer) for layer in range(model.config.n_layer)])
    return Check(n_expert, n_used, len(ids), layer_health(rows, recording), found)
