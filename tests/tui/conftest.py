"""What every test of the app shares."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def usual_keys(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Whoever runs the tests may have keys of their own."""
    monkeypatch.setenv("LOCALMOE_KEYS", str(tmp_path / "no-keys.toml"))
