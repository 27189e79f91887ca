"""Checkpoints to GGUF: whole files against llama.cpp's converter (recorded), both expert layouts, and the command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from localmoe.cli.app import main
from localmoe.converters.huggingface import load_source
from localmoe.converters.pipeline import write_model
from localmoe.converters.source import SourceModel
from localmoe.errors import BadInputError, FileError, UsageError
from tests.checkpoint_variants import VARIANTS
from tests.checkpoints import CASES, Tiny, checkpoint_weights, write_checkpoint
from tests.parity.convert_parity import metadata_of

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "convert.json").read_text(encoding="utf-8"))
TINY_MOE = Path(__file__).parents[2].parent / "shared" / "data" / "tiny-moe"
TYPES = ("F32", "F16", "BF16", "Q8_0")


def quiet(line: str) -> None:
    """A warning nobody waits for."""


def read(model: SourceModel) -> dict[str, np.ndarray]:
    """Every tensor's values as float32, by name."""
    values = {}
    for tensor in model.tensors:
        rows = np.concatenate([piece() for piece in tensor.pieces])
        if tensor.type == GGMLQuantizationType.BF16:
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        values[tensor.name] = rows.astype(np.float32).reshape(tensor.shape)
    return values


def sources(tmp_path: Path, name: str) -> Path:
    """The checkpoint of a recorded case."""
    if name != "tiny-moe":
        return write_checkpoint(tmp_path / name, (CASES | VARIANTS)[name])
    if not TINY_MOE.is_dir():
        pytest.skip("../shared/data/tiny-moe is not here")
    return TINY_MOE


@pytest.mark.parametrize("name", RECORDED)
def test_files_equal_llama_cpps_converter(tmp_path: Path, name: str) -> None:
    """F32, F16, BF16 and Q8_0 files have the digest of convert_hf_to_gguf.py's; the F16 file's keys say why not."""
    source = sources(tmp_path, name)
    for kind in ("F16", *TYPES):
        out = tmp_path / "out.gguf"
        write_model(load_source(source, warn=quiet), out, kind, notify=quiet)
        if kind == "F16":
            assert list(metadata_of(out).items()) == list(RECORDED[name]["metadata"].items())
        assert hashlib.sha256(out.read_bytes()).hexdigest() == RECORDED[name]["sha256"][kind], kind


@pytest.mark.parametrize("name", [name for name, tiny in CASES.items() if tiny.family == "mixtral" and not tiny.dtypes])
def test_packed_experts_give_the_same_tensors(tmp_path: Path, name: str) -> None:
    """The layout of transformers 5 and mergekit, which llama.cpp's converter refuses, holds the same model."""
    split = read(load_source(write_checkpoint(tmp_path / "a", CASES[name]), warn=quiet))
    packed = read(load_source(write_checkpoint(tmp_path / "b", CASES[name], layout="packed"), warn=quiet))
    assert split.keys() == packed.keys()
    for tensor, values in split.items():
        np.testing.assert_array_equal(values, packed[tensor], err_msg=tensor)


def test_float64_becomes_float32(tmp_path: Path) -> None:
    """As with llama.cpp's converter; what float32 cannot hold is refused as infinite."""
    whole = read(load_source(write_checkpoint(tmp_path / "a", Tiny()), warn=quiet))
    source = load_source(write_checkpoint(tmp_path / "b", Tiny(dtype="F64")), warn=quiet)
    assert {tensor.type.name for tensor in source.tensors} == {"F32"}
    for tensor, values in read(source).items():
        np.testing.assert_array_equal(values, whole[tensor], err_msg=tensor)
    folder = rewrite(tmp_path / "b", lambda t: t.update({EXPERT: ("F64", (32, 64), np.full(2048, 1e300).tobytes())}))
    with pytest.raises(BadInputError, match=r"ffn_down_exps\.weight: NaN or infinity at index 6144"):
        write_model(load_source(folder, warn=quiet), tmp_path / "o.gguf", "F32", notify=quiet)


