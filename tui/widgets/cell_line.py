"""What is known of one cell of the heatmap, in one line or two, as much as there is room for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from textual.content import Content

from .turns import MUTED, shown_line

Part = tuple[str, str]
GAP = "  "
LEAST = 8
"""Columns from which on a part of a label says something."""


@dataclass(frozen=True)
class CellFigures:
    """Expert `expert` of a layer with `n_expert`: its share of the choices, of the gate weights, and in a saved run.

    Shares are NaN where nothing is known. `size` is what one expert takes, in words.
    """

    layer: int
    expert: int
    n_expert: int
    share: float
    weight_share: float
    saved: float
    versus: str
    size: str
    label: str


def cell_lines(cell: CellFigures, width: int, lines: int) -> Content:
    """The cell's place and figures; what it takes and is called after them, or on a line of its own."""
    share = "no data" if np.isnan(cell.share) else f"{cell.share:.1%}"
    needed: list[Part] = [(share, "")]
    if not np.isnan(cell.saved):
        needed.append((f"{cell.versus} {cell.saved:.1%}", MUTED))
    if not np.isnan(cell.weight_share):
        needed.append((f"weight {cell.weight_share:.1%}", ""))
    about = [(part, MUTED) for part in (cell.size, shown_line(cell.label)) if part]
    more: list[Part] = [] if np.isnan(cell.share) else [(f"{cell.share * cell.n_expert:.2g}× even", "")]
    head: list[Part] = [("layer ", MUTED), (str(cell.layer), ""), (" expert ", MUTED), (str(cell.expert), "")]
    if _columns(head) + sum(len(GAP) + cell_len(text) for text, _ in needed) > width:
        head = [("L", MUTED), (str(cell.layer), ""), (" E", MUTED), (str(cell.expert), "")]
    first = _joined(head, needed + more + (about if lines == 1 else []), width)
    return first if lines == 1 else Content("\n").join((first, _joined([], about, width)))


def _joined(head: list[Part], parts: list[Part], width: int) -> Content:
    """The parts that fit after the head; the last of them may be cut."""
    out, room = list(head), width - _columns(head)
    for text, tint in parts:
        gap = GAP if out else ""
        left = room - len(gap)
        if cell_len(text) > left:
            if left < LEAST or (text, tint) != parts[-1]:
                break
            text = set_cell_size(text, left - 1).rstrip() + "…"
        out += [(gap, ""), (text, tint)]
        room = left - cell_len(text)
    return Content.assemble(*out)


def _columns(parts: list[Part]) -> int:
    return sum(cell_len(text) for text, _ in parts)
