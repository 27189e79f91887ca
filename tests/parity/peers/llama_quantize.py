"""A model quantized to one type throughout by llama.cpp, through llama-cpp-python.

    python llama_quantize.py SOURCE.gguf OUT.gguf FILE_TYPE IMATRIX.npz

FILE_TYPE: llama_ftype's number. IMATRIX.npz: float32 importances of every matrix's columns, by tensor name.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as lc
import numpy as np


def main() -> None:
    source, out, file_type, matrix = sys.argv[1:5]
    arrays = {name: values.astype(np.float32) for name, values in np.load(matrix).items()}
    data = (lc.llama_model_imatrix_data * (len(arrays) + 1))()
    for slot, (name, values) in zip(data, arrays.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure, params.imatrix = int(file_type), 2, True, data
    if code := lc.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize failed: {code}")


main()
