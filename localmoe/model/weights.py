"""The tensors a model needs, each found, measured and typed before anything computes with it.

Shapes are the GGUF ones in NumPy's order: a matrix is (rows, columns) and multiplies a vector of `cols`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from localmoe.errors import BadInputError
from localmoe.gguf_file import GGUFFile, TensorInfo, trimmed, visible
from localmoe.model.config import ModelConfig
from localmoe.model.legacy_experts import differing_types, expert_name, has_single_experts, single_shapes

if TYPE_CHECKING:
    from localmoe.ggml import GGMLQuantizationType

_LAYER = re.compile(r"^blk\.(\d+)\.")
_FLOATS = ("F32", "F16", "BF16")
# by the end of a tensor's name: what llama.cpp adds, multiplies or splits for this architecture, and localmoe does not
_FUSED = ".attn_qkv.weight"
_NOT_COMPUTED = {
    _FUSED: "queries, keys and values in one tensor are not supported",
    ".bias": "biases are not supported",
    ".input_scale": "scales of activations are not supported",
    ".scale": "scales of weights are not supported",
}


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix, or a stack of `n_expert` of them, in its file's own bytes.

    `data` is a read-only view of the map, uint8 (n_expert * rows, row_bytes): expert e's rows start at e * rows. Where
    the file keeps experts apart, `singles` are their matrices (rows, row_bytes) each, and `data` is the first.
    """

    name: str
    type: GGMLQuantizationType
    rows: int
    cols: int
    n_expert: int
    row_bytes: int
    data: npt.NDArray[np.uint8]
    singles: tuple[npt.NDArray[np.uint8], ...] = ()

    def matrix(self, expert: int) -> npt.NDArray[np.uint8]:
        """One expert's rows, (rows, row_bytes)."""
        return self.singles[expert] if self.singles else self.data[expert * self.rows : (expert + 1) * self.rows]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block: norms as float32 (n_embd,), matrices as Weight.

    Dense: `ffn_gate_inp` is None. MoE: `ffn_gate`, `ffn_up` and `ffn_down` are the stacks `ffn_*_exps`.
    """

    attn_norm: npt.NDArray[np.float32]
    attn_q: Weight
    attn_k: Weight
    attn_v: Weight
    attn_output: Weight
    ffn_norm: npt.NDArray[np.float32]
    ffn_gate_inp: Weight | None
    ffn_gate: Weight
    ffn_up: Weight
    ffn_down: Weight


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model; a tied one has `output` is `token_embd`. `rope_freqs` is float32 (rope_dim // 2,)."""

    token_embd: Weight
    output_norm: npt.NDArray[np.float32]
    output: Weight
    rope_freqs: npt.NDArray[np.float32] | None
    layers: tuple[LayerWeights, ...]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model must have, by name, with its shape in NumPy's order."""
    d = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.n_vocab, d), "output_norm.weight": (d,)}
    if not config.tied:
        shapes["output.weight"] = (config.n_vocab, d)
    for layer in range(config.n_layer):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in _layer_shapes(config).items()}
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "attn_q": (config.n_head * config.n_embd_head_k, d),
        "attn_k": (config.n_head_kv * config.n_embd_head_k, d),
        "attn_v": (config.n_head_kv * config.n_embd_head_v, d),
        "attn_output": (d, config.n_head * config.n_embd_head_v),
        "ffn_norm": (d,),
    }
    if not config.n_expert:
        return shapes | {"ffn_gate": (config.n_ff, d), "ffn_up": (config.n_ff, d), "ffn_down": (d, config.n_ff)}
    e, f = config.n_expert, config.n_ff_exp
    return shapes | {
        "ffn_gate_inp": (e, d),
        "ffn_gate_exps": (e, f, d),
        "ffn_up_exps": (e, f, d),
        "ffn_down_exps": (e, d, f),
    }


