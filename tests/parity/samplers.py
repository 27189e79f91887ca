"""The sampler chain against llama.cpp's own samplers, step by step and whole, on random logits.

    LLAMA_PYTHON=... python tests/parity/samplers.py [--cases 300]

LLAMA_PYTHON names an interpreter that has llama-cpp-python; no model is needed. Both sides get the same logits; the
candidates that are left and their probabilities are compared. Prints one JSON line; exit 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from localmoe.engine.sampling import Sampler, SamplingParams

PEER = Path(__file__).with_name("peers") / "llama_samplers.py"
Case = tuple[np.ndarray, list[int], SamplingParams]
Probs = dict[int, float]


def theirs(cases: list[Case]) -> list[Probs]:
    """Probabilities after llama.cpp's chain in its default order (DRY needs a vocabulary: left out)."""
    given = [(logits.tolist(), history, asdict(params)) for logits, history, params in cases]
    with tempfile.TemporaryDirectory(prefix="samplers-") as folder:
        asked, answer = Path(folder) / "cases.json", Path(folder) / "out.json"
        asked.write_text(json.dumps(given))
        subprocess.run([os.environ["LLAMA_PYTHON"], PEER, asked, answer], check=True)
        return [{int(token): p for token, p in left.items()} for left in json.loads(answer.read_text())]


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


def random_case(rng: random.Random, number: int) -> Case:
    """Logits, a history and parameters."""
    n = rng.choice([2, 30, 500, 4000])
    logits = np.random.default_rng(number).normal(0, rng.choice([0.5, 2, 5]), n).astype(np.float32)
    return logits, [rng.randrange(n) for _ in range(rng.randrange(40))], random_params(rng)


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
    cases = [random_case(rng, number) for number in range(args.cases)]
    for number, (case, left) in enumerate(zip(cases, theirs(cases), strict=True)):
        found = ours(*case)
        verdict = compare(found, left)
        counts[verdict] += 1
        if verdict != "same":
            print(verdict, number, len(case[0]), len(found), len(left), case[2], file=sys.stderr)
    print(json.dumps({"check": "samplers", "peer": "llama.cpp", "cases": args.cases, **counts}))
    sys.exit(counts["different"] > 0 or counts["borderline"] > args.cases // 100)


if __name__ == "__main__":
    main()
