"""A recording for people: a table a phase, and a page that stands alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from localmoe.experts.coactivation import Pair
from localmoe.experts.recording import Array, Recording, working_set_bytes
from localmoe.experts.statistics import CAPACITY_FACTORS, DECODE, PREFILL, ExpertStatistics, LayerStatistics
from localmoe.gguf_file import visible

WINDOW = 64  # tokens of the working set that is told
MAX_TOKENS, MAX_CHOICES = 20_000, 2_000_000  # of a page, 11 MB; its figures are of all of them
WEIGHT_ONE = 16384  # a gate weight of 1 in a page's 16 bits
PHASES = {"all": None, "prompts": PREFILL, "replies": DECODE}
WORDS = {
    "layer": "of the model, from the input on",
    "entropy": "1 is an even load, 0 one expert for everything",
    "busiest": "the expert with most choices, and its load over the mean",
    "dead": "experts that no token chose",
    "CV": "spread of the summed gate weights over their mean; 0 is equal",
    "reuse": "choices that the next token repeats",
    "margin": "how much likelier the last chosen expert was than the first left out; small is a close call",
    "ov1.0": "overflow: choices beyond an expert's capacity, if that were its even share",
    "ov1.25": "the same with room for a quarter more",
    "skip": "choices asked for that no expert ran for",
}
"""The columns of a table of figures, and what they mean."""
WIDTHS = dict(zip(WORDS, (5, 7, 9, 4, 5, 5, 6, 5, 6, 4), strict=True))
PAIR = "the two experts that were chosen together most, and by which part of the tokens"


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
    used = working_set_bytes(counted, recording.expert_bytes, n)
    whole = int(recording.expert_bytes.sum()) * recording.n_expert
    tokens = f"last {n} tokens" if n > 1 else "last token"
    return f"working set: the {tokens} went through {_size(used)} of the experts' {_size(whole)}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


def table(figures: LayerStatistics, pairs: Sequence[Sequence[Pair]]) -> list[str]:
    """A header and a row a layer."""
    rows = [_row(WORDS) + "  pair"]
    for row, n_token, best in zip(cells(figures), figures.tokens.tolist(), pairs, strict=True):
        rows.append(f"{_row(row)}  {_pair(best, n_token)}")
    return rows


def _row(cells: Iterable[str]) -> str:
    """Cells of all columns; with a pair behind them in a terminal of 80 columns."""
    return " ".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True))


def cells(figures: LayerStatistics) -> list[list[str]]:
    """A row a layer in the order of WORDS; a dash where nothing is known."""
    rows = []
    for i in range(len(figures.tokens)):
        busiest = "-"
        if figures.tokens[i]:
            busiest = f"{int(figures.share[i].argmax())} {_number(figures.max_over_mean[i], '.1f')}x"
        rows.append([
            str(i), _number(figures.entropy[i], ".2f"), busiest, str(int(figures.dead[i].sum())),
            _number(figures.importance_cv[i], ".2f"), _number(figures.layer_reuse[i], ".0%"),
            _number(figures.margin[i], ".3f"), *(_number(share, ".0%") for share in figures.overflow[:, i]),
            _number(figures.skipped[i], ".0%"),
        ])  # fmt: skip
    return rows


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(float(value), form)


def _pair(pairs: Sequence[Pair], n_token: int) -> str:
    if not pairs or not n_token:
        return "-"
    best = pairs[0]
    return f"{best.first}+{best.second}: {best.count / n_token:.0%}"


def _legend() -> list[str]:
    words = [f"{name}: {meaning}." for name, meaning in WORDS.items() if name != "layer"]
    return [*words, f"pair: {PAIR}.", "An expert's number means nothing across layers."]


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
    n_layer, n_slot = recording.experts.shape[1:]
    most = min(recording.n_token, MAX_TOKENS, MAX_CHOICES // max(1, n_layer * n_slot))
    kept = slice(recording.n_token - most, recording.n_token)
    order = np.argsort(-recording.weights[kept], axis=2, kind="stable")
    chosen = np.take_along_axis(recording.experts[kept], order, 2)
    weights = np.rint(np.take_along_axis(recording.weights[kept], order, 2).astype(float) * WEIGHT_ONE)
    by_phase = {name: counted.layers(phase) for name, phase in PHASES.items()}
    data = {
        "model": visible(recording.model, 200),
        "settings": visible(recording.settings, 1000),
        "labels": [visible(label, 200) for label in recording.labels],
        "experts": recording.n_expert,
        "expertBytes": recording.expert_bytes.tolist(),
        "total": recording.n_token,
        "first": kept.start,
        "workingSet": working_set_line(counted, recording),
        "shares": {name: _plain(np.round(figures.share, 5)) for name, figures in by_phase.items()},
        "byWeight": {name: _plain(np.round(figures.weight_share, 5)) for name, figures in by_phase.items()},
        "tokens": {name: int(figures.tokens.max(initial=0)) for name, figures in by_phase.items()},
        "columns": list(WORDS.items()),
        "figures": {name: cells(figures) for name, figures in by_phase.items()},
        "pieces": ["\n".join(map(visible, piece.split("\n"))) for piece in recording.pieces[kept]],
        "phase": recording.phase[kept].tolist(),
        "starts": recording.starts[kept].astype(int).tolist(),
        "slots": n_slot,
        "one": WEIGHT_ONE,
        "chosen": _packed(chosen, "<i2"),
        "weights": _packed(np.minimum(weights, 65535), "<u2"),
    }
    text = json.dumps(data, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    page = files("localmoe.experts").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("__PLAIN__", escape("\n".join(lines(recording)))).replace("__DATA__", text)


def _packed(values: Array, kind: str) -> str:
    """An array's bytes in base64, (N, L, K) in C order."""
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")