def test_each_expert_matrix_lands_in_its_place(tmp_path: Path) -> None:
    """w1 is gate, w2 down, w3 up; expert e is slice e; embeddings, norms and router stay as they are."""
    tiny = Tiny()
    weights = checkpoint_weights(tiny)
    tensors = read(load_source(write_checkpoint(tmp_path / "m", tiny), warn=quiet))
    for w, stem in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        for e in range(tiny.n_expert):
            wanted = weights[f"model.layers.1.block_sparse_moe.experts.{e}.{w}.weight"]
            np.testing.assert_array_equal(tensors[f"blk.1.ffn_{stem}_exps.weight"][e], wanted)
    for ours, theirs in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.ffn_gate_inp.weight", "model.layers.0.block_sparse_moe.gate.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
    ):
        np.testing.assert_array_equal(tensors[ours], weights[theirs])


def test_query_rows_become_interleaved_pairs(tmp_path: Path) -> None:
    """Row i of a head's first half and row i of its second become rows 2i and 2i + 1."""
    tiny = Tiny()
    weight = checkpoint_weights(tiny)["model.layers.0.self_attn.k_proj.weight"]
    ours = read(load_source(write_checkpoint(tmp_path / "m", tiny), warn=quiet))["blk.0.attn_k.weight"]
    head = tiny.n_embd // tiny.n_head
    for h in range(tiny.n_head_kv):
        for i in range(head // 2):
            np.testing.assert_array_equal(ours[h * head + 2 * i], weight[h * head + i])
            np.testing.assert_array_equal(ours[h * head + 2 * i + 1], weight[h * head + head // 2 + i])


def test_pieces_cut_between_heads_give_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces of at most 600 bytes every matrix is cut, and joins to the same values."""
    from localmoe.converters import huggingface, source

    folder = write_checkpoint(tmp_path / "m", Tiny(dtype="BF16", n_head=8, n_head_kv=4))
    whole = load_source(folder, warn=quiet)
    monkeypatch.setattr(huggingface, "row_runs", lambda rows, size: source.row_runs(rows, size, 600))
    cut = load_source(folder, warn=quiet)
    assert sum(len(t.pieces) for t in cut.tensors) > 3 * sum(len(t.pieces) for t in whole.tensors)
    values = read(cut)
    for name, expected in read(whole).items():
        np.testing.assert_array_equal(values[name], expected)


def test_vectors_and_router_are_float32_and_the_rest_as_stored(tmp_path: Path) -> None:
    """Types of the source's tensors in a BF16 checkpoint; a stack of mixed experts is F32."""
    folder = write_checkpoint(tmp_path / "m", Tiny(dtype="BF16", dtypes={"layers.1.block_sparse_moe.experts.2": "F16"}))
    types = {t.name: t.type.name for t in load_source(folder, warn=quiet).tensors}
    assert {name for name, kind in types.items() if kind == "F32"} == {
        "output_norm.weight",
        *(f"blk.{i}.{stem}.weight" for i in (0, 1) for stem in ("attn_norm", "ffn_norm", "ffn_gate_inp")),
        *(f"blk.1.ffn_{stem}_exps.weight" for stem in ("gate", "up", "down")),
    }
    assert types["blk.0.ffn_gate_exps.weight"] == types["token_embd.weight"] == "BF16"


def rewrite(folder: Path, change: Any) -> Path:
    """Change a checkpoint's tensors: `change` gets name -> encoded tensor and edits it."""
    from tests.checkpoints import encode, write_safetensors

    tensors = {name: encode("F32", x) for name, x in checkpoint_weights(Tiny()).items()}
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.self_attn.o_proj.weight"), "o_proj.weight: tensors are missing"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight: tensors are missing"),
        (lambda t: t.pop(EXPERT), "layer 1: missing model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        (lambda t: [t.pop(n) for n in list(t) if "layers.1.block_sparse_moe.experts.3" in n], "got 3, expected 4"),
        (lambda t: t.update({EXPERT: ("F32", (32, 32), bytes(4096))}), r"got \[32, 32\], expected \[32, 64\]"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": ("F32", (32,), bytes(128))}), "q_proj.bias"),
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": ("F32", (8,), bytes(32))}), "q_norm.weight"),
        (lambda t: t.update({"model.layers.7.input_layernorm.weight": ("F32", (32,), bytes(128))}), "layers.7"),
        (lambda t: t.update({EXPERT: ("I8", (32, 64), bytes(2048))}), "dtype is not read, got I8, expected F32"),
        (lambda t: t.update({"model.layers.1.mlp.experts.down_proj": ("F32", (4, 32, 64), bytes(32768))}), "layer 1"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_not_whole_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    """A tensor missing, of another shape or number, extra or in a dtype that is not read is named."""
    folder = rewrite(write_checkpoint(tmp_path / "m", Tiny()), change)
    with pytest.raises(BadInputError, match=message):
        load_source(folder, warn=quiet)


def test_recomputed_tensors_are_ignored(tmp_path: Path) -> None:
    """rotary_emb.inv_freq, which old checkpoints hold, is left out."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = rewrite(write_checkpoint(tmp_path / "m", Tiny()), lambda t: t.update({name: ("F32", (4,), bytes(16))}))
    assert len(load_source(folder, warn=quiet).tensors) == 3 + 2 * 10


def test_a_router_for_other_experts_is_refused(tmp_path: Path) -> None:
    """num_local_experts and the experts that are there must agree, in either layout."""
    with pytest.raises(BadInputError, match=r"layer 0: missing .*experts.4.w1.*got 4, expected 5"):
        load_source(write_checkpoint(tmp_path / "a", config={"num_local_experts": 5}), warn=quiet)
    with pytest.raises(BadInputError, match=r"gate_up_proj: wrong shape, got \[4, 128, 32\], expected \[7, 128, 32\]"):
        load_source(write_checkpoint(tmp_path / "b", layout="packed", config={"num_local_experts": 7}), warn=quiet)


def test_the_embedding_decides_the_vocabularys_size(tmp_path: Path) -> None:
    """config.json's vocab_size gives way to the embedding's rows, with a note."""
    notes: list[str] = []
    folder = write_checkpoint(tmp_path / "m", Tiny(n_vocab=300), config={"vocab_size": 290})
    model = load_source(folder, warn=notes.append)
    assert model.metadata["llama.vocab_size"].value == 300
    assert len(model.metadata["tokenizer.ggml.tokens"].value) == 300
    assert any("290" in note and "300" in note for note in notes)


def test_convert_prints_the_path_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout has the result's path; the file is of the type asked for."""
    out = tmp_path / "out.gguf"
    code = main(["convert", str(write_checkpoint(tmp_path / "m")), "-o", str(out), "--type", "Q8_0"])
    printed = capsys.readouterr()
    assert (code, printed.out) == (0, f"{out}\n")
    assert "Q8_0" in printed.err
    types = {t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types == {"F32", "Q8_0"}


def test_convert_takes_a_gguf_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GGUF source goes the way of quantize."""
    first, second = tmp_path / "f16.gguf", tmp_path / "q8.gguf"
    assert main(["convert", str(write_checkpoint(tmp_path / "m")), "-o", str(first), "--type", "F16"]) == 0
    assert main(["convert", str(first), "-o", str(second), "--type", "Q8_0"]) == 0
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    assert main(["convert", str(second), "-o", str(tmp_path / "no.gguf"), "--type", "Q4_0"]) == 2


def test_convert_takes_the_options_of_quantize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Types by name, output and embedding; --pure, and an output left as the checkpoint has it."""
    folder, out = write_checkpoint(tmp_path / "m"), tmp_path / "out.gguf"
    options = ["--pure", "--tensor-type", "attn_q=Q5_0", "--token-embedding-type", "F16", "--leave-output-tensor"]
    assert main(["convert", str(folder), "-o", str(out), "--type", "Q4_0", *options]) == 0
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.0.attn_v.weight"] == "Q4_0"
    assert types["token_embd.weight"] == "F16"
    assert types["output.weight"] in ("F32", "BF16", "F16")
    capsys.readouterr()
    assert main(["convert", str(folder), "-o", str(out), "--output-tensor-type", "Q9"]) == 2


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run lists the tensors and leaves no file."""
    folder = write_checkpoint(tmp_path / "m")
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--dry-run"]) == 0
    assert "blk.1.ffn_down_exps.weight" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_convert_does_not_write_over_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard as the output, also through a link, is a usage error and stays as it was."""
    folder = write_checkpoint(tmp_path / "m")
    shard = folder / "model.safetensors"
    before = shard.read_bytes()
    (tmp_path / "link.gguf").symlink_to(shard)
    for out in (shard, tmp_path / "link.gguf", folder / "config.json"):
        assert main(["convert", str(folder), "-o", str(out)]) == 2
        assert "same file" in capsys.readouterr().err
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--pre", "nonsense"], 2, "--pre: unknown pre-tokenizer"),
        (["--type", "Q9_X"], 2, "Q9_X"),
    ],
)
def test_usage_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """Exit code 2 and a line that names the option or value."""
    folder = write_checkpoint(tmp_path / "m")
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_folder_and_a_foreign_pre(tmp_path: Path) -> None:
    """FileError for no folder, UsageError for a pre-tokenizer that llama.cpp does not know."""
    with pytest.raises(FileError, match="no such folder"):
        load_source(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="unknown pre-tokenizer"):
        load_source(write_checkpoint(tmp_path / "m"), pre="gpt-99")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    """A weight that is no number ends the conversion with its tensor and index, and leaves no file."""

    def spoil(tensors: dict[str, Any]) -> None:
        dtype, shape, raw = tensors[EXPERT]
        values = np.frombuffer(raw, np.float32).copy()
        values[70] = value
        tensors[EXPERT] = (dtype, shape, values.tobytes())

    folder = rewrite(write_checkpoint(tmp_path / "m", Tiny()), spoil)
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--type", "F16"]) == 3
    assert f"blk.1.ffn_down_exps.weight: NaN or infinity at index {3 * 32 * 64 + 70}" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()


def test_reading_does_not_keep_the_checkpoint_resident() -> None:
    """Every piece of a checkpoint of 42 MB read: the process grows by less than half of it; a second read is equal."""
    if not TINY_MOE.is_dir():
        pytest.skip("../shared/data/tiny-moe is not here")
    program = (
        "import resource, sys, zlib; from pathlib import Path\n"
        "from localmoe.converters.huggingface import load_source\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load_source(Path(sys.argv[1])); before = peak()\n"
        "sums = [[zlib.crc32(p()) for t in model.tensors for p in t.pieces] for _ in range(2)]\n"
        "print(peak() - before, sums[0] == sums[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(TINY_MOE)], capture_output=True, text=True, check=True)
    grown, equal = done.stdout.split()
    assert equal == "True"
    assert int(grown) < 20_000  # KB


@pytest.mark.parametrize("name", ["tokenizer.model.v3", "tokenizer.model.v1"])
def test_a_numbered_sentencepiece_model_will_do(tmp_path: Path, name: str) -> None:
    """Mistral's own folders may have no other; it gives the vocabulary of the same file under its usual name."""
    folder = write_checkpoint(tmp_path / "m", Tiny(tokenizer="spm"))
    usual = load_source(folder, warn=quiet).metadata
    (folder / "tokenizer.model").rename(folder / name)
    assert load_source(folder, warn=quiet).metadata == usual


def test_a_missing_output_says_how_it_may_be_tied(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", Tiny(tied=True, config={"tie_word_embeddings": None}))
    with pytest.raises(
        BadInputError, match=r"lm_head\.weight: tensors are missing, expected .*tie_word_embeddings true"
    ):
        load_source(folder, warn=quiet)
