"""Files quantized by llama.cpp: llama_model_quantize, with what llama-quantize makes of its command line.

    python llama_quantize_jobs.py JOBS.json ANSWER.json

JOBS: see `theirs`. ANSWER: for each job the type of every tensor by its name.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np

TYPES = {name.removeprefix("GGML_TYPE_"): number for name, number in vars(lc).items() if name.startswith("GGML_TYPE_")}
TYPES |= {"BF16": 30, "TQ1_0": 34, "TQ2_0": 35}  # ggml.h's; llama-cpp-python does not name them


def theirs(jobs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Run llama_model_quantize for jobs {source, out, file_type, dry_run, imatrix}: the types its log names, by tensor.

    `imatrix` is None or a file of NumPy's: sums and counts by tensor. A job may say `refused`: that it has to fail.
    """
    lines: list[str] = []

    @lc.llama_log_callback
    def keep(level: int, text: bytes, data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    lc.llama_log_set(keep, ctypes.c_void_p(0))
    results = []
    for job in jobs:
        lines.clear()
        params = lc.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.dry_run = job["file_type"], 2, job["dry_run"]
        if job["imatrix"]:
            kept = imatrix_fields(job["imatrix"], job["chunks"])
            params.imatrix, params.kv_overrides = kept[0], kept[1]
        overrides = _set_options(params, job.get("options", {}))
        code = lc.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params))
        if bool(code) is not job.get("refused", False):
            raise SystemExit(f"llama_model_quantize of {job} ({overrides}) gave {code}: {''.join(lines[-5:])}")
        results.append(_types_in("".join(lines)))
    return results


def _set_options(params: Any, options: dict[str, Any]) -> Any:
    """Options by the names of recipe.parse_options to llama.cpp's; what must be kept alive."""
    params.pure = options.get("pure", False)
    params.quantize_output_tensor = not options.get("leave_output", False)
    for field, name in (("output_tensor_type", "output_type"), ("token_embedding_type", "token_embedding_type")):
        if name in options:
            setattr(params, field, TYPES[options[name]])
    pairs = options.get("overrides", [])
    array = (lc.llama_model_tensor_override * (len(pairs) + 1))()
    for slot, (pattern, type_name) in zip(array, pairs, strict=False):
        slot.pattern, slot.type = pattern.encode(), TYPES[type_name]
    if pairs:
        params.tt_overrides = array
    return array


def imatrix_fields(path: str, n_chunk: int) -> tuple[Any, Any, list[Any]]:
    """What llama-quantize (tools/quantize/quantize.cpp) hands to the library, and the arrays it points to."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    means = []
    for name in [name.removesuffix(".sums") for name in arrays if name.endswith(".sums")]:
        values = arrays[name + ".sums"].copy()
        for row, count in zip(values, arrays[name + ".counts"], strict=True):
            row[:] = row / np.float32(count) if count > 0 else 1
        means.append((name.encode(), values))
    data = (lc.llama_model_imatrix_data * (len(means) + 1))()
    for slot, (name, values) in zip(data, means, strict=False):
        slot.name, slot.size = name, values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    keys = (lc.llama_model_kv_override * 5)()
    numbers = {b"entries_count": len(means), b"chunks_count": n_chunk}
    texts = {b"file": path.removesuffix(".npz").encode(), b"dataset": b"text.txt"}
    for slot, (key, value) in zip(keys, [*texts.items(), *numbers.items()], strict=False):
        slot.key = b"quantize.imatrix." + key
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = 0, value  # LLAMA_KV_OVERRIDE_TYPE_INT
        else:
            slot.tag, slot.value.val_str = 3, value[:127]  # LLAMA_KV_OVERRIDE_TYPE_STR
    return data, keys, means


def _types_in(log: str) -> dict[str, str]:
    types = {}
    for line in log.splitlines():
        match = re.match(r"\[ *\d+/ *\d+\] (\S+) +- .* type = +(\w+), (.*)", line)
        if match:
            name, old, rest = match.groups()
            new = re.search(r"MiB \((\w+)\)", rest) or re.search(r"converting to (\w+)", rest)
            types[name] = (new[1] if new else old).upper()
    return types


def main() -> None:
    asked, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(theirs(json.loads(asked.read_text()))))


if __name__ == "__main__":
    main()
