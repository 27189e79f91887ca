"""The sampler chain against llama.cpp's own samplers, step by step and whole, on random logits.

    python tests/parity/samplers.py [--cases 300]

Needs llama-cpp-python and no model: where it is not installed the script starts itself again with the Python named by
LLAMA_PYTHON. Both sides get the same logits; the candidates that are left and their probabilities are compared.
Prints one JSON line; exit 1 where they differ.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

if importlib.util.find_spec("llama_cpp") is None:
    os.execv(os.environ["LLAMA_PYTHON"], [os.environ["LLAMA_PYTHON"], *sys.argv])

import llama_cpp as lc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from localmoe.engine.sampling import Sampler, SamplingParams

Probs = dict[int, float]


def theirs(logits: np.ndarray, history: list[int], p: SamplingParams) -> Probs:
    """Probabilities after llama.cpp's chain in its default order (DRY needs a vocabulary: left out)."""
    chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
    steps = [
        lc.llama_sampler_init_penalties(
            len(logits), p.repeat_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
        ),
        lc.llama_sampler_init_top_n_sigma(p.top_n_sigma),
        lc.llama_sampler_init_top_k(p.top_k),
        lc.llama_sampler_init_typical(p.typical_p, p.min_keep),
        lc.llama_sampler_init_top_p(p.top_p, p.min_keep),
        lc.llama_sampler_init_min_p(p.min_p, p.min_keep),
        lc.llama_sampler_init_xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, 1),
        lc.llama_sampler_init_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent),
        lc.llama_sampler_init_dist(1),
    ]
    for step in steps:
        lc.llama_sampler_chain_add(chain, step)
    for token in history:
        lc.llama_sampler_accept(chain, token)
    data = (lc.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token] = lc.llama_token_data(token, float(logit), 0.0)
    array = lc.llama_token_data_array(data, len(logits), -1, False)
    lc.llama_sampler_apply(chain, ctypes.byref(array))
    left = {array.data[i].id: array.data[i].p for i in range(array.size) if array.data[i].p > 0}
    lc.llama_sampler_free(chain)
    return left


def ours(logits: np.ndarray, history: list[int], p: SamplingParams) -> Probs:
    """Probabilities our sampler drew from."""
    sampler = Sampler(p, len(logits))
    for token in history:
        sampler.accept(token)
    sampler.sample(logits)
    return {int(token): float(prob) for token, prob in zip(*sampler.candidates(), strict=True) if prob > 1e-30}


def random_params(rng: random.Random) -> SamplingParams:
    """A few steps switched on at random, the rest at their defaults; XTC never or always."""
    choices: dict[str, Any] = {
        "temperature": rng.choice([0.0, 0.3, 0.8, 1.7]),
        "dynatemp_range": rng.choice([0.0, 0.25]),
        "dynatemp_exponent": rng.choice([0.7, 1.0, 1.5]),
        "top_k": rng.choice([0, 1, 5, 40, 200]),
        "top_p": rng.uniform(0.05, 1),
        "min_p": rng.uniform(0, 0.5),
        "typical_p": rng.uniform(0.05, 1),
        "top_n_sigma": rng.uniform(0.5, 4),
        "xtc_probability": 1.0,
        "xtc_threshold": rng.uniform(0.01, 0.3),
        "repeat_penalty": rng.uniform(0.7, 1.8),
        "repeat_last_n": rng.choice([0, 4, 64]),
        "frequency_penalty": rng.uniform(-0.5, 1),
        "presence_penalty": rng.uniform(-0.5, 1),
        "min_keep": rng.choice([0, 1, 3]),
    }
    names = rng.sample(sorted(choices), rng.randrange(len(choices)))
    if "typical_p" in names and "top_n_sigma" in names:
        names.remove("top_n_sigma")  # llama.cpp's entropy is NaN as soon as a candidate's probability is 0
    return SamplingParams(seed=1, **{name: choices[name] for name in names})


def compare(a: Probs, b: Probs) -> str:
    """`same`, `different`, or `borderline`: one token that float32's rounding let in on one side alone."""
    if len(a.keys() - b.keys()) > 1 or len(b.keys() - a.keys()) > 1:
        return "different"
    if a.keys() != b.keys():
        return "borderline"
    return "same" if all(math.isclose(a[i], b[i], rel_tol=1e-3, abs_tol=1e-5) for i in a) else "different"


def main() -> None:
    """Compare random cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    args = parser.parse_args()
    rng = random.Random(0)
    counts = {"same": 0, "borderline": 0, "different": 0}
    for case in range(args.cases):
        n = rng.choice([2, 30, 500, 4000])
        logits = np.random.default_rng(case).normal(0, rng.choice([0.5, 2, 5]), n).astype(np.float32)
        history = [rng.randrange(n) for _ in range(rng.randrange(40))]
        params = random_params(rng)
        a, b = ours(logits, history, params), theirs(logits, history, params)
        verdict = compare(a, b)
        counts[verdict] += 1
        if verdict != "same":
            print(verdict, case, n, len(a), len(b), params, file=sys.stderr)
    print(json.dumps({"check": "samplers", "peer": "llama.cpp", "cases": args.cases, **counts}))
    sys.exit(counts["different"] > 0 or counts["borderline"] > args.cases // 100)


if __name__ == "__main__":
    main()
