"""Importance of each matrix's input columns for a text, as llama.cpp's llama-imatrix collects it.

Chunks and BOS are those of perplexity.py; every token counts. A matrix's figures are the sums of its squared inputs and
how many there were, one row an expert. Source: llama.cpp, tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from localmoe.engine.api import Model
from localmoe.engine.perplexity import Tokens, with_bos
from localmoe.errors import BadInputError
from localmoe.gguf_file import visible


@dataclass(frozen=True)
class Importance:
    """One matrix's: sums of squared inputs float32 (experts, columns), and how many inputs int64 (experts,)."""

    sums: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]


class Collector:
    """Runs chunks of a model's text and adds up; `matrices` gives what there is so far by tensor name."""

    def __init__(self, model: Model) -> None:
        self._model = model
        config = model.config
        self._n_expert = max(config.n_expert, 1)
        self._n_ff = config.n_ff_exp if config.n_expert else config.n_ff
        self._n_attended = config.n_head * config.n_embd_head_k
        width = 2 * config.n_embd + self._n_attended + self._n_expert * (config.n_embd + self._n_ff)
        self._step = np.zeros((config.n_layer, width), np.float32)
        self._totals = np.zeros((config.n_layer, width), np.float64)  # float32 would lose what a long text adds late
        self._counts = np.zeros((config.n_layer, self._n_expert), np.int64)
        self._n_token = 0

    def run(self, chunks: Tokens) -> Iterator[int]:
        """Run all chunks, each from an empty context; how many are done, after each."""
        session = self._model.session()
        layers = np.arange(self._model.config.n_layer)[:, None]
        for done, chunk in enumerate(chunks, 1):
            session.reset()
            for result in session.prefill_squares(with_bos(self._model, chunk).tolist(), self._step):
                self._totals += self._step
                self._step[:] = 0
                n_token = len(result.experts)
                self._n_token += n_token
                if self._model.config.n_expert:
                    np.add.at(self._counts, (layers, result.experts.swapaxes(0, 1).reshape(len(layers), -1)), 1)
                else:
                    self._counts += n_token
            self._check(done)
            yield done

    def _check(self, chunk: int) -> None:
        bad = np.argwhere(~np.isfinite(self._totals))
        if bad.size:
            reason = f"activations of layer {bad[0][0]} are not finite in chunk {chunk}: the weights are damaged"
            raise BadInputError(reason, file=visible(str(self._model.gguf.path)))

    def matrices(self) -> dict[str, Importance]:
        """Figures of every matrix in the layers."""
        found: dict[str, Importance] = {}
        for layer in range(self._model.config.n_layer):
            found |= {f"blk.{layer}.{name}.weight": entry for name, entry in self._layer(layer).items()}
        return found

    def _layer(self, layer: int) -> dict[str, Importance]:
        config = self._model.config
        d, e, all_tokens = config.n_embd, self._n_expert, np.array([self._n_token], np.int64)
        ends = np.cumsum([d, self._n_attended, d, e * d])
        parts = [part.astype(np.float32) for part in np.split(self._totals[layer], ends)]
        attention, output, router, gate, down = parts
        found = {f"attn_{kind}": Importance(attention[None], all_tokens) for kind in "qkv"}
        found["attn_output"] = Importance(output[None], all_tokens)
        suffix = "_exps" if config.n_expert else ""
        if config.n_expert:
            found["ffn_gate_inp"] = Importance(router[None], all_tokens)
        for kind in ("gate", "up"):
            found[f"ffn_{kind}{suffix}"] = Importance(gate.reshape(e, d), self._counts[layer])
        found[f"ffn_down{suffix}"] = Importance(down.reshape(e, self._n_ff), self._counts[layer])
        return found

    def unseen(self) -> list[tuple[int, list[int]]]:
        """(layer, experts) that no token reached."""
        return [
            (layer, np.flatnonzero(row == 0).tolist()) for layer, row in enumerate(self._counts) if (row == 0).any()
        ]
