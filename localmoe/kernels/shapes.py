"""Sizes and places that compiled code and who calls it agree on; to know them takes no Numba."""

from __future__ import annotations

from typing import Any

from localmoe.target import is_zen, isa

ISA = isa()
LANES = {"avx512vnni": 16, "avxvnni": 8, "avx2": 8}.get(ISA, 4)

# --- activation rows (activations.py) -----------------------------------------------------------------------

ALIGN = 64


def act_bytes(fmt: str, n: int) -> int:
    """Bytes from one activation row of `n` values to the next, a multiple of 64."""
    size = {"f32": 4 * n, "q8_0": n + 12 * (n // 32), "q8_k": n + 4 * (n // 256) + 6 * (n // 32)}[fmt]
    return -(-size // ALIGN) * ALIGN


# --- the KV cache and attention (attention.py, attention_tiles.py) --------------------------------------------

BLOCK = 512  # positions of one softmax; a multiple of K_BLOCK
K_BLOCK = 32  # positions interleaved in K
KINDS = {"f32": 0, "f16": 1, "q8_0": 2}  # types of a cache, as records name them
MAX_ROWS = 4 if LANES == 8 else 8  # query rows of one kernel


def padded(head_dim: int) -> int:
    """Numbers a row of V and of an accumulator takes: whole vectors on every instruction set."""
    return -(-head_dim // 16) * 16


def k_block_bytes(kind: str, head_dim: Any) -> Any:
    """Bytes of K_BLOCK keys; `head_dim` is a number or a Value."""
    return head_dim * {"f32": 4 * K_BLOCK, "f16": 2 * K_BLOCK, "q8_0": K_BLOCK + K_BLOCK // 16}[kind]


def v_row_bytes(kind: str, head_dim: Any) -> Any:
    """Bytes of one position's values; `head_dim` is a number or a Value."""
    if kind == "q8_0":
        return head_dim + head_dim // 16
    return (head_dim + 15) // 16 * (16 * {"f32": 4, "f16": 2}[kind])


# --- attention by pairs of int16 (attention_pairs.py) ---------------------------------------------------------

SUB = 128  # positions whose weights share a scale, and whose products are summed as integers
SUBS = BLOCK // SUB
QUERY_ROWS = 128  # rows of one item: what a block of keys and values is turned into pairs for
HAS_PAIRS = ISA in ("avx512vnni", "avxvnni")  # elsewhere dot2 is no faster than float32


def pairs_bytes(head_dim: int) -> int:
    """Bytes of scratch that a thread needs: see `attend_pairs` in model/forward_attention.py."""
    width = padded(head_dim)
    block = BLOCK * (2 * head_dim + 4) + BLOCK * 2 * width + SUBS * width * 4
    rows = QUERY_ROWS * (2 * head_dim + 4 + 4 * BLOCK + 4 * SUBS + 4 * width + 8 + 8)
    return block + rows + 4 * width


# --- a tile of tokens by weight rows (tile.py) ----------------------------------------------------------------

ROW_VECS = 2
ROWS = ROW_VECS * LANES
VEC_BYTES = 4 * LANES
PITCH = ROW_VECS * VEC_BYTES

# Accumulators, two weight vectors and a broadcast must fit the 32 or 16 vector registers; with 16, float sums wait in
# memory. 3 tokens with 8 lanes leave too few independent sums (Q4_K on AVX2: 143 GMAC/s, 4 tokens 164, 5 159). Where a
# sum is there after 5 cycles, as on Intel, more of them have to be under way: 8 (4 tokens) take 0.65 of the turns.
BIG, SMALL = {"avx512vnni": (6 if is_zen() else 8, 4), "avxvnni": (6, 4), "neon": (6, 4)}.get(ISA, (4, 2))

# --- scratch of a product with many rows (matmul_driver.py): areas from its start, in bytes ---------------------

CHUNK = 2048  # columns of quantized weights unpacked at a time
SCALES = ROWS * CHUNK  # behind the weights: float32 row vectors, at most one for 16 columns
MINS = SCALES + CHUNK // 16 * PITCH  # int16 pairs or float32, at most one row vector for 32 columns
FACTORS = MINS + CHUNK // 32 * PITCH  # two float32 row vectors for 256 columns
SUMS = FACTORS + CHUNK // 256 * 2 * PITCH  # sums of activations, a row of SUMS_PITCH a token of the tile
SUMS_PITCH = CHUNK // 16 * 4
ACC = SUMS + BIG * SUMS_PITCH  # a tile's float32 sums while they are added up over the blocks of a chunk
SPARE = ACC + BIG * PITCH  # output rows of tokens and of weight rows that are not there
STAGE_STEP = 320
STAGE = SPARE + BIG * PITCH  # copies of blocks at the ends of a matrix
AHEAD_STATE = STAGE + LANES * STAGE_STEP  # what of the next chunk has been asked for
MATMUL_SCRATCH = -(-(AHEAD_STATE + 40) // 64) * 64  # what a thread needs for any product, of any number of columns

# --- candidates for the next token (candidates.py) --------------------------------------------------------------

MOST = 128  # insertion into a sorted list is quick for so many
ROUNDING = 1e-7
"""Logits come as float32: sums of probabilities are only known to about this."""
