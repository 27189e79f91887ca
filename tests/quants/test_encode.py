"""Encoding against ggml's own encoders (libgguf), byte for byte.

libgguf has an IQ1_M of before llama.cpp summed it half by half; tests/parity/encode_parity.py recorded the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.errors import UsageError
from localmoe.quants.checks import first_not_finite
from localmoe.quants.decode import decode
from localmoe.quants.encode import NEED_IMPORTANCES, encode
from localmoe.quants.formats import FORMATS, Format, parse_type

PLAIN = [Type.F32, Type.F16, Type.BF16]
ENCODED = [form for form in FORMATS.values() if form.encodes and form.quantized and form.type != Type.IQ1_M]
RECORDED = Path(__file__).parent / "data" / "ggml_iq1_m.json"
UNWEIGHED = [form.type for form in ENCODED if form.type not in NEED_IMPORTANCES]
SHAPE = (6, 768)
LARGEST = np.float32(3e38)
GRIDS = (Type.IQ3_S, Type.IQ3_XXS, Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XXS, Type.IQ1_S, Type.IQ1_M)
MOST_IN_GRIDS = np.float32(1e9)  # ggml stops the process where a grid's errors overflow

_Make = Callable[[np.random.Generator], np.ndarray]
ROWS: dict[str, _Make] = {
    "normal": lambda rng: rng.standard_normal(SHAPE) * 0.02,
    "heavy tails": lambda rng: rng.standard_t(1.5, SHAPE) * 0.02,
    "constant": lambda rng: np.full(SHAPE, 0.37),
    "negative constant": lambda rng: np.full(SHAPE, -0.37),
    "zero": lambda rng: np.zeros(SHAPE),
    "negative zero": lambda rng: -np.zeros(SHAPE),
    "zeros of both signs": lambda rng: np.where(rng.random(SHAPE) < 0.5, -0.0, 0.0),
    "tiny": lambda rng: rng.standard_normal(SHAPE) * 1e-12,
    "below 1e-15": lambda rng: rng.standard_normal(SHAPE) * 1e-20,
    "subnormal": lambda rng: rng.standard_normal(SHAPE) * 1e-40,
    "large": lambda rng: rng.standard_normal(SHAPE) * 1e6,
    "huge": lambda rng: rng.standard_normal(SHAPE) * 1e38,
    "positive": lambda rng: rng.random(SHAPE) + 1,
    "negative": lambda rng: -rng.random(SHAPE) - 1,
    "sparse": lambda rng: np.where(rng.random(SHAPE) < 0.02, rng.standard_normal(SHAPE), 0),
    "halves": lambda rng: rng.integers(-8, 8, SHAPE) / 8,
    "scales apart": lambda rng: rng.standard_normal(SHAPE) * 10.0 ** rng.integers(-30, 5, (6, 48)).repeat(16, 1),
    "below powers of two": lambda rng: np.ldexp(
        1 - rng.integers(0, 60, (6, 24)) * 2.0**-24, rng.integers(-149, 129, (6, 24))
    ).repeat(32, 1),
}  # fmt: skip


IMPORTANCES: dict[str, _Make] = {
    "even": lambda rng: rng.random(SHAPE[1]),
    "scales apart": lambda rng: 10.0 ** rng.integers(-8, 8, SHAPE[1]),
    "half of it zero": lambda rng: np.where(rng.random(SHAPE[1]) < 0.5, 0, rng.random(SHAPE[1])),
    "zero": lambda rng: np.zeros(SHAPE[1]),
}  # fmt: skip


def rows(kind: Type, make: _Make, rng: np.random.Generator) -> np.ndarray:
    """Rows of float32, finite, and below what ggml can take."""
    largest = MOST_IN_GRIDS if kind in GRIDS else LARGEST
    return np.clip(make(rng), -largest, largest).astype(np.float32)


def cases(kind: Type) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Every kind of row with every kind of importances, and without."""
    for row_name, make in ROWS.items():
        rng = np.random.default_rng(kind)
        x = rows(kind, make, rng)
        for name, weigh in IMPORTANCES.items():
            yield f"{row_name}, {name}", x, weigh(rng).astype(np.float32)
        if kind not in NEED_IMPORTANCES:
            yield row_name, x, None


def digest(raw: np.ndarray) -> str:
    return hashlib.sha256(raw.tobytes()).hexdigest()[:16]


