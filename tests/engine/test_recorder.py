"""What is recorded is what `eval` says, whatever the trace's ring can hold."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.engine.recorder import record_generation, record_text, record_trace
from localmoe.errors import UsageError
from localmoe.experts.trace import RoutingTrace
from localmoe.experts.trace_file import load_recording
from tests.tiny import write_tiny

IDS = np.random.default_rng(0).integers(3, 250, 70).tolist()


@pytest.fixture
def model(tmp_path: Path) -> localmoe.Model:
    model = localmoe.load(str(write_tiny(tmp_path / "m.gguf")), n_ctx=32, n_threads=1)
    model.trace = model.session().trace = RoutingTrace(2, 8, capacity=10)
    return model


def test_a_text_longer_than_context_and_ring(model: localmoe.Model) -> None:
    got = record_text(model, IDS, leave_out={0: [1]})
    wanted = [model.eval(IDS[at : at + 32], leave_out={0: [1]}) for at in (0, 32, 64)]
    np.testing.assert_array_equal(got.tokens, IDS)
    np.testing.assert_array_equal(got.experts, np.concatenate([w.experts for w in wanted]))
    np.testing.assert_allclose(got.router, np.concatenate([w.router for w in wanted]), atol=1e-3)
    assert np.flatnonzero(got.starts).tolist() == [0, 32, 64]
    assert not got.phase.any()
    assert "".join(got.pieces[:32]).removeprefix(" ") == model.tokenizer.decode(IDS[:32], special=True)
    assert got.settings == "top-2 of 8, 0:1 left out"


def test_a_generation_has_its_phases(model: localmoe.Model) -> None:
    steps: list[localmoe.engine.api.Step] = []
    got = record_generation(model, IDS[:15], on_step=steps.append, max_tokens=6, temperature=0.0, ignore_eos=True)
    assert got.tokens.tolist() == IDS[:15] + [step.token for step in steps[:5]]
    assert got.phase.tolist() == [0] * 15 + [1] * 5
    np.testing.assert_array_equal(got.experts[14], steps[0].experts)


def test_what_a_trace_holds_of_a_chat_becomes_a_recording(model: localmoe.Model) -> None:
    """The last tokens, up to as many as the ring holds, also those that a generation has run so far."""
    with pytest.raises(UsageError, match="no tokens"):
        record_trace(model)
    steps = list(model.generate(IDS[:15], max_tokens=6, temperature=0.0, ignore_eos=True))
    said = IDS[:15] + [step.token for step in steps[:5]]
    got, wanted = record_trace(model), model.eval(said)
    assert got.tokens.tolist() == said[-10:]
    assert got.phase.tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(got.experts, wanted.experts[-10:])
    assert np.flatnonzero(got.starts).tolist() == [0]
    assert record_trace(model, since=model.trace.count - 3).n_token == 3
    with pytest.raises(UsageError, match="no tokens"):
        record_trace(model, since=model.trace.count)


def test_bytes_of_an_expert(model: localmoe.Model) -> None:
    assert model.expert_bytes.tolist() == [3 * 64 * 96 * 4] * 2


def test_dense_models_have_nothing_to_record(tmp_path: Path) -> None:
    dense = localmoe.load(str(write_tiny(tmp_path / "d.gguf", n_expert=0)), n_ctx=32)
    with dense, pytest.raises(UsageError, match="no experts"):
        record_text(dense, IDS[:3])


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """docs/experts.md, `From Python`, on a tiny model: a report, a recording that comes back, a divergence."""
    page = (Path(__file__).parents[2] / "docs/experts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page[page.index("## From Python") :], re.DOTALL)
    write_tiny(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text("In the beginning was the word.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/experts.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model.gguf: top-2 of 8, 0:3 left out")
    assert float(said[-1]) > 0
    assert not (load_recording(tmp_path / "a.npz").experts[:, 0] == 3).any()


def test_every_function_that_the_docs_name_is_there_and_says_what_it_does() -> None:
    docs = Path(__file__).parents[2] / "docs" / "experts.md"
    table = docs.read_text().split("## From Python")[1].split("```")[0]
    names = re.findall(r"`(localmoe\.[a-z_.]+)`", table)
    assert len(names) > 10
    for name in names:
        module, _, function = name.rpartition(".")
        assert getattr(importlib.import_module(module), function).__doc__, name
