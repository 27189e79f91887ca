"""What a request may ask of a model, and what two of them do to each other."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localmoe
from localmoe.engine.api import Model
from localmoe.errors import UsageError
from tests.tiny import write_tiny

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("requests") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with localmoe.load(path, n_ctx=64, n_threads=2) as opened:
        yield opened


@pytest.mark.parametrize("ids", ["hello", ["1", "2"], [1.5, 2.0], [True], [[1, 2]], None, [10**30], np.array([1.0])])
def test_ids_that_are_no_whole_numbers_are_refused(model: Model, ids: Any) -> None:
    """Nothing is rounded or parsed on the way: [1.5] was token 1 before."""
    for run in (model.eval, model.hidden_states):
        with pytest.raises(UsageError, match="token ids must be a sequence of whole numbers"):
            run(ids)
    if not isinstance(ids, str):
        with pytest.raises((UsageError, TypeError)):
            model.generate(ids)


@pytest.mark.parametrize("ids", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.uint64), np.array([1, 2, 3], np.int8)])
def test_any_sequence_of_whole_numbers_is_run(model: Model, ids: Any) -> None:
    np.testing.assert_array_equal(model.eval(ids).logits, model.eval([1, 2, 3]).logits)
    assert next(model.generate(ids, max_tokens=1, **GREEDY)).n_past == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": -5}, "max_tokens: out of range, got -5"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [b"x"]}, "stop: not a text"),
        ({"n_probs": -1}, "n_probs: out of range, got -1"),
        ({"n_probs": 1.0}, "n_probs"),
        ({"n_expert_used": 2.0}, "number of experts used"),
        ({"n_expert_used": "2"}, "number of experts used"),
        ({"n_expert_used": []}, "number of experts used"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"n_probs": True}, "n_probs"),
        ({"stop": 5}, "stop: not a text, got 5"),
        ({"expert_threshold": "x"}, "the threshold of gate weights is out of range, got x"),
        ({"expert_threshold": [0.5]}, "the threshold of gate weights"),
        *(
            ({name: chosen}, "not a choice of experts")
            for name in ("leave_out", "force_experts")
            for chosen in (
                5,
                0.5,
                b"0:1",
                [1],
                [None],
                {0.5: [1]},
                {"0": [1]},
                {0: 1},
                {0: [1.7]},
                {0: ["1"]},
                {0: None},
            )
        ),
        ({"logit_bias": [(5, 1.0)]}, "logit_bias: is no mapping"),
        ({"logit_bias": {5: "x"}}, "logit_bias: no such bias"),
        ({"logit_bias": {5: None}}, "logit_bias: no such bias"),
        ({"logit_bias": {5: 10**400}}, "logit_bias: no such bias"),
        ({"dry_sequence_breakers": None}, "dry_sequence_breakers: must be"),
        ({"repeat_last_n": 10**20}, "repeat_last_n: out of range"),
    ],
)
def test_options_are_checked_when_asked_for(model: Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        model.generate("hello", **options)


@pytest.mark.parametrize("name", ["n_ctx", "n_threads"])
def test_numbers_of_load_are_whole(path: Path, name: str) -> None:
    for value in ("4", 4.0, -1, True):
        with pytest.raises(UsageError):
            localmoe.load(path, **{name: value})


@pytest.mark.parametrize("kind", [None, 16, ["f16"], b"f16"])
def test_the_caches_types_are_names(path: Path, kind: Any) -> None:
    for name in ("cache_type_k", "cache_type_v"):
        with pytest.raises(UsageError, match="cache type"):
            localmoe.load(path, **{name: kind})


def test_numpy_numbers_choose_experts(model: Model) -> None:
    for used in (np.int64(3), np.array([3, 3])):
        assert model.eval([1], n_expert_used=used).experts.shape == (1, 2, 3)
    for chosen in ({np.int64(0): np.array([1, 2])}, {0: {1, 2}}, ["0:1,2"], "0:1,2"):
        assert not np.isin(model.eval([1, 2, 3], leave_out=chosen).experts[:, 0], [1, 2]).any()


def test_numpy_numbers_are_numbers(path: Path) -> None:
    numbers: dict[str, Any] = {"max_tokens": 4, "n_probs": 2, "seed": 1, "repeat_last_n": 8, "top_k": 5, "min_keep": 1}
    with localmoe.load(path, n_ctx=np.int64(64), n_threads=np.int32(1)) as opened:
        plain = list(opened.generate([1, 2], repeat_penalty=1.1, stop=None, **numbers))
        for kind in (np.int64, np.uint8):
            given = {name: kind(number) for name, number in numbers.items()}
            steps = opened.generate(np.array([1, 2], kind), repeat_penalty=np.float32(1.1), **given)
            assert [step.token for step in steps] == [step.token for step in plain]
        assert opened.detokenize(np.array([300, 301])) == opened.detokenize(iter([300, 301]))


@pytest.mark.parametrize("wrong", [None, 5, [1.0], ["a"], [[1], [1, 2]], [True]])
def test_what_is_no_text_and_no_ids(model: Model, wrong: Any) -> None:
    with pytest.raises(UsageError, match="is not text, got"):
        model.tokenize(wrong)
    for take in (model.detokenize, model.generate, model.eval):
        with pytest.raises(UsageError, match="token ids must be a sequence of whole numbers"):
            take(wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_copy_says_that_its_threads_are_elsewhere(model: Model) -> None:
    """Without an answer it would wait for them for ever; the model of one thread runs."""
    child = os.fork()
    if not child:
        signal.alarm(120)
        try:
            model.eval([1, 2])
        except UsageError as error:
            os._exit(0 if "forked" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert model.eval([1, 2]).logits.shape[0] == 2


def test_one_stop_string_is_one(model: Model) -> None:
    """A string is a sequence of characters, each of which stopped."""
    every = [step.text for step in model.generate("hello", max_tokens=20, **GREEDY)]
    text = "".join(every)
    steps = list(model.generate("hello", max_tokens=20, stop=text[3:6], **GREEDY))
    assert "".join(step.text for step in steps) == text[: text.index(text[3:6])]
    assert steps[-1].stop_reason == "stop"


def test_a_generation_does_not_go_on_in_anothers_context(model: Model) -> None:
    first = model.generate("hello", max_tokens=10, **GREEDY)
    next(first)
    for other in (lambda: list(model.generate("the sun", max_tokens=2)), lambda: model.eval([1, 2])):
        other()
        with pytest.raises(UsageError, match="another request"):
            next(first)
        first = model.generate("hello", max_tokens=10, **GREEDY)
        next(first)


def test_each_generation_keeps_its_own_routing(model: Model) -> None:
    """One that is asked for before another is read does not change that one's."""
    first = model.generate("hello", max_tokens=2, **GREEDY)
    second = model.generate("hello", max_tokens=2, n_expert_used=1, **GREEDY)
    assert next(first).experts.shape == (2, 2)
    assert next(second).experts.shape == (2, 1)


