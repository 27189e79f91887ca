"""`localmoe bench`: prompt and decode speed, reported as llama-bench does."""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from localmoe.cli.bench_profile import profile_lines, profile_test
from localmoe.cli.common import CacheTypeK, CacheTypeV, ExpertsUsed, ModelPath, load_arguments, open_model
from localmoe.engine.threads import physical_cores
from localmoe.errors import UsageError

if TYPE_CHECKING:
    from localmoe.engine.api import Model

WARM_UP_PROMPT = 64
WARM_UP_DECODE = 2
NO_TOKEN = -1
MAX_TOKENS = 10_000_000
FORMATS = ("md", "json")


@dataclass(frozen=True)
class Case:
    """A prompt of `n_prompt` tokens or `n_gen` decoded ones (one of the two is 0) after `n_depth` tokens of context."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        """llama-bench's name of it."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def n_tokens(self) -> int:
        """Tokens whose time counts."""
        return self.n_prompt + self.n_gen


@dataclass(frozen=True)
class Row:
    """One measured test; `samples` and `avg_ts` are tokens per second."""

    model_filename: str
    model_size: int
    model_n_params: int
    n_threads: int
    n_prompt: int
    n_gen: int
    n_depth: int
    test: str
    avg_ts: float
    stddev_ts: float
    samples: list[float]
    read_gbs: float | None = None  # of a plain read loop over the model's weights, between the runs
    token_bytes: int | None = None  # that a decoded token reads
    read_share: float | None = None  # median run's bytes per second over read_gbs
    profile: dict[str, Any] | None = None


def bench(
    model: ModelPath,
    n_prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", help="Prompt tokens; a list is 128,512; 0: none.")
    ] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Decoded tokens; a list; 0: none.")] = "128",
    n_depth: Annotated[str, typer.Option("-d", "--n-depth", help="Tokens already in the context; a list.")] = "0",
    threads: Annotated[
        str, typer.Option("-t", "--threads", help="Threads; a list. [default: physical cores]", show_default=False)
    ] = "",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Counted runs of each test.")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", help="md or json.")] = "md",
    experts_used: ExpertsUsed = None,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    profile: Annotated[bool, typer.Option("--profile", help="Time every step, beside the machine's limits.")] = False,
) -> None:
    """Measure prompt and decode speed in tokens per second: mean and standard deviation, after a warm-up."""
    if output not in FORMATS:
        raise UsageError("no such output", item="-o", got=repr(output), expected="md or json")
    tests = [
        *(
            Case(p, 0, d)
            for d, p in itertools.product(whole_numbers("-d", n_depth), whole_numbers("-p", n_prompt))
            if p
        ),
        *(Case(0, n, d) for d, n in itertools.product(whole_numbers("-d", n_depth), whole_numbers("-n", n_gen)) if n),
    ]
    if not tests:
        raise UsageError("nothing to measure", expected="-p or -n above 0")
    n_ctx = max(test.n_depth + test.n_tokens for test in tests)
    load = load_arguments(max(n_ctx, WARM_UP_PROMPT + WARM_UP_DECODE), None, experts_used, cache_type_k, cache_type_v)
    rows: list[Row] = []
    for n_threads in whole_numbers("-t", threads or str(physical_cores()), least=1):
        with closing(open_model(model, {**load, "n_threads": n_threads})) as opened:
            for row in measure_all(opened, model, n_threads, tests, repetitions, profile=profile):
                if output == "md":
                    print("\n".join(([] if rows else [*HEADER]) + [markdown_row(row)]), flush=True)
                rows.append(row)
    if output == "md":
        for row in rows:
            print("".join(f"{line}\n" for line in (*bandwidth(row), *profile_lines(row.test, row.profile))), end="")
    else:
        print(json.dumps([asdict(row) for row in rows], indent=2))


