"""Recordings for people: tables, the page, and two side by side."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html import unescape
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from localmoe.errors import UsageError
from localmoe.experts import report
from localmoe.experts.coactivation import Pair
from localmoe.experts.difference import difference, lines
from localmoe.experts.statistics import DECODE
from tests.experts.recordings import recording

MADE = recording(
    [[[0, 1]], [[0, 2]], [[0, 1]], [[3, 1]]],
    phase=np.array([0, 0, 1, 1], np.int8),
    pieces=("a", "</script><img src=x onerror=alert(1)>", "\x1b[2J", "\u202e&"),
    labels=("</script>", "", "", ""),
)


def test_tables_are_by_phase_and_layer() -> None:
    text = report.lines(MADE)
    assert "4 tokens, 2 of prompts, 2 of replies" in text
    prompts = text[text.index("prompts (2 tokens)") + 2].split()
    assert prompts[:5] == ["0", "0.75", "0", "2.0x", "1"]  # shares 1/2, 1/4, 1/4: entropy 1.5 bits of 2
    replies = text[text.index("replies (2 tokens)") + 2]
    assert replies.endswith("  0+1: 50%")
    assert "4,000 B" not in text[2]


def test_a_table_fits_a_terminal_of_80_columns() -> None:
    """With a pair of experts of three digits; figures below their heads."""
    wide = report.table(MADE.statistics().layers(), [[Pair(0, 126, 127, 4, 1.0)]])
    assert [len(line) <= 80 for line in wide] == [True, True]
    assert wide[1].endswith("126+127: 100%")
    assert wide[0].index("entropy") + len("entropy") == len("    0    0.73")


def test_without_scripts_the_page_shows_the_figures_as_text() -> None:
    """The same as on a terminal, and nothing of the model's in it is markup."""
    page = report.html(replace(MADE, model="<b>m</b>.gguf"))
    plain = unescape(re.findall(r"<noscript>.*<pre>(.*)</pre>.*</noscript>", page, re.DOTALL)[0])
    assert plain == "\n".join(report.lines(replace(MADE, model="<b>m</b>.gguf")))
    assert "<b>m" not in page


def test_working_set_counts_bytes_of_all_layers() -> None:
    two = recording([[[0], [1]], [[0], [2]]], n_expert=4)
    assert report.as_json(two)["working_set_bytes"]["64"] == 3000
    assert report.as_json(two)["experts_bytes"] == 8000


def test_json_has_no_nan_and_every_phase() -> None:
    made = report.as_json(MADE)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["phases"]["replies"][0]["routed"] == [1, 2, 0, 1]
    assert made["phases"]["prompts"][0]["pairs"][0] == {"experts": [0, 1], "count": 1, "lift": 1.0}


def test_nothing_of_the_models_is_markup_in_the_page() -> None:
    page = report.html(MADE)
    assert "__DATA__" not in page
    assert "onerror" in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    data = json.loads(scripts[0])
    assert data["pieces"][1] == "</script><img src=x onerror=alert(1)>"
    assert data["shares"]["replies"] == [[0.25, 0.5, 0.0, 0.25]]
    assert "innerHTML" not in scripts[1]
    assert "http" not in page.replace("http-equiv", "")


def page_data(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.findall(r"<script id=.data.[^>]*>(.*?)</script>", page, re.DOTALL)[0])
    return found


def test_the_page_has_every_tokens_choices_heaviest_first() -> None:
    made = recording(
        [[[0, 1], [2, -1]], [[3, 0], [1, 2]]],
        weights=np.array([[[0.25, 0.75], [1, 0]], [[0.5, 0.5], [0.9, 0.1]]], np.float32),
    )
    data = page_data(report.html(made))
    shape = (2, 2, data["slots"])
    chosen = np.frombuffer(base64.b64decode(data["chosen"]), "<i2").reshape(shape)
    assert chosen.tolist() == [[[1, 0], [2, -1]], [[3, 0], [1, 2]]]
    weights = np.frombuffer(base64.b64decode(data["weights"]), "<u2").reshape(shape) / data["one"]
    np.testing.assert_allclose(weights, [[[0.75, 0.25], [1, 0]], [[0.5, 0.5], [0.9, 0.1]]], atol=1e-4)
    assert len(data["figures"]["all"]) == 2
    # layer 0: weights 0.25 + 0.5, 0.75, 0, 0.5 of experts 0 to 3, of 2 in all
    assert data["byWeight"]["all"][0] == [0.375, 0.375, 0.0, 0.25]
    assert all(len(row) == len(data["columns"]) for row in data["figures"]["all"])