def tensor_problems(
    gguf: GGUFFile, config: ModelConfig, supported: Collection[GGMLQuantizationType] | None
) -> Iterator[BadInputError]:
    """Everything that keeps the file's tensors from running as `config`, worst first, as errors not yet raised.

    `supported` None is for a file that is only rewritten: of any type, and with tensors that localmoe cannot use.
    """
    expected = expected_shapes(config)
    if config.n_expert and has_single_experts(gguf.tensors):
        yield from differing_types(gguf)
        expected = single_shapes(expected)
    expected_extra = {"rope_freqs.weight": (config.rope_dim // 2,)}
    file = visible(str(gguf.path))
    present = {*gguf.tensors, *_fused_parts(gguf.tensors)}
    missing = [name for name in expected if name not in present]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield BadInputError(f"the tensor is missing{_in_layer(missing[0])}{more}", file=file, item=missing[0])
    for name, tensor in gguf.tensors.items():
        shape = expected.get(name, expected_extra.get(name))
        problem = _tensor_problem(tensor, shape, supported)
        if problem is not None and (supported is not None or shape is not None):
            reason, got, wanted = problem
            yield BadInputError(reason + _in_layer(name), file=file, item=visible(name), got=got, expected=wanted)


def _fused_parts(names: Collection[str]) -> Iterator[str]:
    """The tensors that others hold among their rows."""
    for name in names:
        if name.endswith(_FUSED):
            yield from (name.replace("_qkv.", f"_{part}.") for part in "qkv")


def _tensor_problem(
    tensor: TensorInfo, shape: tuple[int, ...] | None, supported: Collection[GGMLQuantizationType] | None
) -> tuple[str, object, object] | None:
    """Reason, got and expected for one tensor; `shape` None says that the model has no use for it."""
    if shape is None:
        reasons = (reason for end, reason in _NOT_COMPUTED.items() if tensor.name.endswith(end))
        return f"{next(reasons, 'unknown tensor')}: ignoring it could change the result", None, None
    if trimmed(tensor.shape) != trimmed(shape):
        return "the tensor has the wrong shape", _dims(tensor.shape), _dims(shape)
    if supported is None:
        return None
    if len(shape) == 1:
        if tensor.type.name not in _FLOATS:
            return "type not supported for this tensor", tensor.type.name, f"one of: {', '.join(_FLOATS)}"
    elif tensor.type not in supported:
        return "type not supported", tensor.type.name, f"one of: {', '.join(t.name for t in sorted(supported))}"
    return None


def _in_layer(name: str) -> str:
    match = _LAYER.match(name)
    return f" in layer {match[1]}" if match else ""


def _dims(shape: tuple[int, ...]) -> str:
    """A shape as GGUF tools print it, fastest axis first."""
    return "[" + ", ".join(str(n) for n in reversed(shape)) + "]"


def runnable_types() -> frozenset[GGMLQuantizationType]:
    """The types of matrices that there are kernels for."""
    from localmoe.kernels.table import KERNELS

    return frozenset(KERNELS)


def decodable_types() -> frozenset[GGMLQuantizationType]:
    """The types whose blocks localmoe can decode, and so convert to others."""
    from localmoe.quants.formats import FORMATS

    return frozenset(kind for kind, format in FORMATS.items() if format.decodes)


def load_weights(
    gguf: GGUFFile, config: ModelConfig, supported: Collection[GGMLQuantizationType] | None = None
) -> Weights:
    """Check every tensor of an open file and give views of them; nothing but the norms is copied.

    `supported` are the types of matrices that can run, by default all that have kernels. Raises BadInputError naming
    the tensor that is missing, misshapen, of an unsupported type or unknown.
    """
    for problem in tensor_problems(gguf, config, runnable_types() if supported is None else supported):
        raise problem
    token_embd = _weight(gguf, "token_embd.weight")
    return Weights(
        token_embd=token_embd,
        output_norm=_vector(gguf, "output_norm.weight"),
        output=token_embd if config.tied else _weight(gguf, "output.weight"),
        rope_freqs=_rope_factors(gguf),
        layers=tuple(_layer(gguf, config, layer) for layer in range(config.n_layer)),
    )


def _layer(gguf: GGUFFile, config: ModelConfig, layer: int) -> LayerWeights:
    def weight(name: str) -> Weight:
        return _weight(gguf, f"blk.{layer}.{name}.weight")

    stack = "_exps" if config.n_expert else ""
    return LayerWeights(
        attn_norm=_vector(gguf, f"blk.{layer}.attn_norm.weight"),
        attn_q=weight("attn_q"),
        attn_k=weight("attn_k"),
        attn_v=weight("attn_v"),
        attn_output=weight("attn_output"),
        ffn_norm=_vector(gguf, f"blk.{layer}.ffn_norm.weight"),
        ffn_gate_inp=weight("ffn_gate_inp") if config.n_expert else None,
        ffn_gate=weight("ffn_gate" + stack),
        ffn_up=weight("ffn_up" + stack),
        ffn_down=weight("ffn_down" + stack),
    )


def _weight(gguf: GGUFFile, name: str) -> Weight:
    if name not in gguf.tensors:
        return _single_experts(gguf, name)
    tensor = gguf.tensors[name]
    rows, cols = (1, *tensor.shape)[-2:]
    n_expert = tensor.shape[0] if len(tensor.shape) == 3 else 1
    data = gguf.raw(name).reshape(n_expert * rows, -1)
    return Weight(name, tensor.type, rows, cols, n_expert, data.shape[1], data)


def _single_experts(gguf: GGUFFile, stack: str) -> Weight:
    """A stack that the file holds as one tensor an expert."""
    singles: list[npt.NDArray[np.uint8]] = []
    while (name := expert_name(stack, len(singles))) in gguf.tensors:
        first = _weight(gguf, name)
        singles.append(first.data)
    return replace(first, name=stack, n_expert=len(singles), data=singles[0], singles=tuple(singles))


def read_floats(gguf: GGUFFile, name: str) -> npt.NDArray[np.float32] | None:
    """A tensor as a float32 array of its own in its shape; None if its type is none of the plain floats."""
    tensor, raw = gguf.tensors[name], gguf.raw(name)
    if tensor.type.name not in _FLOATS:
        return None
    if tensor.type.name == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = raw.view("<f4" if tensor.type.name == "F32" else "<f2").astype(np.float32)
    return values.reshape(tensor.shape)


def _vector(gguf: GGUFFile, name: str) -> npt.NDArray[np.float32]:
    """A 1-D float tensor, whose type was checked."""
    values = read_floats(gguf, name)
    assert values is not None
    return values


def _rope_factors(gguf: GGUFFile) -> npt.NDArray[np.float32] | None:
    name = "rope_freqs.weight"
    if name not in gguf.tensors:
        return None
    factors = _vector(gguf, name)
    bad = np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))
    if bad.size:
        got = f"{factors[bad[0]]} at index {bad[0]}"
        raise BadInputError(
            "impossible value", file=visible(str(gguf.path)), item=name, got=got, expected="numbers > 0"
        )
    return factors
