"""Writing a model: bytes, order, metadata, and what is left when it fails."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from localmoe.converters import gguf_source as gguf_source_module
from localmoe.converters import pipeline
from localmoe.converters.convert_rows import Rows, convert
from localmoe.converters.gguf_source import gguf_source
from localmoe.converters.pipeline import WriteReport, write_model
from localmoe.converters.source import SourceModel, SourceTensor, row_runs
from localmoe.errors import BadInputError, FileError, UsageError
from localmoe.gguf_file import open_gguf
from localmoe.progress import Silent
from tests.tiny import encode_tiny, tiny_weights, write_tiny

SHAPE = {"n_embd": 256, "n_ff": 256, "n_layer": 2}


def quantize(source: Path, out: Path, file_type: str, **options: object) -> WriteReport:
    with open_gguf(source) as opened:
        return write_model(gguf_source(opened), out, file_type, **options)  # type: ignore[arg-type]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "in.gguf", type="BF16", **SHAPE)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A good file that stands where the output goes."""
    path = tmp_path / "out.gguf"
    path.write_bytes(b"the old file")
    return path


def only_old_is_left(old: Path) -> bool:
    return old.read_bytes() == b"the old file" and os.listdir(old.parent) == [old.name]


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q6_K"])
def test_every_tensor_is_ggmls(tmp_path: Path, stored: str, file_type: str) -> None:
    """Each tensor's bytes are those of ggml's encoder for the weights as the source holds them."""
    fields = SHAPE | {"type": stored, "n_layer": 1}
    out = tmp_path / "out.gguf"
    quantize(write_tiny(tmp_path / "in.gguf", **fields), out, file_type)
    weights = tiny_weights(**fields)
    with open_gguf(out) as written:
        assert set(written.tensors) == set(weights)
        for name, info in written.tensors.items():
            kind = Type.F32 if len(info.shape) == 1 or "gate_inp" in name else Type[stored]
            held = gguf.quants.dequantize(encode_tiny(weights[name], kind).view(np.uint8), kind)
            wanted = encode_tiny(held.reshape(info.shape), info.type).reshape(-1).view(np.uint8)
            np.testing.assert_array_equal(written.raw(name), wanted, err_msg=name)


