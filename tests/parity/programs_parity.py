"""perplexity, imatrix, quantize and splits against llama.cpp's own programs, through both command lines.

    LLAMA_BIN=folder/of/llama.cpp/bin python tests/parity/programs_parity.py [MODEL.gguf TEXT]

LLAMA_BIN holds llama-perplexity, llama-imatrix, llama-quantize and llama-gguf-split (CONTRIBUTING.md says how to build
them). Without arguments: tests.tiny's models and tiny-moe of shared/data. Perplexities must be within 0.2% and their
errors within 1%; what is read from the other's file must give the same figures or, where a model is quantized with it,
the same bytes. Prints a JSON line a comparison; exit 1 where a bound does not hold.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from localmoe.converters.imatrix import read_imatrix
from localmoe.engine.divergence import open_base
from localmoe.gguf_file import open_gguf
from tests.tiny import WORDS, write_tiny

TINY_MOE = ROOT.parent / "shared" / "data" / "tiny-moe"
TINY_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_1", "Q4_K_M", "IQ4_XS", "MXFP4_MOE", "Q3_K_M", "Q2_K")
PPL_BOUND, ERROR_BOUND = 2e-3, 1e-2
SUM_BOUND = {"random F32": 1e-4, "random dense": 1e-4, "64 experts": 1e-4, "tiny-moe F16": 3e-3}  # others: 1%
MOVED_BOUND = 2e-3  # of all choices: a near-tie in routing falls either way
NUMBER = r"(-?\d+\.\d+)"
PPL = re.compile(rf"PPL = {NUMBER} \+/- {NUMBER}")


def say(what: str, good: bool, **figures: Any) -> bool:
    print(json.dumps({"what": what, "good": good, **figures}), flush=True)
    return good


def theirs(program: str, *arguments: object, fails: bool = False, last: str = "") -> str:
    """Run one of llama.cpp's programs; everything it printed, to the text `last`.

    Its log is a thread of its own, of which the last lines are lost in every other run: it is run again then.
    """
    command = [str(Path(os.environ["LLAMA_BIN"]) / f"llama-{program}"), *map(str, arguments)]
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not fails:
            sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        if last in done.stdout + done.stderr:
            return done.stdout + done.stderr
    sys.exit(f"{' '.join(command)}: did not print {last!r}")


def ours(*arguments: object, code: int = 0) -> str:
    """Run localmoe; everything it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "localmoe", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode != code:
        sys.exit(f"localmoe {arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# --- perplexity ------------------------------------------------------------------------------------------------------


def estimate(printed: str) -> tuple[float, float]:
    found = PPL.search(printed)
    assert found, printed
    return float(found[1]), float(found[2])


def compare_perplexity(name: str, model: Path, text: Path, *options: object) -> bool:
    mine, error = estimate(ours("perplexity", "-m", model, "-f", text, *options))
    said = theirs("perplexity", "-m", model, "-f", text, "-t", "2", *options, last="Final estimate: PPL")
    peer, peer_error = estimate(said)
    off, error_off = abs(mine / peer - 1), abs(error / peer_error - 1)
    good = off <= PPL_BOUND and error_off <= ERROR_BOUND
    figures = {"ppl": mine, "llama_ppl": peer, "off": off, "error": error, "llama_error": peer_error}
    return say(f"{name}: perplexity {' '.join(map(str, options))}", good, **figures)


def statistics(printed: str) -> dict[str, list[float]]:
    """The lines of the report on divergence: name -> numbers."""
    lines = printed[printed.index("====== Perplexity statistics") :].splitlines()
    parts = [line.rsplit(":", 1) for line in lines if re.match(r" *\S+ +(PPL|ln|KLD|Δp|top)|Cor", line)]
    return {" ".join(name.split()): [float(x) for x in re.findall(NUMBER, rest)] for name, rest in parts}


def compare_divergence(name: str, base_model: Path, model: Path, text: Path, folder: Path, *options: object) -> bool:
    """Both programs' bases, each read by both: the reader decides the figures, not the writer."""
    bases = {"ours": folder / "ours.kld", "theirs": folder / "theirs.kld"}
    arguments = ("-m", base_model, "-f", text, *options, "--kl-divergence-base")
    ours("perplexity", *arguments, bases["ours"])
    theirs("perplexity", "-t", "2", *arguments, bases["theirs"])
    a, b = open_base(bases["ours"]), open_base(bases["theirs"])
    same_head = bases["ours"].stat().st_size == bases["theirs"].stat().st_size and np.array_equal(a.chunks, b.chunks)
    good = say(f"{name}: base files have one size and the same tokens", same_head, bytes=bases["ours"].stat().st_size)
    reads = {}
    for writer, base in bases.items():
        wanted = ("-m", model, "--kl-divergence", "--kl-divergence-base", base)
        reads["ours", writer] = statistics(ours("perplexity", *wanted))
        reads["theirs", writer] = statistics(theirs("perplexity", "-t", "2", *wanted, last="Same top p: "))
    first = reads["theirs", "theirs"]
    for (reader, writer), found in reads.items():
        kld, error = first["Mean KLD"]
        off = abs(found["Mean PPL(Q)"][0] / first["Mean PPL(Q)"][0] - 1)
        kld_off = abs(found["Mean KLD"][0] - kld)
        fits = found.keys() == first.keys() and off <= PPL_BOUND and kld_off <= max(error, 1e-4)
        good &= say(
            f"{name}: divergence, file {writer}, read by {reader}", fits, lines=len(found), ppl=found["Mean PPL(Q)"],
            ppl_off=off, kld=found["Mean KLD"], same_top=found["Same top p"],
        )  # fmt: skip
    return good


def compare_refusals(model: Path, folder: Path) -> bool:
    """A text of less than two chunks: neither measures it."""
    short = folder / "short.txt"
    short.write_text("the red sun " * 5)
    said = ours("perplexity", "-m", model, "-f", short, "-c", 64, code=2)
    peer = theirs("perplexity", "-m", model, "-f", short, "-c", 64, fails=True, last="you need at least 128 tokens")
    good = "too short" in said and "you need at least 128 tokens" in peer and not PPL.search(said + peer)
    return say("a text shorter than two chunks is refused by both", good)


# --- importance matrices ---------------------------------------------------------------------------------------------


def compare_imatrix(name: str, model: Path, text: Path, folder: Path, *options: object) -> bool:
    """The same names and counts, sums within float error; each program quantizes with the other's file."""
    files = {"ours": folder / "ours.imatrix", "theirs": folder / "theirs.gguf", "legacy": folder / "theirs.dat"}
    said = ours("imatrix", "-m", model, "-f", text, *options, "-o", files["ours"])
    common = ("-m", model, "-f", text, "-t", "2", *options)
    theirs("imatrix", *common, "-o", files["theirs"], "--output-format", "gguf")
    theirs("imatrix", *common, "-o", files["legacy"], "--output-format", "dat")
    mine, peer, legacy = (read_imatrix(path) for path in files.values())
    names = mine.entries.keys() == peer.entries.keys()
    off, moved = [], 0
    for key in mine.entries.keys() & peer.entries.keys():
        a, b = mine.entries[key], peer.entries[key]
        moved += int(np.abs(a.counts - b.counts).sum())
        same = (a.counts == b.counts) & (a.counts > 0)
        off += (np.abs(a.sums[same] - b.sums[same]).sum(axis=1) / b.sums[same].sum(axis=1)).tolist()
    median = float(np.median(off))
    unseen = {key: entry.unseen for key, entry in peer.entries.items() if entry.unseen}
    named = all(str(expert) in said for experts in unseen.values() for expert in experts)
    good = names and named and median <= SUM_BOUND.get(name, 1e-2) and legacy.legacy
    n_choice = int(sum(entry.counts.sum() for entry in peer.entries.values()))
    good &= moved <= MOVED_BOUND * n_choice
    good = say(
        f"{name}: imatrix {' '.join(map(str, options))}", good, matrices=len(peer.entries), rows=len(off),
        counts_off=moved, of=n_choice, median_off=median,
        max_off=max(off), rows_unseen=sum(map(len, unseen.values())),
    )  # fmt: skip
    for kind, path in files.items():
        good &= compare_quantize(f"{name}: quantized with the {kind} matrix", model, path, folder)
    return good


def compare_quantize(what: str, model: Path, matrix: Path, folder: Path) -> bool:
    """Whole files of both programs with one matrix."""
    mine, peer, results = folder / "quantized-by-us.gguf", folder / "quantized-by-them.gguf", {}
    for kind in ("Q4_K_M", "IQ2_XS"):
        ours("quantize", model, mine, kind, "--imatrix", matrix)
        theirs("quantize", "--imatrix", matrix, model, peer, kind)
        results[kind] = mine.read_bytes() == peer.read_bytes()
    return say(what, all(results.values()), same=results)


def compare_requantize(model: Path, folder: Path) -> bool:
    """What is quantized already, quantized again by both programs."""
    once, mine, peer, results = folder / "once.gguf", folder / "by-us.gguf", folder / "by-them.gguf", {}
    for first, then in (("Q8_0", "Q4_K_M"), ("Q4_K_M", "IQ4_XS"), ("IQ3_S", "Q5_1"), ("Q6_K", "F16")):
        ours("quantize", model, once, first)
        ours("quantize", once, mine, then, "--allow-requantize")
        theirs("quantize", "--allow-requantize", once, peer, then)
        results[f"{first} to {then}"] = mine.read_bytes() == peer.read_bytes()
    return say("quantized again", all(results.values()), same=results)


# --- split files -----------------------------------------------------------------------------------------------------


def compare_splits(model: Path, folder: Path) -> bool:
    """gguf-split's parts and ours by number of tensors, and each program merges the other's."""
    whole = folder / "whole.gguf"  # by llama-quantize: it states the quantization version, which COPY would add
    theirs("quantize", model, whole, "Q8_0")
    ours("quantize", whole, folder / "ours.gguf", "COPY", "--split-max-tensors", 5)
    theirs("gguf-split", "--split", "--split-max-tensors", 5, whole, folder / "theirs")
    parts = {who: sorted(folder.glob(f"{who}-0*.gguf")) for who in ("ours", "theirs")}
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(parts["ours"], parts["theirs"], strict=True)]
    theirs("gguf-split", "--merge", parts["ours"][0], folder / "merged-by-them.gguf")
    ours("quantize", parts["theirs"][0], folder / "merged-by-us.gguf", "COPY")
    merged = (folder / "merged-by-us.gguf").read_bytes() == whole.read_bytes()
    with open_gguf(whole) as a, open_gguf(folder / "merged-by-them.gguf") as b:  # which keeps a split.count of 0
        read = all(a.tensors[name].shape == b.tensors[name].shape for name in a.tensors | b.tensors)
        read = read and all(np.array_equal(a.raw(name), b.raw(name)) for name in a.tensors)
    good = all(same) and merged and read
    return say("splits", good, parts=len(same), parts_same=sum(same), merged_by_us=merged, merged_by_them=read)


