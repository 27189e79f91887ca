"""The transcript token by token: where each went in a layer, and one token's path through all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from localmoe.text.tokenizer import StreamDecoder

from ..alternatives import Alternatives
from ..widgets.key_line import KeyLine
from ..widgets.path import part
from ..widgets.token_text import TokenText, expert_name
from ..widgets.turns import MUTED, shown

if TYPE_CHECKING:
    from localmoe.engine.api import Model
    from localmoe.experts.trace import TraceSlice

MOST = 8192
"""Tokens shown at most, the newest."""
OTHERS = 2
"""Candidates shown that were not chosen."""
FOLLOW = 0.5
"""Seconds between looks for new tokens."""


class Routed:
    """The newest MOST tokens of a trace since one, with their harmless texts; `read` takes in what is new.

    A character of several tokens stands at its last. `alternatives` knows what else could have been said.
    """

    def __init__(self, model: Model, since: int, alternatives: Alternatives) -> None:
        self._model, self._since, self._alternatives = model, since, alternatives
        self._decoder = StreamDecoder(model.tokenizer, special=True)
        self.pieces: list[str] = []
        self.first = since
        self.routed = self.read()

    def read(self) -> TraceSlice:
        """Everything there is now; `first` is the number of its first token."""
        trace = self._model.trace
        routed = trace.read(max(self._since, trace.count - MOST), router=False)
        held = self.first + len(self.pieces)
        if routed.first > held:  # tokens are lost: their characters too
            self.pieces, self.first = [], routed.first
            held = routed.first
        new = routed.tokens[held - routed.first :].tolist()
        self.pieces += [shown(self._decoder.push(token)) for token in new]
        del self.pieces[: routed.first - self.first]
        self.first, self.routed = routed.first, routed
        return routed

    @property
    def lost(self) -> int:
        """Tokens since the first one asked for that are not held any more."""
        return self.first - self._since

    def router(self, at: int) -> NDArray[np.float16] | None:
        """The router's probabilities (L, E) for the token at a place, None where they are gone."""
        return self._model.trace.router_of(self.first + at)

    def candidates(self, at: int) -> list[tuple[str, float, bool]]:
        """The likeliest tokens where the one at a place was chosen: text, probability, whether it is that one."""
        chosen = int(self.routed.tokens[at])
        found = self._alternatives.of(self.first + at, chosen) if self.routed.phase[at] else ()
        return [(self._word(token), p, token == chosen) for token, p in found]

    def word(self, at: int) -> str:
        """The token at a place; the bytes of one that does not end a character."""
        return shown_word(self.pieces[at]) if self.pieces[at] else self._word(int(self.routed.tokens[at]))

    def _word(self, token: int) -> str:
        return shown_word(self._model.tokenizer.token(token).decode("utf-8", "backslashreplace"))


def shown_word(piece: str) -> str:
    """A token's text in quotation marks, on one line."""
    return f"“{shown(piece).replace(chr(10), '⏎')[:20]}”"


def lost_words(n: int) -> str:
    """That tokens of the chat are out of reach, "" where none are."""
    return f"; {n} older ones are no longer held" if n else ""


def path_lines(experts: Any, weights: Any, router: Any | None) -> list[tuple[str, str]]:
    """A layer a line: experts (L, K) with weights, the heaviest first, and the likeliest others of router (L, E)."""
    out = []
    for layer, (chosen, gates) in enumerate(zip(experts.tolist(), weights.tolist(), strict=True)):
        pairs = sorted(((w, e) for e, w in zip(chosen, gates, strict=True) if e >= 0), reverse=True)
        taken = "  ".join(f"{expert} {part(weight)}" for weight, expert in pairs)
        others = ""
        if router is not None:
            order = [e for e in np.argsort(-router[layer], kind="stable").tolist() if e not in chosen][:OTHERS]
            others = "  ".join(f"{e} {part(router[layer][e])}" for e in order)
        out.append((f"{layer:>3}: {taken}", f"   ({others})" if others else ""))
    return out


