"""One tensor an expert: such a file runs as its stacked twin does, and is rewritten as it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.cli import main
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.pipeline import write_model
from localmoe.errors import BadInputError
from localmoe.gguf_file import open_gguf
from localmoe.model.memory import model_size
from tests.tiny import tiny_weights, write_tiny

FIELDS: dict[str, Any] = {"n_expert": 5, "n_embd": 256, "n_ff": 256, "types": {"ffn_down": "Q6_K", "ffn_up": "Q4_K"}}


def write_legacy(path: Path, **changes: Any) -> Path:
    """The model of FIELDS with its experts apart, in the old files' order: one expert's gate, down, up, the next's."""
    fields = FIELDS | {key: value for key, value in changes.items() if key != "drop"}
    weights = tiny_weights(**fields)
    stacks = [name for name in weights if "_exps" in name]
    single = {
        f"blk.{layer}.ffn_{part}.{expert}.weight": weights[f"blk.{layer}.ffn_{part}_exps.weight"][expert]
        for layer in range(2)
        for expert in range(5)
        for part in ("gate", "down", "up")
    }
    return write_tiny(path, drop_tensors=[*stacks, *changes.get("drop", ())], extra_tensors=single, **fields)


def test_it_runs_as_the_stacked_model_does(tmp_path: Path) -> None:
    """The same logits to the bit: one token at a time and in a batch."""
    stacked, legacy = write_tiny(tmp_path / "s.gguf", **FIELDS), write_legacy(tmp_path / "l.gguf")
    results = []
    for path in (stacked, legacy):
        with localmoe.load(str(path), n_ctx=64, n_threads=2) as model:
            batch = model.eval(list(range(3, 35)))
            results.append((batch.logits, batch.experts, model.session().decode(7).logits.copy()))
            sizes = model_size(model.gguf.tensors.values(), model.config)
            assert sizes.active == pytest.approx(1377524, abs=12)  # an expert's share rounds down tensor by tensor
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["COPY", "Q4_K_M"])
def test_it_is_rewritten_as_the_stacked_model(tmp_path: Path, kind: str) -> None:
    fields = {} if kind == "COPY" else {"types": {}, "type": "F16"}
    sources = write_tiny(tmp_path / "s.gguf", **FIELDS | fields), write_legacy(tmp_path / "l.gguf", **fields)
    written = []
    for source in sources:
        assert main(["quantize", str(source), str(tmp_path / "out.gguf"), kind]) == 0
        with open_gguf(tmp_path / "out.gguf") as out:
            written.append({name: (t.shape, t.type, bytes(out.raw(name))) for name, t in out.tensors.items()})
    assert written[0] == written[1]
    assert "blk.1.ffn_gate_exps.weight" in written[1]


@pytest.mark.parametrize("name", ["blk.0.ffn_gate.0.weight", "blk.1.ffn_down.3.weight", "blk.1.ffn_up.4.weight"])
def test_a_missing_expert_is_named(tmp_path: Path, name: str) -> None:
    path = write_legacy(tmp_path / "m.gguf", drop=[name])
    with pytest.raises(BadInputError, match=rf"{name}: the tensor is missing in layer"):
        localmoe.load(str(path))


def test_experts_of_different_types_are_refused_by_name(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.gguf", types={"blk.1.ffn_down.2": "Q8_0", "ffn_down": "Q6_K"})
    reason = r"blk\.1\.ffn_down\.2\.weight: experts of one layer differ in type, .* got Q8_0, expected Q6_K"
    with pytest.raises(BadInputError, match=reason):
        localmoe.load(str(path))
    with open_gguf(path) as gguf, pytest.raises(BadInputError, match=reason):
        write_model(gguf_source(gguf), tmp_path / "out.gguf", "COPY")
    assert not (tmp_path / "out.gguf").exists()


def test_an_expert_too_many_is_refused(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_gate.5.weight": np.zeros((256, 256), np.float32)}
    weights = tiny_weights(**FIELDS)
    path = write_tiny(tmp_path / "m.gguf", extra_tensors=extra, **FIELDS)
    assert "blk.0.ffn_gate_exps.weight" in weights
    with pytest.raises(BadInputError, match="missing"):
        localmoe.load(str(path))