def whole_numbers(flag: str, text: str, least: int = 0) -> list[int]:
    """Numbers of a comma list, each once; UsageError names the flag."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,12}", part) and least <= int(part) <= MAX_TOKENS for part in parts):
        raise UsageError("not a list of whole numbers", item=flag, got=repr(text), expected=f"{least} to {MAX_TOKENS}")
    return list(dict.fromkeys(map(int, parts)))


def measure_all(
    model: Model, path: Path, n_threads: int, tests: list[Case], repetitions: int, *, profile: bool = False
) -> Iterator[Row]:
    """Rows of all tests, after a warm-up that compiles and reads what they need."""
    session = model.session()
    ids = _token_ids(model, WARM_UP_PROMPT + WARM_UP_DECODE)
    session.prefill(ids[:WARM_UP_PROMPT])
    for token in ids[WARM_UP_PROMPT:]:
        session.decode(token)
    n_params = sum(tensor.n_elements for tensor in model.gguf.tensors.values())
    for test in tests:
        samples, reads = [], []
        for run in range(repetitions):
            if sys.stderr.isatty():
                print(f"\r{test.name}: {run + 1}/{repetitions} ", end="", file=sys.stderr, flush=True)
            if test.n_gen:
                if run == 0:
                    model.read_speed()  # from the disk, perhaps
                reads.append(model.read_speed())
            samples.append(test.n_tokens / measure(model, session, test))
        run_once = partial(measure, model, session, test)
        profiled = profile_test(model, repetitions, run_once) if profile else None
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        spread = statistics.stdev(samples) if len(samples) > 1 else 0.0
        ends = (test.n_depth, test.n_depth + test.n_gen - 1)
        n_bytes = sum(map(model.decode_bytes, ends)) // 2 if test.n_gen else None
        read = statistics.median(reads) if reads else None
        yield Row(
            model_filename=str(path),
            model_size=model.gguf.n_bytes,
            model_n_params=n_params,
            n_threads=n_threads,
            n_prompt=test.n_prompt,
            n_gen=test.n_gen,
            n_depth=test.n_depth,
            test=test.name,
            avg_ts=statistics.fmean(samples),
            stddev_ts=spread,
            samples=samples,
            read_gbs=read,
            token_bytes=n_bytes,
            read_share=statistics.median(samples) * n_bytes / read / 1e9 if n_bytes and read else None,
            profile=profiled,
        )


def bandwidth(row: Row) -> list[str]:
    """A line on how much of the memory's bandwidth decoding used."""
    if row.token_bytes is None or row.read_gbs is None or row.read_share is None:
        return []
    used, share = row.read_share * row.read_gbs, row.read_share
    size = f"{row.token_bytes / 1e9:.3f} GB a token"
    return [f"{row.test}: {size}, {used:.1f} GB/s, {share:.0%} of a plain read loop's {row.read_gbs:.1f} GB/s"]


def measure(model: Model, session: Any, test: Case) -> float:
    """Seconds of a test's own tokens; filling the context before them does not count.

    What an earlier test filled stays, as in llama-bench.
    """
    ids = _token_ids(model, test.n_depth)
    n_kept = session.keep_prefix([*ids, NO_TOKEN])
    if n_kept < test.n_depth:
        session.prefill(ids[n_kept:])
    rest = _token_ids(model, test.n_tokens)
    start = time.perf_counter()
    if test.n_prompt:
        session.prefill(rest)
    else:
        for token in rest:
            session.decode(token)
    return time.perf_counter() - start


def _token_ids(model: Model, n: int) -> list[int]:
    """Pseudo-random ids, more of them for a greater `n`: a MoE's experts are all called, as by real text."""
    return [int(token) for token in np.random.default_rng(0).integers(0, model.config.n_vocab, n)]


HEADER = (
    "| model                          |       size |     params | threads |            test |                  t/s |",
    "| ------------------------------ | ---------: | ---------: | ------: | --------------: | -------------------: |",
)


def markdown_row(row: Row) -> str:
    """A line of llama-bench's table."""
    size = f"{row.model_size / 2**30:.2f} GiB" if row.model_size >= 2**30 else f"{row.model_size / 2**20:.2f} MiB"
    params = f"{row.model_n_params / 1e9:.2f} B" if row.model_n_params >= 1e9 else f"{row.model_n_params / 1e6:.2f} M"
    speed = f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}"
    name = Path(row.model_filename).stem.replace("|", "/")[:30]
    return f"| {name:30s} | {size:>10s} | {params:>10s} | {row.n_threads:7d} | {row.test:>15s} | {speed:>20s} |"