def ggml(kind: Type, x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """ggml's bytes for the rows of `x`."""
    if kind in PLAIN:
        with np.errstate(over="ignore"):
            return gguf.quants.quantize(x, kind).view(np.uint8).reshape(x.shape[0], -1)
    return np.asarray(libgguf.quantize_rows(x, kind, importance)).view(np.uint8).reshape(x.shape[0], -1)


@pytest.mark.parametrize("kind", [*PLAIN, *UNWEIGHED], ids=lambda kind: kind.name)
def test_every_kind_of_row_encodes_to_ggmls_bytes(kind: Type) -> None:
    rng = np.random.default_rng(kind)
    for name, make in ROWS.items():
        x = rows(kind, make, rng)
        np.testing.assert_array_equal(encode(kind, x), ggml(kind, x), err_msg=name)


@pytest.mark.parametrize("form", ENCODED, ids=lambda form: form.name)
def test_importances_give_ggmls_bytes(form: Format) -> None:
    rng = np.random.default_rng(form.type)
    for row_name, make in ROWS.items():
        x = rows(form.type, make, rng)
        for name, weigh in IMPORTANCES.items():
            importance = weigh(rng).astype(np.float32)
            got = encode(form.type, x, importance)
            np.testing.assert_array_equal(got, ggml(form.type, x, importance), err_msg=f"{row_name}, {name}")


@pytest.mark.parametrize("form", ENCODED, ids=lambda form: form.name)
@pytest.mark.parametrize("blocks", [1, 2, 3, 15, 17])
def test_a_number_of_blocks_that_does_not_fill_the_lanes(form: Format, blocks: int) -> None:
    x = np.random.default_rng(blocks).standard_normal((1, blocks * form.block_size)).astype(np.float32)
    if form.type in UNWEIGHED:
        np.testing.assert_array_equal(encode(form.type, x), ggml(form.type, x))
    importance = np.random.default_rng(1).random(x.size).astype(np.float32)
    np.testing.assert_array_equal(encode(form.type, x, importance), ggml(form.type, x, importance))


@pytest.mark.parametrize("n", [1, 15, 16, 33])
def test_plain_floats_of_any_number(n: int) -> None:
    x = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    for kind in PLAIN:
        np.testing.assert_array_equal(encode(kind, x), ggml(kind, x))


def test_bf16_keeps_a_nan_and_rounds_to_even() -> None:
    """By hand: 0x7F800001 is a NaN whose upper half alone would be infinity; 0x3F808000 is a tie, 0x3F818000 too."""
    x = np.array([[0x7F800001, 0xFFFFFFFF, 0x3F808000, 0x3F818000]], np.uint32).view(np.float32)
    assert encode(Type.BF16, x).view(np.uint16)[0].tolist() == [0x7FC0, 0xFFFF, 0x3F80, 0x3F82]


_values = st.floats(width=32, allow_nan=False, allow_infinity=False)
_rows = st.lists(_values, min_size=1, max_size=40).map(lambda v: np.resize(np.array(v, np.float32), (1, 512)))

_importances = st.floats(0, 1e10, width=32)
_weights = st.lists(_importances, min_size=1, max_size=40).map(lambda v: np.resize(np.array(v, np.float32), 512))


@settings(max_examples=40, deadline=None)
@given(x=_rows, weights=_weights)
def test_any_finite_floats_encode_to_ggmls_bytes(x: np.ndarray, weights: np.ndarray) -> None:
    for form in ENCODED:
        values = np.clip(x, -MOST_IN_GRIDS, MOST_IN_GRIDS) if form.type in GRIDS else x
        got = encode(form.type, values, weights)
        np.testing.assert_array_equal(got, ggml(form.type, values, weights), err_msg=form.name)
        if form.type in UNWEIGHED:
            np.testing.assert_array_equal(encode(form.type, values), ggml(form.type, values), err_msg=form.name)


@pytest.mark.parametrize("kind", [kind for kind in GRIDS if FORMATS[kind].encodes], ids=lambda kind: kind.name)
def test_what_overflows_in_a_grid_is_finite_or_found(kind: Type) -> None:
    """Where ggml stops, a scale is NaN or infinite, which the writer refuses, or all is finite."""
    x, importance = np.full((1, 256), 3e38, np.float32), np.ones(256, np.float32)
    x[0, ::3] *= -0.9
    raw = encode(kind, x, importance)
    bad = first_not_finite(kind, raw.reshape(-1))
    assert bad == 0 or np.isfinite(decode(kind, raw)).all()


def test_iq1_m_gives_llama_cpps_bytes() -> None:
    digests = {label: digest(encode(Type.IQ1_M, x, importance)) for label, x, importance in cases(Type.IQ1_M)}
    assert digests == json.loads(RECORDED.read_text())


def test_what_cannot_be_written_is_refused() -> None:
    x = np.zeros((1, 256), np.float32)
    with pytest.raises(UsageError, match="cannot write this type, got Q8_K"):
        encode(Type.Q8_K, x)
    with pytest.raises(UsageError, match="cannot be written without importances, got IQ2_XS"):
        encode(Type.IQ2_XS, x)
    with pytest.raises(UsageError, match="unknown tensor type, got IQ9"):
        parse_type("IQ9")
    assert parse_type("q6_k") == Type.Q6_K
