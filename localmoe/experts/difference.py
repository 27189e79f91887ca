"""Two recordings side by side: how their loads differ, and how often the same tokens went elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.errors import UsageError
from localmoe.experts.recording import Recording


@dataclass(frozen=True)
class Difference:
    """Of two recordings A and B, layer by layer: `shares` (2, L, E) of the choices; `moved` (L,) the part of the load
    that lies elsewhere in B (total variation: 0 the same, 1 nothing in common); where both read the same tokens
    `same_first` (L,) share of tokens with the same first expert and `same_set` (L,) with the same experts, else None.
    """

    shares: npt.NDArray[np.float64]
    moved: npt.NDArray[np.float64]
    same_first: npt.NDArray[np.float64] | None
    same_set: npt.NDArray[np.float64] | None


def difference(a: Recording, b: Recording, phase: int | None = None) -> Difference:
    """Compare two recordings in one phase or both; UsageError where their layers or experts differ in number."""
    shapes = [(r.n_layer, r.n_expert) for r in (a, b)]
    if shapes[0] != shapes[1]:
        got, expected = ("{} layers of {} experts".format(*shape) for shape in shapes[::-1])
        raise UsageError("the recordings are of different models", got=got, expected=expected)
    shares = np.stack([r.statistics().layers(phase).share for r in (a, b)])
    moved = np.abs(shares[0] - shares[1]).sum(axis=1) / 2
    n = min(a.n_token, b.n_token)
    if not np.array_equal(a.tokens[:n], b.tokens[:n]) or a.n_token != b.n_token:
        return Difference(shares, moved, None, None)
    kept = np.ones(n, np.bool_) if phase is None else (a.phase == phase) & (b.phase == phase)
    first = (a.first_experts() == b.first_experts())[kept]
    width = max(a.experts.shape[2], b.experts.shape[2])
    sets = (_sets(a, width) == _sets(b, width)).all(axis=2)[kept]
    if not kept.any():
        return Difference(shares, moved, None, None)
    return Difference(shares, moved, first.mean(axis=0), sets.mean(axis=0))


def _sets(r: Recording, width: int) -> npt.NDArray[np.int32]:
    """Each token's experts in order of their numbers, (N, L, width), so that equal sets are equal rows."""
    padded = np.full((*r.experts.shape[:2], width), -1, np.int32)
    padded[:, :, : r.experts.shape[2]] = r.experts
    padded.sort(axis=2)
    return padded


def lines(found: Difference, names: tuple[str, str]) -> list[str]:
    """A row a layer: what moved, and the experts that gained and lost most."""
    out = [f"A: {names[0]}", f"B: {names[1]}", ""]
    paired = found.same_first is not None
    head = f"{'layer':>5}  {'moved':>6}" + (f"  {'same first':>10}  {'same set':>8}" if paired else "")
    out.append(head + "  gained most in B      lost most in B")
    for layer in range(len(found.moved)):
        row = f"{layer:>5}  {found.moved[layer]:>6.1%}"
        if found.same_first is not None and found.same_set is not None:
            row += f"  {found.same_first[layer]:>10.1%}  {found.same_set[layer]:>8.1%}"
        change = found.shares[1, layer] - found.shares[0, layer]
        parts = []
        for expert in (int(change.argmax()), int(change.argmin())):
            before, after = found.shares[0, layer, expert], found.shares[1, layer, expert]
            said = f"{expert:>3}: {before:.1%} -> {after:.1%}" if change[expert] else "  none"
            parts.append(said.ljust(20))
        out.append(f"{row}  {'  '.join(parts)}".rstrip())
    notes = ["moved: the part of the layer's load that lies on other experts in B."]
    if paired:
        notes.append("same first, same set: tokens whose heaviest expert, or whose experts, are the same in both.")
    else:
        notes.append("The texts differ: only loads are compared.")
    return [*out, "", *notes]
