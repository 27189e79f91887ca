"""Speed of a peer engine on one GGUF, in the rows of `localmoe bench -o json`; runs in the peer's own environment.

    pip install llama-cpp-python==0.3.36     # or: ik-llama-cpp-python==0.1.5
    python benchmarks/peer.py MODEL.gguf --engine llama.cpp [-p 512] [-n 128] [-d 0] [-t 2] [-r 5]

Both are driven through their C interface with pseudo-random tokens, batches of 512 and logits of the last token alone,
as llama-bench does.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BATCH = 512
WARM_UP = 64


@dataclass(frozen=True)
class Engine:
    """An open model: `run` appends tokens (at most BATCH) to the context and computes, `reset` empties it.

    `keep` is what must live as long: C holds a pointer to it.
    """

    n_vocab: int
    run: Callable[[list[int]], None]
    reset: Callable[[], None]
    keep: object = None


def _check(status: int) -> None:
    if status:
        sys.exit(f"error: llama_decode returned {status}")


def open_llama_cpp(model: str, n_ctx: int, n_threads: int) -> Engine:
    """llama.cpp through llama-cpp-python."""
    import llama_cpp as api

    quiet = api.llama_log_callback(lambda _level, _text, _data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    loaded = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
    if not loaded:
        sys.exit(f"error: {model}: llama.cpp cannot load it")
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, BATCH, BATCH
    params.n_threads = params.n_threads_batch = n_threads
    context = api.llama_init_from_model(loaded, params)

    def run(ids: list[int]) -> None:
        tokens = (api.llama_token * len(ids))(*ids)
        _check(api.llama_decode(context, api.llama_batch_get_one(tokens, len(ids))))
        api.llama_synchronize(context)

    def reset() -> None:
        api.llama_memory_clear(api.llama_get_memory(context), True)

    return Engine(api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded)), run, reset, keep=quiet)


def open_ik(model: str, n_ctx: int, n_threads: int) -> Engine:
    """ik_llama.cpp through ik-llama-cpp-python."""
    from ik_llama_cpp import _ctypes_api as api
    from ik_llama_cpp import llama

    opened = llama.IkLlama(model, n_ctx=n_ctx, n_threads=n_threads, flash_attn=True, verbose=False)
    past = 0

    def run(ids: list[int]) -> None:
        nonlocal past
        batch = llama.make_batch_range(ids, pos_start=past, logits_last=True)
        _check(opened._context.decode(batch))
        api.llama_batch_free(batch)
        past += len(ids)

    def reset() -> None:
        nonlocal past
        opened._context.kv_cache_clear()
        past = 0

    return Engine(api.llama_vocab_n_tokens(api.llama_model_get_vocab(opened._model.model)), run, reset)


ENGINES: dict[str, Callable[[str, int, int], Engine]] = {"llama.cpp": open_llama_cpp, "ik_llama.cpp": open_ik}


def seconds(engine: Engine, n_prompt: int, n_gen: int, n_depth: int, rng: random.Random) -> float:
    """Time of one test's own tokens; filling the context before them does not count."""
    engine.reset()
    ids = [rng.randrange(engine.n_vocab) for _ in range(n_depth + n_prompt + n_gen)]
    for i in range(0, n_depth, BATCH):
        engine.run(ids[i : min(i + BATCH, n_depth)])
    step = BATCH if n_prompt else 1
    start = time.perf_counter()
    for i in range(n_depth, len(ids), step):
        engine.run(ids[i : i + step])
    return time.perf_counter() - start


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measured tests, after a warm-up."""
    tests = [(p, 0, d) for d in args.d for p in args.p if p] + [(0, n, d) for d in args.d for n in args.n if n]
    n_ctx = max([sum(test) for test in tests] + [2 * WARM_UP])
    engine = ENGINES[args.engine](args.model, n_ctx, args.t)
    rng = random.Random(0)
    engine.run([rng.randrange(engine.n_vocab) for _ in range(WARM_UP)])
    engine.run([rng.randrange(engine.n_vocab)])
    out = []
    for n_prompt, n_gen, n_depth in tests:
        samples = [(n_prompt + n_gen) / seconds(engine, n_prompt, n_gen, n_depth, rng) for _ in range(args.r)]
        name = (f"pp{n_prompt}" if n_prompt else f"tg{n_gen}") + (f" @ d{n_depth}" if n_depth else "")
        out.append(
            {"model_filename": args.model, "engine": args.engine, "n_threads": args.t, "n_prompt": n_prompt}
            | {"n_gen": n_gen, "n_depth": n_depth, "test": name, "avg_ts": statistics.fmean(samples)}
            | {"stddev_ts": statistics.stdev(samples) if len(samples) > 1 else 0.0, "samples": samples}
        )
    return out


def numbers(text: str) -> list[int]:
    """A comma list of whole numbers."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print the rows as one JSON list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", choices=ENGINES, default="llama.cpp")
    for flag, default, text in (
        ("-p", [512], "prompt tokens, a list"),
        ("-n", [128], "decoded tokens, a list"),
        ("-d", [0], "tokens already in the context, a list"),
    ):
        parser.add_argument(flag, type=numbers, default=default, help=text)
    parser.add_argument("-t", type=int, default=2, help="threads")
    parser.add_argument("-r", type=int, default=5, help="counted runs")
    print(json.dumps(rows(parser.parse_args())))


if __name__ == "__main__":
    main()
