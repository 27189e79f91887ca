"""What changes of routing cost: against divergences computed row by row, and with routers put back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.engine.experiments import ABLATIONS, Setting, ablate, ablated, compare, costs, router_rows
from localmoe.engine.health import SHUFFLED, check_routers
from localmoe.engine.recorder import record_text
from localmoe.errors import BadInputError, UsageError
from tests.tiny import write_tiny

IDS = np.random.default_rng(0).integers(3, 250, 60).tolist()


@pytest.fixture
def model(tmp_path: Path) -> localmoe.Model:
    return localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=40, n_threads=1)


def naive_kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(softmax(p) || softmax(q)) of one token, by the definition."""
    a, b = np.exp(p.astype(np.float64)), np.exp(q.astype(np.float64))
    a, b = a / a.sum(), b / b.sum()
    return float(sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)))


def test_costs_equal_a_row_by_row_computation_over_windows(model: localmoe.Model) -> None:
    found = costs(model, IDS, {"one": Setting({"n_expert_used": 1}), "same": Setting()})
    kl, nll, same = [], 0.0, 0
    for window in (IDS[:40], IDS[40:]):
        own, other = model.eval(window).logits, model.eval(window, n_expert_used=1).logits
        kl += [naive_kl(p, q) for p, q in zip(own, other, strict=True)]
        same += int((own.argmax(1) == other.argmax(1)).sum())
        for row, following in zip(other[:-1].astype(np.float64), window[1:], strict=True):
            nll += math.log(np.exp(row).sum()) - row[following]
    one = found["one"]
    assert one.n == 60
    assert one.mean_kl == pytest.approx(np.mean(kl), rel=1e-6)
    assert one.kl_error == pytest.approx(np.std(kl) / math.sqrt(59), rel=1e-6)
    assert one.same_top == same / 60
    assert one.perplexity == pytest.approx(math.exp(nll / 58), rel=1e-6)
    assert found["same"].mean_kl == 0.0
    assert found["same"].same_top == 1.0


def test_the_skipped_share_is_measured(model: localmoe.Model) -> None:
    found = costs(model, IDS, {"first": Setting({"expert_threshold": 1.0})})
    assert found["first"].skipped == 0.5
    assert found[""].skipped == 0.0


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"expert_threshold": 0.45}, (2, 2)),
        ({"n_expert_used": 4, "expert_threshold": 0.2}, (4, 4)),
        ({"n_expert_used": [1, 3]}, (1, 3)),
        ({"n_expert_used": [4, 2], "expert_threshold": 0.2}, (4, 2)),
        ({"leave_out": {1: [0, 1, 2, 3, 4, 5, 6]}}, (2, 2)),
    ],
)
def test_the_skipped_share_is_that_of_the_choices_each_layer_was_asked_for(
    model: localmoe.Model, options: dict[str, Any], asked: tuple[int, int]
) -> None:
    """Counted from the gate weights themselves, for the text and in its recording layer by layer."""
    ran = np.concatenate([(model.eval(w, **options).weights > 0).sum(axis=2) for w in (IDS[:40], IDS[40:])])
    found = costs(model, IDS, {"it": Setting(options)})["it"]
    assert found.skipped == pytest.approx(1 - ran.sum() / (len(IDS) * sum(asked)))
    figures = record_text(model, IDS, **options).statistics().layers()
    np.testing.assert_allclose(figures.skipped, 1 - ran.sum(axis=0) / (len(IDS) * np.array(asked)))


def test_replaced_routers_are_what_they_say(model: localmoe.Model) -> None:
    rows = router_rows(model, 1)
    assert set(ABLATIONS) == {"uniform", "random", "shuffled"}
    shuffled = ablated(model, 1, "shuffled").routers[1]
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, rows))
    assert not (shuffled == rows).all(axis=1).any()
    drawn = ablated(model, 1, "random").routers[1]
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(drawn, ablated(model, 1, "random").routers[1])
    uniform = ablated(model, 1, "uniform")
    assert uniform.options == {"n_expert_used": [2, 8]}
    model.session().replace_router(1, uniform.routers[1])
    got = model.eval(IDS[:5], **uniform.options)
    np.testing.assert_allclose(got.weights[:, 1], 1 / 8, rtol=1e-6)
    assert (got.experts[:, 0, 2:] == -1).all()


def test_ablation_leaves_the_model_as_it_was(model: localmoe.Model) -> None:
    before = model.eval(IDS[:30]).logits
    own, found = ablate(model, IDS[:30])
    assert own.mean_kl == 0.0
    assert {kind: len(row) for kind, row in found.items()} == dict.fromkeys(ABLATIONS, 2)
    assert all(cost.mean_kl > 0 for row in found.values() for cost in row)
    np.testing.assert_array_equal(model.eval(IDS[:30]).logits, before)


def test_two_settings_side_by_side(model: localmoe.Model) -> None:
    first, second = {"n_expert_used": 1}, {"leave_out": {0: [0, 1]}}
    a, b, run_a, run_b = compare(model, IDS, first, second)
    assert model.session().routing.describe(8) == "top-2 of 8"
    assert a.mean_kl == 0.0
    assert b.mean_kl > 0
    wanted = [model.eval(w, **second).experts for w in (IDS[:40], IDS[40:])]
    np.testing.assert_array_equal(run_b.experts, np.concatenate(wanted))
    assert run_a.experts.shape == (60, 2, 1)
    assert (run_a.settings, run_b.settings) == ("top-1 of 8", "top-2 of 8, 0:0,1 left out")


def test_a_biased_router_is_found_out(tmp_path: Path) -> None:
    """Rows 0 and 1 alike; one expert wins everything: the report says so."""
    rows = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    rows[1] = rows[0] * 1.01
    path = write_tiny(tmp_path / "m.gguf", favoured=6, extra_tensors={"blk.1.ffn_gate_inp.weight": rows})
    with localmoe.load(str(path), n_ctx=64) as model:
        found = check_routers(model, IDS)
    assert found.layers[1].alike == ((0, 1),)
    assert 6 in found.layers[0].usual_set
    text = "\n".join(found.lines())
    assert "nearly alike in 1 of 2 layers (above 0.99): experts 0 and 1" in text
    assert "top-1 instead of 2" in text
    assert "top-3 instead of 2" in text
    assert found.as_json()["costs"][SHUFFLED]["kl"] > 0


def test_models_that_cannot_be_asked(tmp_path: Path) -> None:
    with localmoe.load(str(write_tiny(tmp_path / "d.gguf", n_expert=0)), n_ctx=64) as dense:
        with pytest.raises(UsageError, match="no experts"):
            costs(dense, IDS, {})
        assert BadInputError.exit_code == 3
