"""Row 25 through the command line: importance matrices of zeros, of another model, and cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localmoe.converters.imatrix import Entry, Imatrix, write_imatrix
from localmoe.gguf_file import open_gguf
from localmoe.quants.decode import decode
from tests.acceptance.command import contents, together
from tests.tiny import write_tiny

SMALL = {"n_layer": 1, "n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_ff": 256, "n_expert": 2}


def write_matrix(path: Path, source: Path, value: float, width: int = 256) -> Path:
    """The same importance for all columns of a model's matrices."""
    entries = {}
    with open_gguf(source) as model:
        for name, info in model.tensors.items():
            if name.startswith("blk.") and len(info.shape) > 1:
                n = info.shape[0] if len(info.shape) == 3 else 1
                entries[name] = Entry(np.full((n, width), value, np.float32), np.ones(n, np.int64))
    write_imatrix(Imatrix(entries, ("text",), 1, 512), path)
    return path


def test_row_25_zeros_another_models_and_short_ones(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m.gguf", **SMALL)
    good, zeros = write_matrix(tmp_path / "g.gguf", model, 1), write_matrix(tmp_path / "z.gguf", model, 0)
    other = write_matrix(tmp_path / "o.gguf", model, 1, width=64)
    short = tmp_path / "s.gguf"
    short.write_bytes(good.read_bytes()[:-300])
    before = contents(tmp_path)
    types, outs = ("Q4_K_M", "Q2_K_S", "Q5_0"), [tmp_path / f"{i}.out" for i in range(3)]
    refused = together(
        ("quantize", model, tmp_path / "x", "Q4_K_M", "--imatrix", other),
        ("convert", model, "-o", tmp_path / "x", "--type", "Q4_K_M", "--imatrix", short),
    )
    refused[0].failed(3, other, "an importance matrix of another model")
    refused[1].failed(3, short)
    together(("quantize", model, good, "Q4_K_M", "--imatrix", good))[0].failed(2, good)
    assert contents(tmp_path) == before
    written = together(*(("quantize", model, o, t, "--imatrix", zeros) for t, o in zip(types, outs, strict=True)))
    for out, answer in zip(outs, written, strict=True):
        if answer.code == 3:
            assert not out.exists()
            continue
        answer.succeeded()
        with open_gguf(out) as quantized:
            for name, info in quantized.tensors.items():
                rows = np.ascontiguousarray(quantized.raw(name)).reshape(-1).view(np.uint8)
                assert np.isfinite(decode(info.type, rows)).all(), name
