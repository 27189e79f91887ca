"""When a first run says that it compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import yaml

import localmoe.jit  # noqa: F401  # it listens
from localmoe import target
from localmoe.converters.franken import build
from localmoe.converters.franken_recipe import read_recipe
from localmoe.engine.compiling import SAID, UNKEPT, compiling_said
from tests.tiny import write_tiny


def test_compiling_is_said_once_and_only_where_it_happens() -> None:
    """Two functions compiled: one line. The same again, or from the cache: none."""

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def one(x):  # type: ignore[no-untyped-def]
        return x + 1

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def two(x):  # type: ignore[no-untyped-def]
        return x * 2.5

    said: list[str] = []
    with compiling_said(said.append):
        assert one(1) + two(2) == 7
    assert said == [SAID]
    with compiling_said(said.append):
        assert one(1) + two(2) == 7
    assert said == [SAID]
    with compiling_said(None):
        assert one(1.5) == 2.5


def test_kernels_that_cannot_be_kept_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder that cannot be made: a folder for this process takes its place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALMOE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(target, "cache_dir", target.cache_dir.__wrapped__)

    @numba.njit  # localmoe.jit would take it from the cache the second time
    def one(x):  # type: ignore[no-untyped-def]
        return x + 1

    said: list[str] = []
    with compiling_said(said.append):
        assert one(1) == 2
    assert said == [SAID + UNKEPT]


def test_compiling_is_said_while_a_recipes_base_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of a first build."""

    def rows(*_: Any, **__: Any) -> np.ndarray:
        target.on_compile[-1]()
        return np.zeros((2, 2, 64), np.float32)

    write_tiny(tmp_path / "a.gguf", n_expert=0)
    experts = [{"source_model": "a.gguf", "positive_prompts": [prompt]} for prompt in ("hello", "one")]
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump({"base_model": "a.gguf", "experts": experts}))
    monkeypatch.setattr("localmoe.converters.franken.router_rows", rows)
    said: list[str] = []
    build(read_recipe(tmp_path / "recipe.yml", said.append), tmp_path / "out.gguf", "F32", notify=said.append)
    assert said[said.index("running the prompts through the base model") + 1] == SAID