def test_a_closed_model_says_so(path: Path) -> None:
    opened = localmoe.load(path, n_threads=2)
    opened.close()
    opened.close()
    for run in (lambda: opened.eval([1, 2]), lambda: list(opened.generate("a"))):
        with pytest.raises(UsageError, match="the model is closed"):
            run()


def test_a_model_that_is_dropped_ends_its_threads(path: Path) -> None:
    before = set(threading.enumerate())
    opened = localmoe.load(path, n_threads=4)
    opened.eval([1, 2])
    own = set(threading.enumerate()) - before
    assert len(own) == 3
    del opened
    gc.collect()
    assert not own & set(threading.enumerate())


HOT = {"temperature": 5.0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, *({**HOT, "top_k": k} for k in (0, 2, 3, 20))])
def test_the_likeliest_tokens_come_with_the_models_own_probabilities(model: Model, sampling: dict[str, Any]) -> None:
    """The softmax of the position's logits, whatever sampling does; a token that is not among them is the last."""
    prompt = [5, 6, 7, 8]
    steps = list(model.generate(prompt, max_tokens=12, n_probs=3, seed=3, ignore_eos=True, **sampling))
    said = [step.token for step in steps]
    logits = model.eval(prompt + said).logits[len(prompt) - 1 :].astype(np.float64)
    outside = 0
    for step, row in zip(steps, logits, strict=False):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        wanted = np.argsort(-p, kind="stable")[:3].tolist()
        wanted += [] if step.token in wanted else [step.token]
        outside += len(wanted) > 3
        assert [token for token, _ in step.probs] == wanted
        np.testing.assert_allclose([each for _, each in step.probs], p[wanted], rtol=1e-3)
    assert (outside > 0) == (sampling.get("top_k") in (0, 20))
    assert all(step.probs == () for step in model.generate(prompt, max_tokens=2, **GREEDY))
