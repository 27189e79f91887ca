"""Whether a file can run here, as far as its header tells: for lists of files, where no weight is read."""

from __future__ import annotations

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile
from localmoe.model.architectures import ARCHITECTURES
from localmoe.model.config import ModelConfig
from localmoe.model.weights import runnable_types, tensor_problems


def refusal(gguf: GGUFFile) -> str:
    """Why it cannot, in a few words; "" where nothing speaks against it."""
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str):
        return "no model"
    if arch not in ARCHITECTURES:
        return f"{arch} does not run here: only {', '.join(sorted(ARCHITECTURES))}"
    if not gguf.tensors:
        return "no weights: a vocabulary alone"
    try:
        config = ModelConfig.from_metadata(gguf)
    except BadInputError as error:
        return f"does not run here: {error.item}: {error.reason}"
    if "tokenizer.ggml.model" not in gguf.metadata:
        return "does not run here: no vocabulary"
    return _tensor_refusal(gguf, config)


def _tensor_refusal(gguf: GGUFFile, config: ModelConfig) -> str:
    """The same about the tensors' types first, then about the first of them that is wrong."""
    known = runnable_types()
    others = sorted({t.type.name for t in gguf.tensors.values() if len(t.shape) > 1 and t.type not in known})
    if others:
        return f"does not run here: weights in {', '.join(others)}"
    first = next(tensor_problems(gguf, config, known), None)
    return f"does not run here: {first.item}: {first.reason}" if first is not None else ""
