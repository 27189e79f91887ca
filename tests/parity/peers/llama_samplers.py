"""What llama.cpp's sampler chain leaves of logits, in its default order, through llama-cpp-python.

    python llama_samplers.py CASES.json OUT.json

CASES.json: a list of [logits, history, parameters by SamplingParams' names]. OUT.json: a list of {token: probability}.
DRY needs a vocabulary, and is left out.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp as lc


def probabilities(logits: list[float], history: list[int], p: dict[str, Any]) -> dict[int, float]:
    """Probabilities after the chain, of the tokens that have one."""
    chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
    steps = [
        lc.llama_sampler_init_penalties(
            len(logits), p["repeat_last_n"], p["repeat_penalty"], p["frequency_penalty"], p["presence_penalty"]
        ),
        lc.llama_sampler_init_top_n_sigma(p["top_n_sigma"]),
        lc.llama_sampler_init_top_k(p["top_k"]),
        lc.llama_sampler_init_typical(p["typical_p"], p["min_keep"]),
        lc.llama_sampler_init_top_p(p["top_p"], p["min_keep"]),
        lc.llama_sampler_init_min_p(p["min_p"], p["min_keep"]),
        lc.llama_sampler_init_xtc(p["xtc_probability"], p["xtc_threshold"], p["min_keep"], 1),
        lc.llama_sampler_init_temp_ext(p["temperature"], p["dynatemp_range"], p["dynatemp_exponent"]),
        lc.llama_sampler_init_dist(1),
    ]
    for step in steps:
        lc.llama_sampler_chain_add(chain, step)
    for token in history:
        lc.llama_sampler_accept(chain, token)
    data = (lc.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token] = lc.llama_token_data(token, logit, 0.0)
    array = lc.llama_token_data_array(data, len(logits), -1, False)
    lc.llama_sampler_apply(chain, ctypes.byref(array))
    left = {array.data[i].id: array.data[i].p for i in range(array.size) if array.data[i].p > 0}
    lc.llama_sampler_free(chain)
    return left


def main() -> None:
    with open(sys.argv[1]) as cases, open(sys.argv[2], "w") as out:
        json.dump([probabilities(*case) for case in json.load(cases)], out)


main()