def test_metadata_is_copied_and_the_file_type_comes_last(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantize(source, out, "Q5_K_S")
    with open_gguf(source) as before, open_gguf(out) as after:
        last = {"general.quantization_version": 2, "general.file_type": 16}
        assert list(after.metadata) == [k for k in before.metadata if k not in last] + list(last)
        assert {k: after.metadata[k] for k in last} == last
        assert after.metadata["tokenizer.ggml.tokens"] == before.metadata["tokenizer.ggml.tokens"]
        assert after.metadata_types["tokenizer.ggml.scores"] == before.metadata_types["tokenizer.ggml.scores"]
        assert (after.version, after.alignment) == (3, 32)


@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_the_key_of_the_alignment_stays_where_it_is_true(tmp_path: Path, alignment: int) -> None:
    """llama-quantize copies it, and what it writes is aligned at 32, as here."""
    source = write_tiny(tmp_path / "m.gguf", alignment=alignment)
    for file_type in ("Q8_0", "COPY"):
        quantize(source, tmp_path / "out.gguf", file_type)
        with open_gguf(source) as before, open_gguf(tmp_path / "out.gguf") as out:
            assert before.metadata["general.alignment"] == alignment
            assert out.alignment == 32
            assert out.metadata.get("general.alignment") == (32 if alignment == 32 else None)


def test_gguf_pys_reader_agrees(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = quantize(source, out, "Q4_K_M")
    reader = gguf.GGUFReader(out)
    assert [t.name for t in reader.tensors] == [row.name for row in report.tensors]
    assert [int(t.n_bytes) for t in reader.tensors] == [row.n_bytes for row in report.tensors]
    assert out.stat().st_size == report.n_bytes


def test_a_split_source_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    part = write_tiny(tmp_path / "split.gguf", split_max_tensors=7, type="BF16", **SHAPE)
    part = next(tmp_path.glob("split-00001-of-*.gguf"), part)
    quantize(part, tmp_path / "a.gguf", "Q4_K_M")
    quantize(source, tmp_path / "b.gguf", "Q4_K_M")
    assert digest(tmp_path / "a.gguf") == digest(tmp_path / "b.gguf")


def test_threads_and_pieces_do_not_change_a_byte(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(source, tmp_path / "a.gguf", "Q4_K_M", n_threads=1)
    monkeypatch.setattr("localmoe.converters.gguf_source._PIECE_BYTES", 3000)
    monkeypatch.setattr("localmoe.converters.convert_rows.CHUNK", 768)
    quantize(source, tmp_path / "b.gguf", "Q4_K_M", n_threads=3)
    assert digest(tmp_path / "a.gguf") == digest(tmp_path / "b.gguf")


def test_an_expert_has_a_piece_of_its_own(source: Path) -> None:
    with open_gguf(source) as opened:
        model = gguf_source(opened)
        stack = next(t for t in model.tensors if "ffn_up_exps" in t.name)
        rows = [piece() for piece in stack.pieces]
        assert [r.shape for r in rows] == [(256, 256)] * 8
        assert rows[0].dtype == np.uint16


def test_row_runs_cover_rows_once() -> None:
    assert list(row_runs(7, 10, limit=25)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert list(row_runs(2, 100, limit=25)) == [(0, 1), (1, 2)]


def test_copy_keeps_every_byte(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q.gguf", "Q4_K_M")
    quantize(tmp_path / "q.gguf", tmp_path / "copy.gguf", "COPY")
    assert digest(tmp_path / "q.gguf") == digest(tmp_path / "copy.gguf")


def test_dry_run_writes_nothing_and_says_the_size(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out.gguf", "Q4_K_M", dry_run=True)
    assert os.listdir(tmp_path) == []
    assert report.n_bytes == quantize(source, tmp_path / "out.gguf", "Q4_K_M").n_bytes


def test_fallbacks_are_announced(tmp_path: Path) -> None:
    said: list[str] = []
    narrow = write_tiny(tmp_path / "in.gguf", n_embd=64, n_ff=96)
    report = quantize(narrow, tmp_path / "out.gguf", "Q4_K_M", notify=said.append)
    assert tuple(line for line in said if not line.startswith("compiling")) == report.notices
    assert "blk.0.attn_q.weight: rows of 64 do not divide into blocks of 256 (Q4_K): Q5_0 instead" in said


def test_progress_counts_every_byte_of_the_source(source: Path, tmp_path: Path) -> None:
    class Counter:
        total = done = finished = 0

        def start(self, total_bytes: int, label: str) -> None:  # noqa: ARG002
            self.total = total_bytes

        def advance(self, n: int) -> None:
            self.done += n

        def finish(self) -> None:
            self.finished += 1

    counter = Counter()
    quantize(source, tmp_path / "out.gguf", "Q8_0", progress=counter)
    assert (counter.done, counter.finished) == (counter.total, 1)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("file_type", ["F16", "BF16", "Q4_K_M", "F32"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_found(old: Path, tmp_path_factory: pytest.TempPathFactory, stored: str, file_type: str,
                                    value: float) -> None:  # fmt: skip
    """Row 16: tensor and first flat index, in the second expert and not only in the first."""
    weights = tiny_weights(type=stored, **SHAPE)
    name = "blk.1.ffn_up_exps.weight"
    weights[name].reshape(-1)[[70001, 70002]] = value
    bad = write_tiny(
        tmp_path_factory.mktemp("bad") / "in.gguf", extra_tensors={name: weights[name]}, type=stored, **SHAPE
    )
    with pytest.raises(BadInputError, match=rf"in\.gguf: {name}: NaN or infinity at index 70001, expected finite"):
        quantize(bad, old, file_type)
    assert only_old_is_left(old)


def test_a_value_too_large_for_the_type(old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = tiny_weights(**SHAPE)
    name = "blk.0.attn_q.weight"
    weights[name].reshape(-1)[5] = 1e6
    big = write_tiny(tmp_path_factory.mktemp("big") / "in.gguf", extra_tensors={name: weights[name]}, **SHAPE)
    with pytest.raises(BadInputError, match=f"{name}: value at index 5 is too large for F16"):
        quantize(big, old, "F16")
    assert only_old_is_left(old)


def test_input_and_output_the_same_file(source: Path, tmp_path: Path) -> None:
    """Row 21: by its name, by a symbolic link and by a hard link."""
    copy = tmp_path / "in.gguf"
    copy.write_bytes(source.read_bytes())
    before = digest(copy)
    (tmp_path / "link.gguf").symlink_to(copy)
    os.link(copy, tmp_path / "hard.gguf")
    for name in ("in.gguf", "link.gguf", "hard.gguf"):
        for given in (copy, tmp_path / "link.gguf"):
            with pytest.raises(UsageError, match="same file"):
                quantize(given, tmp_path / name, "Q8_0")
    assert digest(copy) == before


def test_a_part_of_a_split_input_is_not_written_over(tmp_path: Path) -> None:
    write_tiny(tmp_path / "split.gguf", split_max_tensors=7, **SHAPE)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 1
    with pytest.raises(UsageError, match="same file"):
        quantize(parts[0], parts[-1], "Q8_0")


def test_requantizing_must_be_asked_for(source: Path, tmp_path: Path, old: Path) -> None:
    """Row 24. Tensors that keep their type are no requantizing: Q8_0 to Q8_0 passes."""
    q8 = tmp_path / "q8" / "q8.gguf"
    q8.parent.mkdir()
    quantize(source, q8, "Q8_0")
    with pytest.raises(UsageError, match=r"quantized already.*--allow-requantize.*got Q8_0"):
        quantize(q8, old, "Q4_K_M")
    assert old.read_bytes() == b"the old file"
    quantize(q8, old, "Q8_0")
    assert digest(old) == digest(q8)
    quantize(q8, old, "Q4_K_M", allow_requantize=True)
    with open_gguf(old) as written, open_gguf(q8) as held:
        name = "blk.0.ffn_up_exps.weight"
        values = gguf.quants.dequantize(held.raw(name), Type.Q8_0).reshape(-1, 256)
        np.testing.assert_array_equal(written.raw(name), encode_tiny(values, Type.Q4_K).reshape(-1))


@pytest.mark.parametrize("missing", ["blk.1.ffn_up_exps.weight", "token_embd.weight", "blk.0.ffn_gate_inp.weight"])
def test_an_incomplete_model_is_refused(old: Path, tmp_path_factory: pytest.TempPathFactory, missing: str) -> None:
    """Row 22."""
    part = write_tiny(tmp_path_factory.mktemp("part") / "in.gguf", drop_tensors=[missing], **SHAPE)
    with pytest.raises(BadInputError, match=missing.replace(".", r"\.")):
        quantize(part, old, "Q8_0")
    assert only_old_is_left(old)


def test_rows_that_are_not_all_there(old: Path) -> None:
    half = SourceTensor("blk.0.x.weight", (4, 256), Type.F32, [lambda: np.zeros((2, 256), np.float32)])
    with pytest.raises(BadInputError, match=r"rows are not all there, got 512 elements, expected 1024"):
        write_model(SourceModel({}, [half], 0, 1, "half"), old, "F32")
    assert only_old_is_left(old)


def test_targets_that_cannot_be(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not a regular file"):
        quantize(source, tmp_path, "Q8_0")
    with pytest.raises(FileError, match="folder does not exist"):
        quantize(source, tmp_path / "none" / "out.gguf", "Q8_0")


def test_few_pieces_are_in_memory_at_once(tmp_path: Path) -> None:
    """At most one piece more than threads is read ahead of the one that is being written.

    A thread that is done with one may hold it until it is next given a core.
    """
    alive = most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def piece() -> np.ndarray:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return np.zeros((16, 256), np.float32).view(Counted)

    tensor = SourceTensor("blk.0.x.weight", (16 * 40, 256), Type.F32, [piece] * 40)
    model = SourceModel({}, [tensor], 0, 1, "counted")
    write_model(model, tmp_path / "out.gguf", "Q8_0", n_threads=2)
    assert most <= 4 + 2


def test_reading_encoding_and_writing_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a piece is written, the next is encoded and the one after it read, with one thread for each."""
    n_pieces = 40
    ahead, done = {"write": 0, "encode": 1, "read": 2}, dict.fromkeys(("write", "encode", "read"), 0)
    all_three = [threading.Barrier(3, timeout=240) for _ in range(n_pieces - 2)]

    def meet(stage: str) -> None:
        at = done[stage] - ahead[stage]
        done[stage] += 1
        if 0 <= at < len(all_three):
            all_three[at].wait()

    def piece() -> np.ndarray:
        meet("read")
        return np.zeros((16, 256), np.float32)

    def encode(*arguments: Any) -> Rows:
        meet("encode")
        return convert(*arguments)

    class Slow(Silent):  # the writer tells it after each piece
        def advance(self, n: int) -> None:  # noqa: ARG002
            meet("write")

    monkeypatch.setattr(pipeline, "convert", encode)
    tensor = SourceTensor("blk.0.x.weight", (16 * n_pieces, 256), Type.F32, [piece] * n_pieces)
    write_model(SourceModel({}, [tensor], 0, 1, "slow"), tmp_path / "out.gguf", "F16", n_threads=1, progress=Slow())
    assert done == dict.fromkeys(done, n_pieces)


def test_the_report_names_what_was_written(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out.gguf", "q8_0")
    assert (report.file_type, report.path) == ("Q8_0", tmp_path / "out.gguf")
    assert 8.5 <= report.bits_per_weight < 9
    row = next(row for row in report.tensors if row.name == "token_embd.weight")
    assert (row.source_type, row.type, row.n_bytes * 32) == (Type.BF16, Type.Q8_0, row.source_bytes * 17)
    assert replace(report, seconds=0).notices == ()
    assert pipeline.QUANTIZATION_VERSION == gguf.GGML_QUANT_VERSION


def test_compiling_is_announced_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for new, wanted in ((True, ["compiling the encoders, this first time only ..."]), (False, [])):
        said: list[str] = []
        monkeypatch.setattr("localmoe.converters.convert_rows.needs_compiling", lambda types, new=new: new)
        quantize(source, tmp_path / "out.gguf", "Q8_0", notify=said.append)
        assert said == wanted


def test_pages_of_the_source_are_given_back(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map's pages behind the reading are dropped, whole ones only; what is read again is still the same."""
    given: list[tuple[int, int]] = []
    real = gguf_source_module._give_back

    def count(pages: mmap.mmap, start: int, stop: int) -> None:
        given.append((start, stop))
        real(pages, start, stop)

    monkeypatch.setattr(gguf_source_module, "_PIECE_BYTES", 20_000)
    monkeypatch.setattr(gguf_source_module, "_give_back", count)
    quantize(source, tmp_path / "a.gguf", "Q8_0")
    monkeypatch.undo()
    quantize(source, tmp_path / "b.gguf", "Q8_0")
    assert sum(stop - start for start, stop in given) > source.stat().st_size // 2
    assert digest(tmp_path / "a.gguf") == digest(tmp_path / "b.gguf")
