"""What a change of routing costs on a text: the same tokens run with and without it, and the answers compared.

A text is cut into windows, each run from an empty context. The divergence is KL(as the model is || changed), mean over
tokens, in nats; the perplexity is of every token but a window's first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from localmoe.engine.api import Model
from localmoe.engine.recorder import Recorder, windows
from localmoe.errors import BadInputError, UsageError
from localmoe.experts.recording import Recording
from localmoe.gguf_file import visible
from localmoe.model.weights import read_floats

WINDOW = 256
Rows = npt.NDArray[np.float32]
OnRun = Callable[[int, int], object]
ABLATIONS = {
    "uniform": "all experts run, each with the same weight",
    "random": "rows drawn anew, as long as the router's own",
    "shuffled": "the router's own rows, each at another expert",
}


@dataclass(frozen=True)
class Setting:
    """A way to route: options as for `Model.generate`, and other routers (E, D) by layer."""

    options: Mapping[str, Any] = field(default_factory=dict)
    routers: Mapping[int, Rows] = field(default_factory=dict)


@dataclass
class Cost:
    """Sums over the tokens of a text: `kl` to the model as it is, its squares, how many have the same likeliest next
    token, `nll` of `n_scored` tokens; `ran` and `slots` count choices that ran and that were asked for.
    """

    n: int = 0
    kl: float = 0.0
    squares: float = 0.0
    same: int = 0
    n_scored: int = 0
    nll: float = 0.0
    ran: int = 0
    slots: int = 0

    @property
    def mean_kl(self) -> float:
        return self.kl / self.n

    @property
    def kl_error(self) -> float:
        """Standard error of the mean divergence, tokens taken as independent."""
        variance = max(0.0, self.squares / self.n - self.mean_kl**2)
        return math.sqrt(variance / max(1, self.n - 1))

    @property
    def same_top(self) -> float:
        return self.same / self.n

    @property
    def perplexity(self) -> float:
        return math.exp(min(700.0, self.nll / max(1, self.n_scored)))

    @property
    def skipped(self) -> float:
        return 1.0 - self.ran / self.slots if self.slots else 0.0

    def as_json(self) -> dict[str, float]:
        return {
            "kl": self.mean_kl, "kl_error": self.kl_error, "same_top": self.same_top,
            "perplexity": self.perplexity, "skipped": self.skipped, "tokens": self.n,
        }  # fmt: skip


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities of rows, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


@contextmanager
def routers_of(model: Model, routers: Mapping[int, Rows]) -> Iterator[None]:
    """The model with other routers in some layers, its own again afterwards."""
    session = model.session()
    try:
        for layer, rows in routers.items():
            session.replace_router(layer, rows)
        yield
    finally:
        for layer in routers:
            session.replace_router(layer, None)


def costs(
    model: Model,
    ids: Sequence[int],
    settings: Mapping[str, Setting],
    *,
    base: Setting | None = None,
    on_run: OnRun | None = None,
    recorders: Mapping[str, Recorder] | None = None,
) -> dict[str, Cost]:
    """What each setting costs on a text beside `base`, named "", by default the model as it is.

    `on_run(done, all)` is called after every run.

    Recorders under the same names take what is routed. UsageError for a model without experts.
    """
    if not model.config.n_expert:
        raise UsageError("this model has no experts", file=visible(str(model.gguf.path)))
    every = {"": base or Setting(), **settings}
    found = {name: Cost() for name in every}
    parts = list(windows(model, ids, min(WINDOW, model.trace.capacity)))
    done = 0
    for window in parts:
        own: npt.NDArray[np.float64] | None = None
        for name, setting in every.items():
            recorder = (recorders or {}).get(name)
            if recorder is not None:
                recorder.skip()
                recorder.begin_text()
            with routers_of(model, setting.routers):
                got = model.eval(window, **setting.options)
            if recorder is not None:
                recorder.take()
            logp = log_softmax(got.logits)
            own = logp if own is None else own
            _add(found[name], own, logp, window)
            found[name].ran += int((got.experts >= 0).sum())
            routing = model.session().checked_routing(**setting.options)
            found[name].slots += len(window) * sum(routing.asked(model.config.n_layer))
            done += 1
            if on_run is not None:
                on_run(done, len(parts) * len(every))
    return found


def _add(cost: Cost, own: npt.NDArray[np.float64], other: npt.NDArray[np.float64], ids: Sequence[int]) -> None:
    kl = np.maximum((np.exp(own) * (own - other)).sum(axis=1), 0.0)
    cost.n += len(kl)
    cost.kl += float(kl.sum())
    cost.squares += float((kl**2).sum())
    cost.same += int((own.argmax(axis=1) == other.argmax(axis=1)).sum())
    cost.n_scored += len(ids) - 1
    cost.nll -= float(other[np.arange(len(ids) - 1), list(ids[1:])].sum())


def router_rows(model: Model, layer: int) -> Rows:
    """A layer's router (E, D) as float32; BadInputError where it is of a type that is no plain float.

    UsageError for a model without experts.
    """
    if not model.config.n_expert:
        raise UsageError("this model has no experts", file=visible(str(model.gguf.path)))
    name = f"blk.{layer}.ffn_gate_inp.weight"
    rows = read_floats(model.gguf, name)
    if rows is None:
        raise BadInputError("a quantized router cannot be replaced", file=visible(str(model.gguf.path)), item=name)
    return rows


def ablated(model: Model, layer: int, kind: str, seed: int = 0) -> Setting:
    """One layer's router replaced as ABLATIONS says."""
    rows = router_rows(model, layer)
    rng = np.random.default_rng([seed, layer])
    if kind == "uniform":
        limits = [model.session().routing.n_used] * model.config.n_layer
        limits[layer] = model.config.n_expert
        return Setting({"n_expert_used": limits}, {layer: np.zeros_like(rows)})
    if kind == "random":
        drawn = rng.standard_normal(rows.shape)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=1, keepdims=True)
        return Setting({}, {layer: (drawn * lengths).astype(np.float32)})
    order = rng.permutation(len(rows))
    moved = np.empty_like(rows)
    moved[order] = rows[np.roll(order, 1)]  # a cycle through all experts: none keeps its row
    return Setting({}, {layer: moved})


