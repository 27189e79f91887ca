"""Recordings as text for other programs: CSV with a line a choice, JSON Lines with a line a token."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from localmoe.errors import UsageError
from localmoe.experts.recording import Recording
from localmoe.experts.trace_file import save_recording
from localmoe.output_file import check_target, replacing

PHASES = ("prefill", "decode")
CSV_HEADER = ("token", "layer", "slot", "expert", "weight")


def csv_lines(recording: Recording) -> Iterator[str]:
    """`token,layer,slot,expert,weight`: the token's place in the recording; slots that no expert ran for left out."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for token, (experts, weights) in enumerate(zip(recording.experts, recording.weights, strict=True)):
        for layer, (chosen, gates) in enumerate(zip(experts.tolist(), weights, strict=True)):
            for slot, expert in enumerate(chosen):
                if expert >= 0:
                    writer.writerow((token, layer, slot, expert, gates[slot]))
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    if line.getvalue():
        yield line.getvalue()


def jsonl_lines(recording: Recording) -> Iterator[str]:
    """A token a line: its place, id, text, phase, whether it begins a text, and each layer's experts and weights."""
    for token in range(recording.n_token):
        layers = [
            {
                "experts": [e for e in chosen if e >= 0],
                "weights": [w for e, w in zip(chosen, gates, strict=True) if e >= 0],
            }
            for chosen, gates in zip(recording.experts[token].tolist(), recording.weights[token].tolist(), strict=True)
        ]
        entry = {
            "token": token, "id": int(recording.tokens[token]), "text": recording.pieces[token],
            "phase": PHASES[int(recording.phase[token])], "starts": bool(recording.starts[token]), "layers": layers,
        }  # fmt: skip
        yield json.dumps(entry) + "\n"


LINES: dict[str, Callable[[Recording], Iterator[str]]] = {"csv": csv_lines, "jsonl": jsonl_lines}
FORMATS = ("csv", "jsonl", "npz")


def rows_of(recording: Recording, kind: str) -> tuple[int, str]:
    """How many rows a recording has as `kind`, a CSV's header not counted, and what a row is."""
    return (int((recording.experts >= 0).sum()), "choice") if kind == "csv" else (recording.n_token, "token")


def check_format(path: str | os.PathLike[str], kind: str | None = None) -> str:
    """`kind`, by default what the name ends in; UsageError for one that is not known."""
    kind = kind or Path(path).suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UsageError("unknown format", file=str(path), got=repr(kind), expected=f"one of: {', '.join(FORMATS)}")
    return kind


def export_recording(recording: Recording, path: str | os.PathLike[str], kind: str | None = None) -> None:
    """Write a recording as `kind`, by default what the name ends in; UsageError for another, FileError as ever."""
    kind = check_format(path, kind)
    if kind == "npz":
        save_recording(recording, path)
        return
    with replacing(check_target(Path(path), [], file=str(path))) as out:
        for line in LINES[kind](recording):
            out.write(line.encode("utf-8"))
