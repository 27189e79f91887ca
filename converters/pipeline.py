"""Any source model to one GGUF file: choose types, read and encode on a few threads each, write in order.

One pass and no file in between; reading, encoding and writing go on at the same time. In memory are at most a few
pieces (`source.PIECE_BYTES`) and what became of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType

from localmoe.errors import BadInputError, UsageError
from localmoe.gguf_file import trimmed, visible
from localmoe.output_file import Notify, OutputFile, check_target, replacing_all, unheard
from localmoe.progress import Progress, Silent
from localmoe.quants.formats import FORMATS, format_of, stored_format

from .column_weights import Weights, column_weights, lacks_matrix, matrices
from .column_weights import notices as weights_notices
from .convert_rows import Rows, convert, prepare
from .imatrix import Imatrix
from .output import ALIGNMENT, TensorHeader, check_space, header_bytes, padded
from .recipe import CONVERTER_TYPES, COPY, Choice, Options, choose_types, find_recipe, parse_options
from .source import MetaValue, Piece, SourceModel
from .split import Split, cut, part_metadata, part_paths

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
MAX_THREADS = 16
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class WrittenTensor:
    """One row of the report; sizes in bytes, without padding."""

    name: str
    shape: tuple[int, ...]
    source_type: Type
    type: Type
    source_bytes: int
    n_bytes: int


@dataclass(frozen=True)
class WriteReport:
    """What was written, or with dry_run would be: `n_bytes` is the size of all files, `path` the first of `parts`."""

    parts: tuple[Path, ...]
    file_type: str
    tensors: tuple[WrittenTensor, ...]
    notices: tuple[str, ...]
    n_bytes: int
    seconds: float

    @property
    def path(self) -> Path:
        """The file, or the first of several: the one to open."""
        return self.parts[0]

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data an element."""
        elements = sum(int(np.prod(t.shape)) for t in self.tensors)
        return 8 * sum(t.n_bytes for t in self.tensors) / max(1, elements)


def _to_stderr(line: str) -> None:
    print(visible(line, 500), file=sys.stderr)


def write_model(
    model: SourceModel,
    out: Path,
    file_type: str,
    *,
    imatrix: Imatrix | None = None,
    options: Options | None = None,
    pure: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
    split: Split | None = None,
    allow_requantize: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    n_threads: int | None = None,
    notify: Notify = _to_stderr,
) -> WriteReport:
    """Write `model` as `file_type` ("Q4_K_M", "F16", ..., or "COPY": types as they are) to `out`, all or nothing.

    `imatrix` weighs the columns of the matrices that it holds. `split` cuts the model into several files,
    `out-00001-of-0000N.gguf`. `options` replaces `pure` and `overrides` ((regular
    expression, type name) pairs). `notify` is told about fallbacks, and what killed writers left of `out`.
    UsageError: unknown types, input and output the same file, requantizing without being allowed to. BadInputError: NaN
    or infinity in a weight, values too large for a type. FileError: the system cannot write. Nothing is left behind.
    """
    began = time.monotonic()
    options = options or parse_options(pure=pure, overrides=overrides)
    name, work = _plan(model, file_type, options, imatrix, progress or Silent(), _threads(n_threads))
    choices, rows, weights = work.choices, work.rows, work.weights
    _check(lacks_matrix(choices, name, model.label) if imatrix is None else None, dry_run, notify)
    ranges = cut([row.n_bytes for row in rows], [choice.tensor.part for choice in choices], split)
    paths = part_paths(out, len(ranges), split)
    targets = [check_target(path, [*_inputs(model, imatrix), *options.files], file=str(path)) for path in paths]
    _check(None if allow_requantize else _requantizing(rows, model.label), dry_run, notify)
    notices = (*(c.notice for c in choices if c.notice), *weights_notices(imatrix, choices, weights))
    for line in notices:
        notify(line)
    heads = list(_heads(_metadata(model, name, imatrix), _headers(model, name, rows), ranges, split))
    n_bytes = sum(map(len, heads)) + sum(padded(row.n_bytes) for row in rows)
    if not dry_run:
        check_space(targets[0], n_bytes)
        work.prepare(notify)
        with replacing_all(targets, notify) as open_next:
            work.write_parts(open_next, heads, ranges)
    return WriteReport(tuple(paths), name, rows, notices, n_bytes, time.monotonic() - began)


