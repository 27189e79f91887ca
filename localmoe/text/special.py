"""Finding special tokens in text before anything else is done to it, as llama.cpp's tokenizer does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.text.vocabulary import CONTROL, LSTRIP, RSTRIP, UNKNOWN, USER_DEFINED, Vocabulary

_SPACE = " \t\n\v\f\r"

Fragment = str | int
"""Text still to be tokenized, or the id of a special token."""


@dataclass(frozen=True, slots=True)
class Special:
    """A token that is looked for as text; `control` ones only when special tokens are to be parsed."""

    id: int
    text: str
    control: bool
    lstrip: bool
    rstrip: bool


def special_tokens(vocabulary: Vocabulary) -> list[Special]:
    """The special tokens, those with more bytes first."""
    found = []
    for i in vocabulary.having(CONTROL | USER_DEFINED | UNKNOWN):
        attr = int(vocabulary.attrs[i])
        control = bool(attr & (CONTROL | UNKNOWN))
        found.append(Special(i, vocabulary.tokens[i], control, bool(attr & LSTRIP), bool(attr & RSTRIP)))
    return sorted(found, key=lambda special: -len(special.text.encode()))


def partition(text: str, specials: Sequence[Special], parse_special: bool) -> list[Fragment]:
    """Cut `text` at special tokens: a longer one anywhere goes before a shorter one, then from left to right."""
    fragments: list[Fragment] = [text] if text else []
    for special in specials:
        if (special.control and not parse_special) or special.text not in text:
            continue
        fragments = [part for fragment in fragments for part in _cut(fragment, special)]
    return fragments


def _cut(fragment: Fragment, special: Special) -> list[Fragment]:
    if isinstance(fragment, int) or special.text not in fragment:
        return [fragment]
    out: list[Fragment] = []
    parts = fragment.split(special.text)
    for i, part in enumerate(parts):
        if i:
            out.append(special.id)
            part = part.lstrip(_SPACE) if special.rstrip else part
        if special.lstrip and i + 1 < len(parts):
            part = part.rstrip(_SPACE)
        if part:
            out.append(part)
    return out
