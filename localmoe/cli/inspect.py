"""`localmoe inspect`: what a model is, what it needs in memory, and why it would not run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from localmoe.gguf_file import GGUFFile

Line = tuple[str, str]


def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A GGUF file, or any part of a split one.", readable=False)
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model is, what it needs in memory, and why it would not run."""
    from localmoe.cli.cut_off import tell_when_cut_off
    from localmoe.model.inspect import describe

    tell_when_cut_off(model)
    description = describe(model, _check_text)
    if json_output:
        print(json.dumps(description, allow_nan=False))
    else:
        _show(lines(description))


def _check_text(gguf: GGUFFile) -> None:
    from localmoe.text.tokenizer import load

    load(gguf)


def _show(rows: list[Line]) -> None:
    """A table on a terminal; `label: text` lines, none of them wrapped, anywhere else."""
    if not sys.stdout.isatty():
        print("\n".join(f"{label + ':' if label else '':<16}{text}" for label, text in rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        style = {"runs": "bold green" if text == "yes" else "bold red", "warning": "yellow"}.get(label, "")
        table.add_row(Text(label, style="bold"), Text(text, style=style))
    Console(highlight=False).print(table)


def lines(d: dict[str, Any]) -> list[Line]:
    """The description as (label, text) lines; an empty label continues the one above."""
    rows = [("file", d["file"] + (f" ({d['parts']} parts)" if d["parts"] > 1 else "")), *_identity(d), *_shape(d)]
    rows += [*_vocabulary(d), *_memory(d), *_router(d)]
    rows += _listed("expert labels", _expert_labels(d["expert_labels"]))
    rows.append(("runs", "yes" if d["runnable"] else "no"))
    rows += _listed("because", d["reasons"])
    return rows + _listed("warning", d["warnings"])


def _listed(label: str, texts: list[str]) -> list[Line]:
    return [(label if n == 0 else "", text) for n, text in enumerate(texts)]


def _identity(d: dict[str, Any]) -> list[Line]:
    from localmoe.model.memory import size_text

    total, active = d["parameters"]["total"], d["parameters"]["active"]
    parameters = f"{count_text(total)}, {count_text(active)} active a token" if active else count_text(total)
    types = ", ".join(f"{name} {size_text(t['bytes'])} in {t['tensors']}" for name, t in d["types"].items())
    return [
        ("name", d["name"] or "none"),
        ("architecture", d["architecture"] or "none"),
        ("size", f"{size_text(d['file_bytes'])}, GGUF version {d['gguf_version']}"),
        ("parameters", parameters),
        ("types", f"{types} tensors" if types else "no tensors"),
    ]


def _shape(d: dict[str, Any]) -> list[Line]:
    c, rope = d["config"], d["rope_scaling"]

    def show(name: str) -> str:
        return str(c.get(name, "?"))

    rows = [("layers", f"{show('n_layer')} of width {show('n_embd')}, feed-forward {show('n_ff')}")]
    size = f", of size {c['n_embd_head_k']}" if "n_embd_head_k" in c else ""
    rows.append(("heads", f"{show('n_head')}, {show('n_head_kv')} for keys and values{size}"))
    used = (
        f"{c.get('n_expert', 0)} a layer, {show('n_expert_used')} used a token" if c.get("n_expert") else "none: dense"
    )
    rows.append(("experts", used))
    rows.append(("context", f"{show('n_ctx_train')} tokens"))
    if rope:
        stretched = f", {rope['type']} scaling" + (f" by {rope['factor']:g}" if rope["factor"] != 1.0 else "")
        rows.append(("rope", f"base {c['rope_freq_base']:g}" + (stretched if rope["type"] != "none" else "")))
    return rows


def _vocabulary(d: dict[str, Any]) -> list[Line]:
    v = d["vocabulary"]
    if v is None:
        return [("vocabulary", "none")]
    special = [f"{name} {t['id']} {t['text'] or 'out of range'}" for name, t in v["special"].items()]
    pre = f" ({v['pre']})" if v["pre"] else ""
    return [
        ("vocabulary", f"{v['kind'] or 'unknown'}{pre}, {v['size']} tokens"),
        ("special tokens", ", ".join(special) or "none"),
        ("chat template", "yes" if d["chat_template"] else "no"),
    ]


def _memory(d: dict[str, Any]) -> list[Line]:
    from localmoe.model.memory import size_text

    m = d["memory"]
    smaller = {n_ctx: f" ({size_text(size)} as q8_0)" for n_ctx, size in m["cache_q8_0"].items()}
    caches = [
        f"{size_text(size)} of cache{smaller.get(n_ctx, '')} at a context of {n_ctx}"
        for n_ctx, size in m["cache_f16"].items()
    ]
    available = f"; {size_text(m['available'])} available" if m["available"] else ""
    read = d["parameters"]["bytes_per_token"]
    rows = [("memory", ", ".join([f"{size_text(m['weights'])} of weights", *caches]) + available)]
    return rows + ([("reads", f"{size_text(read)} of weights a token")] if read else [])


def _router(d: dict[str, Any]) -> list[Line]:
    """How alike the rows are that choose the experts: equal rows choose between equal scores."""
    if not d["router"] or not d["router"]["layers"]:
        return []
    layers = d["router"]["layers"]
    low, high = min(f["norm_min"] for f in layers), max(f["norm_max"] for f in layers)
    rows = [f"row norms {low:.3g} to {high:.3g}"]
    compared = [facts for facts in layers if facts["cosine_max"] is not None]
    if compared:
        mean = sum(facts["cosine_mean"] for facts in compared) / len(compared)
        most = max(compared, key=lambda facts: facts["cosine_max"])
        rows[0] += (
            f"; cosine between rows {mean:.2f} on average, {most['cosine_max']:.4f} at most (layer {most['layer']})"
        )
    if d["router"]["same_in_every_layer"]:
        rows.append("the same rows in every layer")
    alike = [
        f"layer {facts['layer']}: " + ", ".join(f"{a} and {b}" for a, b in facts["alike"])
        for facts in compared
        if facts["alike"]
    ]
    if alike:
        more = f" ... in {len(alike)} layers" if len(alike) > 3 else ""
        rows.append("nearly the same row for experts, " + "; ".join(alike[:3]) + more)
    return _listed("router", rows)


def _expert_labels(labels: list[str]) -> list[str]:
    """A label is what the file calls an expert, not what the expert is good at."""
    if not labels:
        return []
    return ["in the file; not what an expert is good at:", *(f"{n}: {label}" for n, label in enumerate(labels))]


def count_text(count: int) -> str:
    """A number of parameters for a person: `46.7 B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