def all_shuffled(model: Model, seed: int = 0) -> Setting:
    """Every layer's router shuffled at once."""
    found: dict[int, Rows] = {}
    for layer in range(model.config.n_layer):
        found.update(ablated(model, layer, "shuffled", seed).routers)
    return Setting({}, found)


def ablate(
    model: Model,
    ids: Sequence[int],
    *,
    kinds: Sequence[str] = tuple(ABLATIONS),
    seed: int = 0,
    on_run: OnRun | None = None,
) -> tuple[Cost, dict[str, list[Cost]]]:
    """The model's own figures, and by kind what replacing each layer's router costs, a Cost a layer."""
    names = [(kind, layer) for kind in kinds for layer in range(model.config.n_layer)]
    settings = {f"{kind} {layer}": ablated(model, layer, kind, seed) for kind, layer in names}
    found = costs(model, ids, settings, on_run=on_run)
    return found[""], {kind: [found[f"{kind} {n}"] for n in range(model.config.n_layer)] for kind in kinds}


def compare(
    model: Model, ids: Sequence[int], a: Mapping[str, Any], b: Mapping[str, Any], *, on_run: OnRun | None = None
) -> tuple[Cost, Cost, Recording, Recording]:
    """Run a text with two settings: A's and B's figures (divergence from A), and both recordings."""
    recorders = {name: Recorder(model, router=False) for name in ("", "B")}
    found = costs(model, ids, {"B": Setting(b)}, base=Setting(a), on_run=on_run, recorders=recorders)
    recordings = []
    for name, options in (("", a), ("B", b)):
        model.session().route(**options)
        recorders[name].skip()
        recordings.append(recorders[name].finish())
    model.session().route()
    return found[""], found["B"], recordings[0], recordings[1]