def test_a_page_is_bounded_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of one layer and two slots, room for four choices: the last two tokens, figures of all."""
    monkeypatch.setattr(report, "MAX_CHOICES", 4)
    data = page_data(report.html(recording([[[0, 1]], [[2, 3]], [[1, 0]]])))
    assert (data["first"], data["total"], data["pieces"]) == (1, 3, [" t1", " t2"])
    assert data["shares"]["all"] == [[0.33333, 0.33333, 0.16667, 0.16667]]


def test_every_place_that_the_page_fills_is_in_it() -> None:
    page = files("localmoe.experts").joinpath("page.html").read_text(encoding="utf-8")
    wanted = set(re.findall(r'at\("(\w+)"\)', page))
    assert wanted <= set(re.findall(r'id="(\w+)"', page))
    assert "default-src 'none'" in page


def test_a_difference_by_hand() -> None:
    """Loads 1/2, 1/2 against 1/4, 3/4 on the same four tokens: a quarter moved, the second token went elsewhere."""
    a = recording([[[0]], [[0]], [[1]], [[1]]], n_expert=2)
    b = recording([[[0]], [[1]], [[1]], [[1]]], n_expert=2)
    found = difference(a, b)
    np.testing.assert_allclose(found.moved, [0.25])
    np.testing.assert_allclose(found.same_first, [0.75])
    np.testing.assert_allclose(found.same_set, [0.75])
    assert any("1: 50.0% -> 75.0%" in line for line in lines(found, ("a", "b")))


def test_the_order_of_choices_and_another_top_k_are_compared() -> None:
    a, b = recording([[[0, 1]], [[0, 1]]]), recording([[[1, 0]], [[0, 1]]])
    assert difference(a, b).same_set.tolist() == [1.0]
    c = recording([[[0]], [[0]]])
    assert difference(a, c).same_set.tolist() == [0.0]
    assert difference(a, c).same_first.tolist() == [1.0]


def test_other_texts_compare_loads_alone_and_other_models_not_at_all() -> None:
    a = recording([[[0, 1]], [[0, 1]]])
    assert difference(a, recording([[[0, 1]]])).same_set is None
    assert np.isnan(difference(a, a, DECODE).moved).all()
    with pytest.raises(UsageError, match="different models"):
        difference(a, recording([[[0, 1]]], n_expert=8))


def test_the_page_is_printed_whole_and_in_its_colours():
    """On paper nothing can be scrolled or pointed at, and browsers leave out grounds unless they are told not to."""
    page = files("localmoe.experts").joinpath("page.html").read_text(encoding="utf-8")
    rules = re.search(r"@media print \{((?:[^{}]|\{[^}]*\})*)\}", page)
    assert rules
    assert "#map td, #text span, .key i { print-color-adjust: exact" in rules[1]
    assert "#text, .wide { max-height: none; overflow: visible" in rules[1]
    for event, printed in (("beforeprint", "true"), ("afterprint", "false")):  # cells as narrow as the paper asks for
        assert f'addEventListener("{event}", () => {{ printed = {printed}; drawMap(); }});' in page


def test_the_page_works_by_keyboard_and_is_read_out():
    """What takes the keyboard says what it is, and answers where screen readers look."""
    page = files("localmoe.experts").joinpath("page.html").read_text(encoding="utf-8")
    for tag in re.findall(r"<[a-z]+ [^>]*tabindex[^>]*>", page):
        assert "aria-label=" in tag, tag
        assert "role=" in tag, tag
    assert {at for at in ("map", "text") if f'at("{at}").onkeydown' in page} == {"map", "text"}
    assert re.findall(r'id="(\w+)" role="status"', page) == ["cell", "path"]
    assert page.count('.scope = "') == 3
