"""Whether a file can run here, as far as its metadata tell: for lists of files, where nothing else is read."""

from __future__ import annotations

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile
from localmoe.model.architectures import ARCHITECTURES
from localmoe.model.config import ModelConfig


def refusal(gguf: GGUFFile) -> str:
    """Why it cannot, in a few words; "" where nothing speaks against it."""
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str):
        return "no model"
    if arch not in ARCHITECTURES:
        return f"{arch} does not run here: only {', '.join(sorted(ARCHITECTURES))}"
    try:
        ModelConfig.from_metadata(gguf)
    except BadInputError as error:
        return f"does not run here: {error.item}: {error.reason}"
    return ""