def write_into(
    file: OutputFile, model: SourceModel, file_type: str, *, progress: Progress, n_threads: int | None
) -> None:
    """Write `model` to a file that is open already; errors as of `write_model`."""
    name, work = _plan(model, file_type, parse_options(), None, progress, _threads(n_threads))
    ranges = [range(len(work.rows))]
    heads = list(_heads(_metadata(model, name, None), _headers(model, name, work.rows), ranges, None))
    check_space(file.target, sum(map(len, heads)) + sum(padded(row.n_bytes) for row in work.rows))
    work.prepare(unheard)
    work.write_parts(lambda: file, heads, ranges)


def _plan(
    model: SourceModel, file_type: str, options: Options, imatrix: Imatrix | None, progress: Progress, n_threads: int
) -> tuple[str, _Work]:
    """The file type's name, and every tensor's type."""
    name = file_type.strip().upper()
    name = COPY if name == COPY else find_recipe(name).name
    choices = list(choose_types(model, name, replace(options, has_imatrix=imatrix is not None)))
    weights = column_weights(imatrix, choices, name, model.label)
    rows = tuple(_row(choice, model.label) for choice in choices)
    return name, _Work(model, choices, rows, weights, progress, n_threads)


def _heads(
    metadata: Mapping[str, MetaValue], headers: Sequence[TensorHeader], ranges: Sequence[range], split: Split | None
) -> Iterator[bytes]:
    """What each part begins with."""
    for i, tensors in enumerate(ranges):
        keys = part_metadata(metadata, i, len(ranges), len(headers), split)
        yield header_bytes(keys, [headers[t] for t in tensors])


def _headers(model: SourceModel, file_type: str, rows: Sequence[WrittenTensor]) -> list[TensorHeader]:
    """The tensors as the file lists them: ggml leaves out an axis of one expert, the converter writes it."""
    shaped = tuple if _by_converter(model, file_type) else trimmed
    return [TensorHeader(row.name, shaped(row.shape), row.type, row.n_bytes) for row in rows]


def _by_converter(model: SourceModel, file_type: str) -> bool:
    """Whether llama.cpp's converter alone makes this file, and llama-quantize has no part in it."""
    return model.origin == "checkpoint" and file_type in CONVERTER_TYPES


def _inputs(model: SourceModel, imatrix: Imatrix | None) -> list[Path]:
    return [*model.files, Path(model.label), *([Path(imatrix.label)] if imatrix and imatrix.label else [])]


def _threads(wanted: int | None) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or available, MAX_THREADS))


def _row(choice: Choice, label: str) -> WrittenTensor:
    """Sizes of one tensor before and after."""
    tensor = choice.tensor
    if choice.type != tensor.type:
        format_of(tensor.type, file=label, item=visible(tensor.name))
    source, form = stored_format(tensor.type), stored_format(choice.type)
    if tensor.n_columns % form.block_size:
        raise UsageError(
            f"rows of {tensor.n_columns} do not divide into blocks of {form.name}",
            file=label, item=tensor.name, expected=f"a multiple of {form.block_size}",
        )  # fmt: skip
    sizes = (tensor.n_rows * source.row_bytes(tensor.n_columns), tensor.n_rows * form.row_bytes(tensor.n_columns))
    return WrittenTensor(tensor.name, tensor.shape, tensor.type, choice.type, *sizes)


def _check(problem: UsageError | None, dry_run: bool, notify: Notify) -> None:
    """Raise what keeps the model from being written; where it will not be, only tell."""
    if problem is not None and not dry_run:
        raise problem
    if problem is not None:
        notify(str(problem))


def _requantizing(rows: Sequence[WrittenTensor], label: str) -> UsageError | None:
    for row in rows:
        if row.type != row.source_type and FORMATS[row.source_type].quantized:
            return UsageError(
                "is quantized already, and quantizing it again loses quality: --allow-requantize does it anyway",
                file=label, item=row.name, got=row.source_type.name, expected="F32, F16 or BF16",
            )  # fmt: skip
    return None


def _metadata(model: SourceModel, file_type: str, imatrix: Imatrix | None) -> dict[str, MetaValue]:
    """The source's keys with file type and quantization version, where llama.cpp's program for that case has them."""
    meta = {k: v for k, v in model.metadata.items() if k not in _SPLIT_KEYS}
    if "general.alignment" in meta and meta["general.alignment"].value != ALIGNMENT:
        del meta["general.alignment"]
    numbers = {"general.quantization_version": QUANTIZATION_VERSION}
    if file_type != COPY:
        numbers["general.file_type"] = int(find_recipe(file_type).file_type)
    if file_type != COPY and not _by_converter(model, file_type):
        for key in numbers:  # llama-quantize removes both and puts them last
            meta.pop(key, None)
    for key, value in numbers.items():
        meta[key] = MetaValue(value, GGUFValueType.UINT32)
    measured = imatrix.quantize_keys() if imatrix else {}
    for key, entry in (*model.user_keys.items(), *measured.items(), *model.last_keys.items()):
        meta.pop(key, None)
        meta[key] = entry
    return meta


