"""A recording for people: a table a phase, and a page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from localmoe.experts.coactivation import Pair
from localmoe.experts.recording import Recording, working_set_bytes
from localmoe.experts.statistics import CAPACITY_FACTORS, DECODE, PREFILL, ExpertStatistics, LayerStatistics
from localmoe.gguf_file import visible

WINDOW = 64  # tokens of the working set that is told
MAX_TOKENS = 4000  # of a page; its figures are of all of them
PHASES = {"all": None, "prompts": PREFILL, "replies": DECODE}
COLUMNS = ("layer", "entropy", "busiest", "dead", "imp. CV", "reuse", "margin", "over 1.0", "over 1.25", "skipped")
HEADER = "  ".join(f"{name:>9}" for name in COLUMNS) + "  most frequent pair"


def lines(recording: Recording) -> list[str]:
    """What was recorded, then a table a phase that has tokens, a row a layer."""
    counted = recording.statistics()
    out = [
        f"{visible(recording.model, 100)}: {visible(recording.settings, 400)}",
        f"{recording.n_token} tokens, {int((recording.phase == PREFILL).sum())} of prompts, "
        f"{int((recording.phase == DECODE).sum())} of replies",
        working_set_line(counted, recording),
    ]
    for name in ("prompts", "replies"):
        figures = counted.layers(PHASES[name])
        if figures.tokens.any():
            out += ["", f"{name} ({int(figures.tokens.max())} tokens)", *table(figures, counted.pairs(PHASES[name], 1))]
    return [*out, "", *_legend()]


def working_set_line(counted: ExpertStatistics, recording: Recording) -> str:
    """How much of the experts' weights the last tokens touched."""
    n = min(WINDOW, recording.n_token)
    gib = working_set_bytes(counted, recording.expert_bytes, n) / 2**30
    whole = int(recording.expert_bytes.sum()) * recording.n_expert / 2**30
    return f"working set: the last {n} tokens went through {gib:.3f} GiB of the experts' {whole:.3f} GiB"


def table(figures: LayerStatistics, pairs: Sequence[Sequence[Pair]]) -> list[str]:
    """A header and a row a layer."""
    rows = [HEADER]
    for i in range(len(figures.tokens)):
        busiest = int(figures.share[i].argmax()) if figures.tokens[i] else 0
        cells = [
            str(i), _number(figures.entropy[i], ".3f"), f"{busiest} {_number(figures.max_over_mean[i], '.2f')}x",
            str(int(figures.dead[i].sum())), _number(figures.importance_cv[i], ".3f"),
            _number(figures.layer_reuse[i], ".0%"), _number(figures.margin[i], ".3f"),
            *(_number(share, ".0%") for share in figures.overflow[:, i]), _number(figures.skipped[i], ".0%"),
        ]  # fmt: skip
        rows.append("  ".join(f"{cell:>9}" for cell in cells) + "  " + _pair(pairs[i], int(figures.tokens[i])))
    return rows


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(float(value), form)


def _pair(pairs: Sequence[Pair], n_token: int) -> str:
    if not pairs or not n_token:
        return "-"
    best = pairs[0]
    return f"{best.first} and {best.second}: {best.count / n_token:.0%} of tokens"


def _legend() -> list[str]:
    return [
        "entropy: 1 is an even load, 0 one expert for everything. busiest: the expert and its load over the mean.",
        "imp. CV: spread of the summed gate weights. reuse: choices that the next token repeats.",
        "margin: probability of the last choice above the first expert not taken.",
        "over 1.0, over 1.25: choices beyond an expert's capacity at that factor.",
        "A number of an expert means nothing across layers.",
    ]


def as_json(recording: Recording) -> dict[str, Any]:
    """The figures of every phase, layer by layer, as JSON values; NaN is null."""
    counted = recording.statistics()
    phases = {}
    for name, phase in PHASES.items():
        figures = counted.layers(phase)
        pairs = counted.pairs(phase)
        phases[name] = [
            {
                "layer": i,
                "tokens": int(figures.tokens[i]),
                **{
                    field: _plain(getattr(figures, field)[i])
                    for field in ("routed", "share", "weight_share", "probability", "entropy", "max_over_mean", "dead",
                                  "importance_cv", "reuse", "layer_reuse", "margin", "skipped")
                },
                "overflow": {f"{f:g}": _plain(figures.overflow[n, i]) for n, f in enumerate(CAPACITY_FACTORS)},
                "pairs": [{"experts": [p.first, p.second], "count": p.count, "lift": _plain(p.lift)} for p in pairs[i]],
            }
            for i in range(recording.n_layer)
        ]  # fmt: skip
    return {
        "model": recording.model,
        "settings": recording.settings,
        "tokens": recording.n_token,
        "n_expert": recording.n_expert,
        "working_set_bytes": {
            str(n): working_set_bytes(counted, recording.expert_bytes, n) for n in (16, 64, 256, recording.n_token)
        },
        "experts_bytes": int(recording.expert_bytes.sum()) * recording.n_expert,
        "phases": phases,
    }


def _plain(value: Any) -> Any:
    """NumPy values as Python's, NaN as None."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def html(recording: Recording) -> str:
    """One page with everything in it: heatmap, the text coloured by expert, a token's path under the mouse.

    Everything of the model's is data: it is escaped here and only ever becomes text in the page.
    """
    counted = recording.statistics()
    kept = slice(max(0, recording.n_token - MAX_TOKENS), recording.n_token)
    order = np.argsort(-recording.weights[kept], axis=2, kind="stable")
    data = {
        "model": visible(recording.model, 200),
        "settings": visible(recording.settings, 1000),
        "labels": [visible(label, 200) for label in recording.labels],
        "experts": recording.n_expert,
        "expertBytes": recording.expert_bytes.tolist(),
        "total": recording.n_token,
        "first": kept.start,
        "workingSet": working_set_line(counted, recording),
        "shares": {name: _plain(np.round(counted.layers(phase).share, 5)) for name, phase in PHASES.items()},
        "tokens": {name: int(counted.layers(phase).tokens.max(initial=0)) for name, phase in PHASES.items()},
        "pieces": ["\n".join(map(visible, piece.split("\n"))) for piece in recording.pieces[kept]],
        "phase": recording.phase[kept].tolist(),
        "starts": recording.starts[kept].tolist(),
        "chosen": np.take_along_axis(recording.experts[kept], order, 2).tolist(),
        "weights": np.round(np.take_along_axis(recording.weights[kept], order, 2).astype(float), 3).tolist(),
    }
    text = json.dumps(data, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    page = files("localmoe.experts").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text)
