"""Mixtral GGUFs of December 2023 to April 2024: one tensor an expert, `blk.N.ffn_gate.E.weight`, instead of a stack.

They run as they are, and are rewritten stacked without loss. Source: llama.cpp before its change of the layout (#6387).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile, TensorInfo, visible

STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_EXPERT = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight$")


def stacked_name(name: str) -> str | None:
    """`blk.3.ffn_gate_exps.weight` for `blk.3.ffn_gate.5.weight`, None for a tensor that is no single expert's."""
    found = _EXPERT.match(name)
    return f"blk.{found[1]}.ffn_{found[2]}_exps.weight" if found else None


def expert_name(stack: str, expert: int) -> str:
    """The tensor of one expert of the stack `blk.N.ffn_gate_exps.weight`."""
    return stack.replace("_exps.", f".{expert}.")


def has_single_experts(names: Collection[str]) -> bool:
    """Whether a file holds one tensor an expert."""
    return any(_EXPERT.match(name) for name in names)


def single_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A model's tensors with every stack (E, rows, columns) replaced by its E matrices."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith("_exps.weight"):
            out |= {expert_name(name, expert): shape[1:] for expert in range(shape[0])}
        else:
            out[name] = shape
    return out


def differing_types(gguf: GGUFFile) -> Iterator[BadInputError]:
    """An error for every stack whose experts differ in type, not yet raised."""
    first: dict[str, TensorInfo] = {}
    told: set[str] = set()
    for name, tensor in gguf.tensors.items():
        stack = stacked_name(name)
        if stack is None:
            continue
        other = first.setdefault(stack, tensor)
        if other.type != tensor.type and stack not in told:
            told.add(stack)
            reason = f"experts of one layer differ in type, which cannot be stacked: {other.name} is {other.type.name}"
            yield BadInputError(
                reason, file=visible(str(gguf.path)), item=visible(name), got=tensor.type.name, expected=other.type.name
            )
