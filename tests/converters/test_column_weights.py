"""Writing with an importance matrix: ggml's bytes expert by expert, and matrices that do not fit the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import libgguf
import numpy as np
import pytest

from localmoe.converters import gguf_source as gguf_source_module
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.imatrix import Entry, Imatrix
from localmoe.converters.pipeline import WriteReport, write_model
from localmoe.converters.recipe import parse_options
from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import open_gguf
from tests.tiny import tiny_weights, write_tiny

SHAPE = {"n_embd": 256, "n_ff": 512, "n_layer": 1, "n_expert": 5}
UP, DOWN, QUERY = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"
WIDTHS = {UP: (5, 256), DOWN: (5, 512), QUERY: (1, 256)}


def matrix(widths: Mapping[str, tuple[int, int]], counts: int = 3, legacy: bool = False) -> Imatrix:
    rng = np.random.default_rng(2)
    entries = {}
    for name, shape in widths.items():
        n = np.full(1 if legacy else shape[0], counts)
        sums = rng.random(shape, np.float32) + np.float32(0.01)
        entries[name] = Entry(sums.reshape(n.size, -1), n)
    return Imatrix(entries, ("text",), 2, 64, legacy=legacy, label="matrix.gguf")


def quantize(folder: Path, file_type: str, imatrix: Imatrix | None) -> tuple[WriteReport, list[str]]:
    source, lines = write_tiny(folder / "in.gguf", **SHAPE), []
    with open_gguf(source) as opened:
        report = write_model(gguf_source(opened), folder / "out.gguf", file_type, imatrix=imatrix, notify=lines.append)
    return report, lines


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("file_type", ["Q2_K", "Q4_K_S", "Q5_0"])
def test_every_expert_has_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_type: str, legacy: bool
) -> None:
    """In pieces of 48 rows, several of which make an expert; libgguf encodes each expert at once."""
    monkeypatch.setattr(gguf_source_module, "_PIECE_BYTES", 48 << 10)
    imatrix, weights = matrix(WIDTHS, legacy=legacy), tiny_weights(**SHAPE)
    report, _ = quantize(tmp_path, file_type, imatrix)
    with open_gguf(report.path) as written:
        for name, shape in WIDTHS.items():
            kind = written.tensors[name].type
            means = imatrix.entries[name].sums.reshape(shape) / np.float32(3)
            experts = weights[name].reshape(shape[0], -1, shape[1])
            wanted = [libgguf.quantize_rows(x, kind, w) for x, w in zip(experts, means, strict=True)]
            np.testing.assert_array_equal(
                written.raw(name).view(np.uint8).reshape(-1), np.concatenate(wanted).view(np.uint8).reshape(-1)
            )
        keys = [key for key in written.metadata if key.startswith("quantize.imatrix.")]
    assert keys == [f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count")]


def test_what_has_no_weights_is_announced(tmp_path: Path) -> None:
    imatrix = matrix({UP: (5, 256)})
    imatrix.entries[UP].counts[[1, 3]] = 0
    _, lines = quantize(tmp_path, "Q4_K_S", imatrix)
    assert f"{UP}: no importances for experts 1, 3: all their columns weigh the same" in lines
    assert any(line.startswith("no importances for 6 of 7 tensors, the first of them ") for line in lines)


@pytest.mark.parametrize(
    ("widths", "file_type", "message"),
    [
        ({"blk.7.ffn_up.weight": (1, 256)}, "Q4_K_M", "of another model: it has none of this model's tensors"),
        ({**WIDTHS, UP: (5, 128)}, "Q4_K_M", f"{UP}: an importance matrix of another model, got 640 values"),
        ({**WIDTHS, DOWN: (4, 512)}, "Q8_0", f"{DOWN}: an importance matrix of another model, got 2048 values"),
        (WIDTHS, "Q2_K_S", "has no such tensor, which Q2_K in Q2_K_S needs"),
    ],
)
def test_matrices_of_other_models(
    tmp_path: Path, widths: Mapping[str, tuple[int, int]], file_type: str, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        quantize(tmp_path, file_type, matrix(widths))
    assert not (tmp_path / "out.gguf").exists()


def test_an_embeddings_width_does_not_matter(tmp_path: Path) -> None:
    """llama-quantize passes over it: the matrix of a tied model may hold it as an output matrix."""
    quantize(tmp_path, "Q4_K_M", matrix({**WIDTHS, "token_embd.weight": (1, 7)}))


def test_a_type_that_needs_a_matrix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Q2_K in Q2_K_S needs an importance matrix: --imatrix FILE"):
        quantize(tmp_path, "Q2_K_S", None)


@pytest.mark.parametrize("file_type", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS"])
def test_low_types_need_a_matrix_and_each_of_their_tensors_in_it(tmp_path: Path, file_type: str) -> None:
    with pytest.raises(UsageError, match=rf"[_0-9A-Z]+ in {file_type} needs an importance matrix: --imatrix FILE"):
        quantize(tmp_path, file_type, None)
    with pytest.raises(BadInputError, match="the importance matrix has no such tensor, which"):
        quantize(tmp_path, file_type, matrix({DOWN: WIDTHS[DOWN]}))
    assert not (tmp_path / "out.gguf").exists()


def test_an_embedding_in_a_type_that_cannot_go_without(tmp_path: Path) -> None:
    """Where ggml would stop the process: --token-embedding-type IQ2_XS without data for the embedding."""
    source = write_tiny(tmp_path / "in.gguf", **SHAPE)
    options = parse_options(token_embedding_type="IQ2_XS")
    with open_gguf(source) as opened, pytest.raises(UsageError, match=r"token_embd\.weight: IQ2_XS in Q4_K_M needs"):
        write_model(gguf_source(opened), tmp_path / "out.gguf", "Q4_K_M", options=options)
