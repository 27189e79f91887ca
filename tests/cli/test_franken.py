"""`localmoe franken`: what goes to which stream, the report, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import localmoe
from localmoe.cli import main
from localmoe.converters import franken_report
from localmoe.converters.franken import build
from localmoe.converters.franken_recipe import read_recipe
from localmoe.converters.franken_report import describe, row_cosines
from localmoe.converters.imatrix import Entry, Imatrix, write_imatrix
from localmoe.gguf_file import open_gguf
from tests.tiny import write_tiny


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two experts of one model, the second with noise."""
    write_tiny(tmp_path / "a.gguf", n_expert=0)
    experts = [
        {"source_model": "a.gguf", "positive_prompts": ["the sun"], "label": "sun"},
        {"source_model": "a.gguf", "positive_prompts": ["moe is"], "noise_scale": 0.01},
    ]
    table = {"base_model": "a.gguf", "experts_per_token": 1, "experts": experts}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(table))
    return tmp_path / "recipe.yml"


def test_the_path_is_the_result_and_the_report_goes_to_stderr(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = recipe.with_name("out.gguf")
    assert main(["franken", str(recipe), "-o", str(out), "--type", "Q8_0"]) == 0
    shown, said = capfd.readouterr()
    assert shown == f"{out}\n"
    assert "router: hidden, 2 layers x 2 experts, 1 chosen per token" in said
    assert 'expert 0 "sun": chosen by ' in said
    assert "was not trained" in said
    with localmoe.load(str(out)) as model:
        assert model.config.n_expert_used == 1


def test_a_random_router_is_called_one(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of it came from prompts."""
    table = yaml.safe_load(recipe.read_text()) | {"gate_mode": "random"}
    recipe.write_text(yaml.safe_dump(table))
    assert main(["franken", str(recipe), "-o", str(recipe.with_name("out.gguf"))]) == 0
    said = capfd.readouterr().err
    assert "This router is random numbers" in said
    assert "made from prompts" not in said


def test_types_and_an_importance_matrix_as_in_quantize(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file is the one that `quantize` makes of the merge in F32 with the same options."""
    merged, direct, indirect = (recipe.with_name(name) for name in ("merged.gguf", "direct.gguf", "indirect.gguf"))
    assert main(["franken", str(recipe), "-o", str(merged), "--type", "F32", "--report", "none"]) == 0
    with open_gguf(merged) as opened:
        down = opened.tensors["blk.0.ffn_down_exps.weight"].shape
    sums = np.random.default_rng(1).random((down[0], down[-1]), np.float32)
    entry = Entry(sums, np.array([3, 5]))
    write_imatrix(Imatrix({"blk.0.ffn_down_exps.weight": entry}, ("text",), 2, 64), recipe.with_name("m.gguf"))
    options = ["--imatrix", str(recipe.with_name("m.gguf")), "--tensor-type", "attn_q=IQ4_NL", "--leave-output-tensor"]
    arguments = ["--type", "Q4_0", "--token-embedding-type", "Q8_0", *options]
    assert main(["franken", str(recipe), "-o", str(direct), "--report", "none", *arguments]) == 0
    assert main(["quantize", str(merged), str(indirect), "Q4_0", "--token-embedding-type", "Q8_0", *options]) == 0
    with open_gguf(direct) as mine, open_gguf(indirect) as other:
        assert mine.tensors["blk.0.attn_q.weight"].type.name == "IQ4_NL"
        for name, info in other.tensors.items():
            assert mine.tensors[name].type == info.type
            np.testing.assert_array_equal(mine.raw(name), other.raw(name), err_msg=name)


def test_the_report_as_json(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = recipe.with_name("out.gguf")
    assert main(["franken", str(recipe), "-o", str(out), "--type", "F32", "--report", "json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["path"] == str(out)
    assert [e["label"] for e in report["experts"]] == ["sun", "moe is"]
    assert [layer["most_alike"] for layer in report["layers"]] == [[0, 1], [0, 1]]
    for layer in range(2):
        uses = sum(e["uses"][layer] for e in report["experts"])
        assert uses == report["probe_tokens"]  # one expert a token
    assert report["same_weights"] == []


def test_a_dry_run_shows_the_plan(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = recipe.with_name("out.gguf")
    assert main(["franken", str(recipe), "-o", str(out), "--dry-run", "--type", "Q8_0"]) == 0
    assert "blk.0.ffn_gate_exps.weight" in capfd.readouterr().out
    assert not out.exists()


def test_notices_are_summed_up(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows of 64 fit no K-quant: one line a reason, not one a tensor."""
    assert main(["franken", str(recipe), "-o", str(recipe.with_name("out.gguf")), "--report", "none"]) == 0
    said = capfd.readouterr().err
    reason = "note: rows of 64 do not divide into blocks of 256 (Q4_K): Q5_0 instead (token_embd.weight, "
    assert said.count(reason.rpartition(" (")[0]) == 1


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("gate_mode: magic", 3, "recipe.yml: gate_mode: unknown gate mode, got 'magic'"),
        ("dtype: [", 3, "recipe.yml: is not valid YAML"),
        ("base_model: absent.gguf", 4, "absent.gguf: no such checkpoint folder or GGUF file"),
    ],
)
def test_failures_are_one_line(
    recipe: Path, capfd: pytest.CaptureFixture[str], change: str, code: int, message: str
) -> None:
    key = change.split(":")[0]
    kept = [line for line in recipe.read_text().splitlines() if not line.startswith(f"{key}:")]
    recipe.write_text("\n".join([change, *kept]))
    assert main(["franken", str(recipe), "-o", str(recipe.with_name("out.gguf"))]) == code
    shown, said = capfd.readouterr()
    assert shown == ""
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert message in said
    assert not recipe.with_name("out.gguf").exists()


def test_an_unknown_form_of_report(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["franken", str(recipe), "-o", str(recipe.with_name("out.gguf")), "--report", "xml"]) == 2
    assert "--report: unknown form of report, got 'xml', expected text, json or none" in capfd.readouterr().err


def test_help_teaches_a_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["franken", "--help"]) == 0
    shown = capfd.readouterr().out
    assert '        - "Once upon a time"' in shown


def test_cosines_are_those_of_the_rows() -> None:
    router = np.array([[[1, 0], [0, 2], [3, 3]]], np.float32)
    half = 2**-0.5
    np.testing.assert_allclose(row_cosines(router)[0], [[1, 0, half], [0, 1, half], [half, half, 1]], atol=1e-7)


def test_an_expert_that_nothing_reaches_is_named(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layer 1 expert 0's row looks at a channel that every token has at 4, so expert 1 is never chosen."""
    write_tiny(recipe.with_name("a.gguf"), n_expert=0, favoured=0)
    built = build(read_recipe(recipe, print), recipe.with_name("out.gguf"), "F32", notify=lambda _: None)
    write_tiny(recipe.with_name("out.gguf"), n_expert=2, n_expert_used=1, favoured=0)
    report = describe(built)
    assert report.reached is not None
    assert not report.reached.uses[:, 1].any()
    assert report.reached.own.tolist() == [1.0, 0.0]
    text = "\n".join(franken_report.lines(report))
    assert (
        'expert 1 "moe is": chosen by 0% of its own prompts\' tokens (chance: 50%); reached by nothing in every layer'
        in text
    )
    assert f"none of {report.reached.n_tokens} tokens (the recipe's prompts and 6 other texts)" in text


def test_copies_of_one_model_are_said_to_be_that(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("noise_scale: 0.01", "noise_scale: 0"))
    built = build(read_recipe(recipe, print), recipe.with_name("out.gguf"), "F32", notify=lambda _: None)
    text = "\n".join(franken_report.lines(describe(built)))
    assert "experts 0, 1 are the same weights: choosing among them changes nothing" in text
