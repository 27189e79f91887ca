"""Whole quantized files against the digests of llama-quantize's, recorded by tests/parity/quantized_files.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.parity.quantized_files import CASES, DIGESTS, EXPERTS, make_source, ours

RECORDED = json.loads(DIGESTS.read_text())


@pytest.fixture(scope="module", params=EXPERTS, ids=lambda n: f"{n} experts")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"), request.param)


@pytest.mark.parametrize(("kind", "weighed"), CASES)
def test_a_file_is_llama_quantizes(
    source: Path, kind: str, weighed: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte, metadata included; without a matrix the lowest types are refused by both."""
    monkeypatch.chdir(source.parent)
    wanted = RECORDED[f"{request.node.callspec.params['source']} experts"][kind][weighed]
    assert ours(source, kind, weighed) == wanted