# --- what is compared ------------------------------------------------------------------------------------------------


def random_models(folder: Path) -> Iterator[tuple[str, Path]]:
    wide = {"n_embd": 256, "n_head": 4, "n_head_kv": 2, "n_ff": 256, "n_ctx_train": 512}
    yield "random F32", write_tiny(folder / "a.gguf", **wide)
    yield "random dense", write_tiny(folder / "b.gguf", n_expert=0, **wide)
    yield "64 experts", write_tiny(folder / "c.gguf", n_expert=64, n_expert_used=2, n_layer=1, **wide)


def compare_random(folder: Path) -> Iterator[bool]:
    text = folder / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 2000)) + "\r\n<s> </s> é 写\n")
    models = dict(random_models(folder))
    for name, model in models.items():
        yield compare_perplexity(name, model, text, "-c", 64, "--chunks", 8)
        yield compare_imatrix(name, model, text, folder, "-c", 64, "--chunks", 1 if name == "64 experts" else 8)
    yield compare_perplexity("random F32", models["random F32"], text, "-c", 100)  # in the end a chunk is left over
    yield compare_refusals(models["random F32"], folder)
    yield compare_requantize(models["random F32"], folder)
    yield compare_splits(models["random F32"], folder)


def compare_trained(folder: Path) -> Iterator[bool]:
    text, every = TINY_MOE / "heldout-scripture.txt", folder / "heldout.txt"
    every.write_text("".join(path.read_text() for path in sorted(TINY_MOE.glob("heldout-*.txt"))))
    f16 = folder / "tiny-moe-F16.gguf"
    ours("convert", TINY_MOE, "-o", f16, "--type", "F16")
    for kind in TINY_TYPES:
        model = folder / f"tiny-moe-{kind}.gguf"
        if kind != "F16":
            ours("quantize", f16, model, kind)
        yield compare_perplexity(f"tiny-moe {kind}", model, every, "-c", 256)
    yield compare_perplexity("tiny-moe F16", f16, text, "-c", 128, "--chunks", 5)
    for kind in ("F16", "Q4_K_M"):
        model = folder / f"tiny-moe-{kind}.gguf"
        yield compare_divergence(f"tiny-moe {kind}", f16, model, text, folder, "-c", 256)
    yield compare_imatrix("tiny-moe F16", f16, text, folder, "-c", 256, "--chunks", 8)


def main() -> int:
    if "LLAMA_BIN" not in os.environ:
        print(json.dumps({"programs": "skipped: LLAMA_BIN names no folder of llama.cpp's programs"}))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if len(sys.argv) == 3:
            results = [compare_perplexity(sys.argv[1], Path(sys.argv[1]), Path(sys.argv[2]), "--chunks", 4)]
        else:
            results = [*compare_random(folder), *(compare_trained(folder) if TINY_MOE.is_dir() else ())]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
