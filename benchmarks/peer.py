"""Speed of a peer engine on one GGUF, in the rows of `localmoe bench -o json`; runs in the peer's own environment.

    pip install llama-cpp-python==0.3.36     # or: ik-llama-cpp-python==0.1.5
    python benchmarks/peer.py MODEL.gguf --engine llama.cpp [-p 512] [-n 128] [-d 0] [-t 2] [-r 5] [--state FOLDER]

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
from pathlib import Path
from typing import Any

BATCH = 512
WARM_UP = 64


@dataclass(frozen=True)
class Engine:
    """An open model: `run` appends tokens (at most BATCH) to the context and computes, `cut` leaves the first n.

    `save` writes the context to a file, `load` reads one that holds n tokens. `keep` is what must live as long: C holds
    a pointer to it.
    """

    n_vocab: int
    run: Callable[[list[int]], None]
    cut: Callable[[int], None]
    save: Callable[[Path], None]
    load: Callable[[Path, int], None]
    keep: object = None


class Context:
    """What an engine has read: filled once a depth, kept between tests as in llama-bench, and in files in `folder`."""

    def __init__(self, engine: Engine, rng: random.Random, folder: Path | None) -> None:
        self.engine = engine
        self.rng = rng
        self.folder = folder
        self.n_filled = 0

    def token_ids(self, n: int) -> list[int]:
        """Pseudo-random tokens."""
        return [self.rng.randrange(self.engine.n_vocab) for _ in range(n)]

    def fill(self, n_depth: int) -> None:
        """Leave `n_depth` tokens in the context."""
        self.engine.cut(min(self.n_filled, n_depth))
        saved = None if self.folder is None or not n_depth else self.folder / f"{n_depth}.state"
        if saved is not None and saved.exists() and self.n_filled < n_depth:
            self.engine.load(saved, n_depth)
        else:
            for i in range(self.n_filled, n_depth, BATCH):
                self.engine.run(self.token_ids(min(BATCH, n_depth - i)))
            if saved is not None and not saved.exists():
                self.engine.save(saved)
        self.n_filled = n_depth

    def seconds(self, n_prompt: int, n_gen: int, n_depth: int) -> float:
        """Time of one test's own tokens; filling the context before them does not count."""
        self.fill(n_depth)
        ids = self.token_ids(n_prompt + n_gen)
        step = BATCH if n_prompt else 1
        start = time.perf_counter()
        for i in range(0, len(ids), step):
            self.engine.run(ids[i : i + step])
        return time.perf_counter() - start


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

    def cut(n: int) -> None:
        api.llama_memory_seq_rm(api.llama_get_memory(context), 0, n, -1)

    def save(path: Path) -> None:
        if not api.llama_state_save_file(context, bytes(path), (api.llama_token * 1)(), 0):
            sys.exit(f"error: {path}: cannot be written")

    def load(path: Path, n: int) -> None:
        none, count = (api.llama_token * 1)(), ctypes.c_size_t()
        read = api.llama_state_load_file(context, bytes(path), none, 1, ctypes.pointer(count))
        if not read or api.llama_memory_seq_pos_max(api.llama_get_memory(context), 0) != n - 1:
            sys.exit(f"error: {path}: does not hold {n} tokens of this model")

    return Engine(api.llama_vocab_n_tokens(api.llama_model_get_vocab(loaded)), run, cut, save, load, keep=quiet)


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

    library, context = _ik_contexts(api._lib), opened._context.ctx
    no_ids = (ctypes.c_int32 * 1)()

    def cut(n: int) -> None:
        nonlocal past
        library.llama_kv_cache_seq_rm(context, 0, n, -1)
        past = n

    def save(path: Path) -> None:
        if not library.llama_state_save_file(context, bytes(path), no_ids, 0):
            sys.exit(f"error: {path}: cannot be written")

    def load(path: Path, n: int) -> None:
        nonlocal past
        if not library.llama_state_load_file(context, bytes(path), no_ids, 1, ctypes.c_size_t()):
            sys.exit(f"error: {path}: not a context of this model")
        past = n

    return Engine(api.llama_vocab_n_tokens(api.llama_model_get_vocab(opened._model.model)), run, cut, save, load)


def _ik_contexts(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, with the types of what its Python binding leaves out."""
    ids, size = ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t
    for name, arguments in (
        ("llama_kv_cache_seq_rm", [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_state_save_file", [ctypes.c_char_p, ids, size]),
        ("llama_state_load_file", [ctypes.c_char_p, ids, size, ctypes.POINTER(size)]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_bool, [ctypes.c_void_p, *arguments]
    return library


ENGINES: dict[str, Callable[[str, int, int], Engine]] = {"llama.cpp": open_llama_cpp, "ik_llama.cpp": open_ik}


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measured tests, after a warm-up."""
    tests = [(p, 0, d) for d in args.d for p in args.p if p] + [(0, n, d) for d in args.d for n in args.n if n]
    n_ctx = max([sum(test) for test in tests] + [2 * WARM_UP])
    engine = ENGINES[args.engine](args.model, n_ctx, args.t)
    rng = random.Random(0)
    context = Context(engine, rng, args.state)
    context.seconds(WARM_UP, 0, 0)
    context.seconds(0, 1, 0)
    out = []
    for n_prompt, n_gen, n_depth in tests:
        samples = [(n_prompt + n_gen) / context.seconds(n_prompt, n_gen, n_depth) for _ in range(args.r)]
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
    parser.add_argument("--state", type=Path, help="a folder for this model's filled contexts")
    print(json.dumps(rows(parser.parse_args())))


if __name__ == "__main__":
    main()
