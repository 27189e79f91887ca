"""Files made with llama-quantize's options against its digests, recorded by tests/parity/quantize_options.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localmoe.cli import main
from localmoe.gguf_file import open_gguf
from tests.parity.quantize_options import CASES, DIGESTS, EXPERTS, MATRIX, TYPES, WHOLE, make_source, ours

RECORDED = json.loads(DIGESTS.read_text())


@pytest.fixture(scope="module", params=EXPERTS, ids=lambda n: f"{n} experts")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_source(tmp_path_factory.mktemp("source"), request.param), f"{request.param} experts"


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_files_are_llama_quantizes(
    source: tuple[Path, str], case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and bytes of all files, metadata included."""
    monkeypatch.chdir(source[0])
    assert ours(case) == RECORDED[source[1]][" ".join(case)]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_source(tmp_path_factory.mktemp("source"), 4)
    monkeypatch.chdir(made)
    return made


REFUSED = {
    "--override-kv a=int:x": "error: --override-kv: a is no int, got 'x', expected a whole number from 0 to 4294967295",
    "--override-kv a=int:-1": "error: --override-kv: a is no int, got '-1', expected a whole number from 0 to",
    "--override-kv a=float:nan": "error: --override-kv: a is no float, got 'nan', expected a number",
    "--override-kv a=bool:1": "error: --override-kv: a is no bool, got '1', expected true or false",
    f"--override-kv a=str:{'x' * 128}": "error: --override-kv: a is no str, got ",
    "--override-kv a": "error: --override-kv: not a key and a value, got 'a', expected KEY=int:N, ",
    "--override-kv =int:1": "error: --override-kv: not a key and a value, got '=int:1'",
    "--override-kv a=i8:1": "error: --override-kv: not a key and a value, got 'a=i8:1'",
    "--override-kv a=int:1 --override-kv a=int:2": "error: --override-kv: one value a key, got a second one of a",
    "--override-kv general.alignment=int:64": "error: --override-kv: describes the file and not the model",
    "--override-kv llama.rope.freq_base=int:1": "error: --override-kv: llama.rope.freq_base is of another type in "
    f"{WHOLE}, got int, expected float",
    "--override-kv tokenizer.ggml.tokens=int:1": "error: --override-kv: tokenizer.ggml.tokens is of another type",
    "--override-kv llama.expert_used_count=int:9": f"error: {WHOLE}: llama.expert_used_count: is out of range, got 9",
    "--override-kv llama.block_count=int:9": f"error: {WHOLE}: blk.4.attn_norm.weight: the tensor is missing",
    "--prune-layers 4": f"error: {WHOLE}: --prune-layers: no such layer, got 4, expected 0 to 3",
    "--prune-layers 0,1,2,3": f"error: {WHOLE}: --prune-layers: would leave no layer",
    "--prune-layers 1-2": "error: --prune-layers: not layers, got '1-2', expected numbers, as 3,4,5",
    "--prune-layers ,": "error: --prune-layers: not layers",
    "--include-weights attn": "error: --include-weights: of which importance matrix?, expected --imatrix FILE",
    f"--imatrix {MATRIX} --include-weights a --exclude-weights b": "error: --include-weights: not beside --exclude-",
    f"--imatrix {MATRIX} --include-weights nothing": f"error: {MATRIX}: --include-weights: nothing is left",
    f"--imatrix {MATRIX} --exclude-weights blk": f"error: {MATRIX}: --exclude-weights: nothing is left",
    "--tensor-type-file none.txt": "error: none.txt: No such file",
    f"--tensor-type-file {MATRIX}": f"error: {MATRIX}: byte ",
    "--tensor-type-file words.txt": "error: words.txt: --tensor-type-file, got 'attn_q', expected RE=TYPE",
}


def test_wrong_values_are_refused_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says what; nothing is written."""
    Path("words.txt").write_text("attn_q Q8_0")
    before = sorted(folder.iterdir())
    for options, said in REFUSED.items():
        capsys.readouterr()
        assert main(["quantize", *options.split(), WHOLE, "out.gguf", "Q8_0"]) in (2, 3, 4), options
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(said), line
        assert sorted(folder.iterdir()) == before


def test_a_file_of_types_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 21."""
    before = Path(TYPES).read_bytes()
    assert main(["quantize", "--tensor-type-file", TYPES, WHOLE, TYPES, "Q8_0"]) == 2
    assert capsys.readouterr().err == f"error: {TYPES}: input and output are the same file\n"
    assert Path(TYPES).read_bytes() == before


def test_types_of_files_and_options_count_in_order(folder: Path) -> None:
    for options, wanted in (("file option", "Q5_0"), ("option file", "Q2_K")):
        both = {"file": ["--tensor-type-file", TYPES], "option": ["--tensor-type", "attn_q=q2_k"]}
        first, second = options.split()
        assert main(["quantize", *both[first], *both[second], WHOLE, "out.gguf", "Q8_0"]) == 0
        with open_gguf(Path("out.gguf")) as gguf:
            assert gguf.tensors["blk.0.attn_q.weight"].type.name == wanted


def test_names_that_an_importance_matrix_lacks_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--imatrix", MATRIX, "--exclude-weights", "lm_head", WHOLE, "out.gguf", "Q8_0"]) == 0
    assert "note: --exclude-weights: the importance matrix has nothing named lm_head\n" in capsys.readouterr().err


def test_a_dry_run_tells_what_writing_would_need(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--dry-run", WHOLE, "IQ2_XS"]) == 0
    said = capsys.readouterr()
    assert "needs an importance matrix: --imatrix FILE" in said.err
    assert said.out.splitlines()[-1].startswith("total: ")
    assert main(["quantize", WHOLE, "q8.gguf", "Q8_0"]) == 0
    assert main(["quantize", "--dry-run", "q8.gguf", "Q4_K_M"]) == 0
    assert "--allow-requantize" in capsys.readouterr().err
    assert not list(folder.glob("ggml-model*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: which file type?, expected IN.gguf [OUT.gguf] TYPE, as Q4_K_M"),
        (["out.gguf"], "error: which file type?"),
        (["Q8_0", "x"], "error: not a number of threads, got 'x', expected a whole number"),
        (["Q8_0", "2", "3"], "error: too many arguments, got '3', expected IN.gguf TYPE THREADS"),
        (["out.gguf", "Q8_0", "-2"], "error: "),
    ],
)
def test_arguments_that_are_none(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["quantize", WHOLE, *arguments]) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not list(folder.glob("out*"))