class TokensScreen(Screen[None]):
    """Left and right go from token to token, up and down from layer to layer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "token(-1)", "Token", id="tokens.left", key_display="← →"),
        Binding("right", "token(1)", "Token after", id="tokens.right", show=False),
        Binding("up", "layer(-1)", "Layer", id="tokens.up", key_display="↑ ↓"),
        Binding("down", "layer(1)", "Layer below", id="tokens.down", show=False),
        Binding("home", "token(-1000000)", "First", id="tokens.first", show=False),
        Binding("end", "token(1000000)", "Last", id="tokens.last", show=False),
        Binding("pageup", "page(-1)", "Page before", id="tokens.pageup", show=False),
        Binding("pagedown", "page(1)", "Page after", id="tokens.pagedown", show=False),
        Binding("escape,f7", "app.pop_screen", "Back", id="tokens.close", priority=True),
    ]

    def __init__(self, model: Model, source: Routed, token: int | None = None, layer: int = 0) -> None:
        """`token` is selected, counted from the source's first; without one the newest, also when others come."""
        super().__init__()
        self._model, self._source = model, source
        self.token = len(source.pieces) - 1 if token is None else token
        self.layer_shown = layer
        self._take()

    def _take(self) -> None:
        self._routed, self._pieces = self._source.routed, self._source.pieces
        heaviest = np.argmax(self._routed.weights, axis=2)[:, :, None]
        self._first = np.take_along_axis(self._routed.experts, heaviest, 2)[:, :, 0]

    def _follow(self) -> None:
        """Show tokens that came since; the newest stays selected if it was."""
        source = self._source
        if self._model.trace.count == source.first + len(source.pieces):
            return
        at_end, number = self.token == len(self._pieces) - 1, source.first + self.token
        source.read()
        self._take()
        self.token = len(self._pieces) - 1 if at_end else max(0, number - source.first)
        self.query_one(TokenText).take(self._pieces)
        self._show()

    def compose(self) -> ComposeResult:
        yield Static(id="tokens-title", markup=False)
        yield Static(id="tokens-legend", markup=False)
        with Horizontal(id="tokens-body"):
            yield TokenText(self._pieces, id="tokens-text")
            with Vertical(id="tokens-side"):
                yield Static(id="tokens-token", markup=False)
                with VerticalScroll(can_focus=False):
                    yield Static(id="tokens-path", markup=False)
        yield KeyLine()

    def on_mount(self) -> None:
        self.query_one(TokenText).focus()
        self._show()
        self.set_interval(FOLLOW, self._follow)

    def _show(self) -> None:
        routed, token = self._routed, self.token
        self.query_one(TokenText).show(self._first[:, self.layer_shown].tolist(), token)
        self._title()
        self._legend()
        self._token()
        router = self._source.router(token)
        rows = []
        for layer, (taken, others) in enumerate(path_lines(routed.experts[token], routed.weights[token], router)):
            rows.append(
                Content.assemble((taken, "bold $text-accent" if layer == self.layer_shown else ""), (others, MUTED))
            )
        self.query_one("#tokens-path", Static).update(Content("\n").join(rows))

    def _title(self) -> None:
        """What a colour is, and that older tokens are out of reach."""
        place = f" layer {self.layer_shown} of {self._routed.experts.shape[1]}"
        meaning = ": a colour is the token's first expert there"
        lost = lost_words(self._source.lost)
        if cell_len(place + meaning + lost) > self.size.width:
            meaning = "" if lost else meaning
        self.query_one("#tokens-title", Static).update(place + meaning + lost)

    def _legend(self) -> None:
        """Which colour is which expert, and its part of the tokens, the greatest first."""
        experts, counts = np.unique(self._first[:, self.layer_shown], return_counts=True)
        parts: list[Text] = []
        room = self.size.width - 1
        for n, at in enumerate(np.argsort(-counts, kind="stable").tolist()):
            part = Text(" ").append_text(expert_name(int(experts[at]), self.app))
            part.append(f" {counts[at] / len(self._first):.0%}")
            more = f"  and {len(experts) - n} more"
            if room < part.cell_len + (len(more) if n < len(experts) - 1 else 0):
                parts.append(Text(more))
                break
            room -= part.cell_len + 1
            parts.append(part.append(" "))
        self.query_one("#tokens-legend", Static).update(Content.from_rich_text(Text().join(parts)))

    def _token(self) -> None:
        """The selected token, and what else could have been said in its place."""
        box = self.query_one("#tokens-token", Static)
        phase = "reply" if self._routed.phase[self.token] else "prompt"
        said = f"{self._source.word(self.token)}  token {self.token + 1} of {len(self._pieces)}, {phase}\n"
        parts: list[str | tuple[str, str]] = []
        used, title = 0, "candidates "
        for word, p, chosen in self._source.candidates(self.token):
            share = f" {p:.0%}  " if p >= 0.0995 else f" {p:.1%}  "
            if used + cell_len(title + word + share.rstrip()) > box.content_size.width:  # words have spaces themselves
                parts.append("\n")
                used = 0
            parts += [(title, MUTED), (word, "bold" if chosen else ""), (share, MUTED)]
            used, title = used + cell_len(title + word + share), ""
        if not parts:
            why = "they are no longer held" if self._routed.phase[self.token] else "a prompt is read, not chosen"
            parts.append((f"no candidates: {why}", MUTED))
        head = ("\nexpert weight  (others: probability)", MUTED)
        box.update(Content.assemble(said, *parts, "\n", head))

    def on_resize(self) -> None:
        if self.query("#tokens-legend"):
            self._title()
            self._legend()
            self._token()

    def action_page(self, by: int) -> None:
        """Select a token a screen above or below."""
        self.token = self.query_one(TokenText).token_away(by)
        self._show()

    def action_token(self, by: int) -> None:
        """Select another token."""
        self.token = min(max(self.token + by, 0), len(self._pieces) - 1)
        self._show()

    def action_layer(self, by: int) -> None:
        """Colour by another layer."""
        self.layer_shown = (self.layer_shown + by) % self._routed.experts.shape[1]
        self._show()

    @on(TokenText.Chosen)
    def _clicked(self, event: TokenText.Chosen) -> None:
        self.token = event.token
        self._show()
