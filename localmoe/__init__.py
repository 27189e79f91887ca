"""localmoe: run Mixture-of-Experts models from GGUF, and see which experts work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmoe.engine.api import Model

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def load(path: str, **options: Any) -> Model:
    """Open a GGUF for inference: see `localmoe.engine.api.load` for the options."""
    from localmoe.engine.api import load as open_model

    return open_model(path, **options)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from localmoe.engine.api import Model

        return Model
    raise AttributeError(f"module 'localmoe' has no attribute {name!r}")
