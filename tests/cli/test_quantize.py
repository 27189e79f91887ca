"""`localmoe quantize` from the command line: what it writes, prints and answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localmoe.cli import main
from localmoe.gguf_file import open_gguf
from tests.tiny import tiny_weights, write_tiny

SHAPE = {"n_embd": 256, "n_ff": 256, "n_layer": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "in.gguf", type="F16", **SHAPE)


def quantize(*arguments: str | Path) -> int:
    return main(["quantize", *map(str, arguments)])


def test_it_writes_and_says_so_on_stderr(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert quantize(source, out, "q4_k_m", "-t", "1") == 0
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("compiling")]
    assert lines[0].startswith("converting tensors: ")
    assert lines[1].startswith(f"{out}: Q4_K_M, ")
    with open_gguf(out) as written:
        assert written.tensors["blk.0.attn_v.weight"].type.name == "Q8_0"
        assert written.tensors["blk.0.attn_q.weight"].type.name == "Q4_K"


def test_dry_run_prints_types_sizes_and_a_total(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(source, tmp_path / "out.gguf", "Q6_K", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["output.weight", "256", "x", "379", "F16", "->", "Q6_K", "0.08", "MiB"]
    assert any(line.split()[:6] == ["blk.0.ffn_gate_exps.weight", "256", "x", "256", "x", "8"] for line in lines)
    assert lines[-1].startswith("total: ")
    assert list(tmp_path.iterdir()) == []


def test_options_choose_types(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    options = ["--tensor-type", r"attn_q\.=Q5_0", "--output-tensor-type", "Q8_0", "--token-embedding-type", "F16"]
    assert quantize(source, out, "Q4_K_M", "--pure", *options) == 0
    with open_gguf(out) as written:
        types = {name: info.type.name for name, info in written.tensors.items()}
    assert types["blk.1.attn_q.weight"] == "Q5_0"
    assert types["output.weight"] == "Q8_0"
    assert types["token_embd.weight"] == "F16"
    assert types["blk.1.attn_v.weight"] == types["blk.1.ffn_down_exps.weight"] == "Q4_K"
    assert quantize(source, out, "IQ4_XS", "--leave-output-tensor") == 0
    with open_gguf(out) as written:
        types = {name: info.type.name for name, info in written.tensors.items()}
    assert (types["output.weight"], types["blk.1.attn_q.weight"]) == ("F16", "IQ4_XS")


def test_fallbacks_are_announced_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 23."""
    assert quantize(write_tiny(tmp_path / "in.gguf", n_embd=64, n_ff=96), tmp_path / "out.gguf", "Q6_K") == 0
    expected = "blk.0.attn_q.weight: rows of 64 do not divide into blocks of 256 (Q6_K): Q8_0 instead"
    assert expected in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{in}", "{out}", "Q9"], "error: unknown file type, got Q9, expected one of F32, F16, "),
        (["{in}", "{in}", "Q8_0"], "error: {in}: input and output are the same file"),
        (["{in}", "{out}", "Q8_0", "--tensor-type", "attn_q"], "error: --tensor-type, got 'attn_q', expected RE=TYPE"),
        (["{in}", "{out}", "Q8_0", "--tensor-type", "(=Q8_0"], "error: not a regular expression: "),
        (["{in}", "{out}", "Q8_0", "--tensor-type", "a=Q7"], "error: unknown tensor type, got Q7, expected one of F32"),
        (["{in}", "{out}", "Q8_0", "--output-tensor-type", "Q8_K"], "error: unknown tensor type, got Q8_K"),
        (["{in}", "{out}", "Q8_0", "--output-tensor-type", "IQ1_S"], "error: {in}: output.weight: IQ1_S in Q8_0 needs"),
    ],
)
def test_usage_errors(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    names = {"{in}": str(source), "{out}": str(tmp_path / "out.gguf")}
    assert quantize(*(names.get(a, a) for a in arguments)) == 2
    assert capsys.readouterr().err.startswith(said.replace("{in}", str(source)))
    assert list(tmp_path.iterdir()) == []


def test_requantizing_without_the_flag(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 24."""
    q8, out = tmp_path / "q8.gguf", tmp_path / "out.gguf"
    assert quantize(source, q8, "Q8_0") == 0
    assert quantize(q8, out, "Q4_K_M") == 2
    assert "--allow-requantize" in capsys.readouterr().err
    assert not out.exists()
    assert quantize(q8, out, "Q4_K_M", "--allow-requantize") == 0


def test_bad_input_is_one_line_and_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows 16 and 22."""
    weights = tiny_weights(**SHAPE)
    weights["blk.1.attn_q.weight"][3, 4] = np.nan
    nan = write_tiny(
        tmp_path / "nan.gguf", extra_tensors={"blk.1.attn_q.weight": weights["blk.1.attn_q.weight"]}, **SHAPE
    )
    part = write_tiny(tmp_path / "part.gguf", drop_tensors=["blk.1.ffn_up_exps.weight"], **SHAPE)
    out = tmp_path / "out.gguf"
    assert quantize(nan, out, "Q4_K_M") == 3
    wanted = f"error: {nan}: blk.1.attn_q.weight: NaN or infinity at index {3 * 256 + 4}, expected finite weights"
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("compiling")] == [wanted]
    assert quantize(part, out, "Q4_K_M") == 3
    assert capsys.readouterr().err.startswith(f"error: {part}: blk.1.ffn_up_exps.weight: the tensor is missing")
    assert not out.exists()


def test_missing_files_are_4(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", "Q8_0") == 4
    assert quantize(source, tmp_path / "none" / "out.gguf", "Q8_0") == 4
    assert len(capsys.readouterr().err.splitlines()) == 2