class _Work:
    """Pieces through the threads and back in order; at most two more in flight than there are threads for encoding.

    So there is one to be read, one or more to be encoded and one to be written. Readers are threads of their own: one
    that waits for the disk keeps no encoder from working.
    """

    def __init__(
        self,
        model: SourceModel,
        choices: Sequence[Choice],
        rows: tuple[WrittenTensor, ...],
        weights: Weights,
        progress: Progress,
        n_threads: int,
    ) -> None:
        self._model = model
        self.choices = choices
        self.rows = rows
        self.weights = weights
        self._progress = progress
        self._n_threads = n_threads

    def prepare(self, notify: Notify) -> None:
        """Compile, or load, the encoders."""
        prepare({(row.source_type, row.type, row.name in self.weights) for row in self.rows}, notify)

    def write_parts(self, open_next: Callable[[], OutputFile], heads: Sequence[bytes], parts: Sequence[range]) -> None:
        """Write every part: its header, then its tensors with their padding, in order."""
        self._progress.start(sum(row.source_bytes for row in self.rows), "converting tensors")
        readers = ThreadPoolExecutor(self._n_threads, thread_name_prefix="read")
        encoders = ThreadPoolExecutor(self._n_threads, thread_name_prefix="encode")
        try:
            results = self._in_order(readers, encoders)
            for head, tensors in zip(heads, parts, strict=True):
                file = open_next()
                file.write(head)
                for i in tensors:
                    self._write_tensor(file, self.choices[i], self.rows[i], results)
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            encoders.shutdown(wait=True, cancel_futures=True)
            self._progress.finish()

    def _in_order(self, readers: ThreadPoolExecutor, encoders: ThreadPoolExecutor) -> Iterator[Rows]:
        """The converted pieces of all tensors, in order."""
        waiting: deque[Future[Rows]] = deque()
        for piece, choice, importance in self._pieces():
            waiting.append(encoders.submit(_convert_read, readers.submit(piece), choice, importance))
            if len(waiting) > self._n_threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _pieces(self) -> Iterator[tuple[Piece, Choice, np.ndarray | None]]:
        """All pieces with the weights of their columns: those of the matrix that they are part of."""
        for choice in self.choices:
            weights = self.weights.get(choice.tensor.name)
            for i, piece in enumerate(choice.tensor.pieces):
                yield piece, choice, None if weights is None else weights[i // _pieces_a_matrix(choice)]

    def _write_tensor(self, file: OutputFile, choice: Choice, row: WrittenTensor, results: Iterator[Rows]) -> None:
        elements = written = 0
        weighed = row.name in self.weights
        for i in range(len(choice.tensor.pieces)):
            rows = next(results)
            if rows.bad is not None:
                raise self._bad_value(choice, elements + rows.bad, rows.finite_source)
            file.write(rows.data)
            elements += rows.n_elements
            if weighed and (i + 1) % _pieces_a_matrix(choice) == 0:
                assert elements % int(np.prod(row.shape[-2:])) == 0, "a matrix has more pieces than another"
            written += rows.data.nbytes
            self._progress.advance(rows.source_bytes)
        if written != row.n_bytes:
            raise BadInputError(
                "the tensor's rows are not all there", file=self._model.label, item=row.name,
                got=f"{elements} elements", expected=int(np.prod(row.shape)),
            )  # fmt: skip
        file.write(bytes(padded(written) - written))

    def _bad_value(self, choice: Choice, index: int, finite_source: bool) -> BadInputError:
        name, label = choice.tensor.name, self._model.label
        if finite_source:
            where = "in the block at" if FORMATS[choice.type].quantized else "at"
            return BadInputError(
                f"value {where} index {index} is too large for {choice.type.name}", file=label, item=name
            )
        return BadInputError(f"NaN or infinity at index {index}", file=label, item=name, expected="finite weights")


def _pieces_a_matrix(choice: Choice) -> int:
    """Pieces of each expert of a stack, or of a matrix: readers cut all experts alike."""
    pieces, n = len(choice.tensor.pieces), matrices(choice.tensor.shape)
    assert pieces % n == 0
    return pieces // n


def _convert_read(rows: Future[np.ndarray], choice: Choice, importance: np.ndarray | None) -> Rows:
    return convert(rows.result(), choice.tensor.type, choice.type, choice.tensor.n_columns, importance)
