"""How byte-level BPE vocabularies split text into words before merging, as a table by `tokenizer.ggml.pre`.

The expressions and flags are those of llama.cpp's `llama-vocab.cpp`, since a GGUF names its pre-tokenizer and leaves
the rest to the reader. Each expression runs on the pieces that the one before left; what it does not match stays a
piece of its own. `\\p{..}` runs on text collapsed to class letters (see unicode_class.py), where \\p{Lu}, \\p{Ll} and
so on are \\p{L}, as in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from localmoe.text.unicode_class import CATEGORIES, COLLAPSE, COLLAPSE_HAN, HAN_LETTER, HAN_OTHER, WIDE_SPACE

Spans = Iterator[tuple[int, int]]
_PROPERTY = re.compile(r"\\p\{([LNPSM])\}")

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_OTHERS}|{_SPACES}"
_LONG_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
_CASED = r"[^\r\n\p{L}\p{N}]?"  # capitals, then small letters; a letter outside ASCII counts as either
_CAPITALS, _SMALL = r"(?:(?![a-z])[\p{L}])", r"(?:(?![A-Z])[\p{L}])"
_CAPITALS_M, _SMALL_M = r"(?:(?![a-z])[\p{L}\p{M}])", r"(?:(?![A-Z])[\p{L}\p{M}])"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_MARKED = r"[\p{L}\p{M}]"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-"
    "\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN = HAN_LETTER + HAN_OTHER
_KIMI = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}{_HAN}]?\p{{L}}+{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}{HAN_LETTER}]+[\r\n]*|{_SPACES}"
)


def _cased(capital: str, small: str, contraction: str = "") -> str:
    return f"{_CASED}{capital}*{small}+{contraction}|{_CASED}{capital}+{small}*{contraction}"


# --- splitters that an expression would make quadratic, or that are no expression in llama.cpp either ----------------


def _digits_from_right(text: str, start: int, end: int) -> Spans:
    """Cut runs of digits into threes from their right end; text before a run stays with the run's first digits."""
    cut = start
    for run in re.compile(f"[{CATEGORIES['N']}]+").finditer(text, start, end):
        at = run.start() + ((run.end() - run.start()) % 3 or 3)
        while at <= run.end():
            yield cut, at
            cut, at = at, at + 3
    if cut < end:
        yield cut, end


def _digits_superbpe(text: str, start: int, end: int) -> Spans:
    """Cut before every group of three ASCII digits counted from a run's right end."""
    cut = start
    for run in re.compile("[0-9]+").finditer(text, start, end):
        for at in range(run.start() + (run.end() - run.start()) % 3, run.end(), 3):
            if at > cut:
                yield cut, at
                cut = at
    if cut < end:
        yield cut, end


def _trailing_space(text: str, start: int, end: int) -> Spans:
    """`\\s+$` without looking at every run of spaces from each of its characters."""
    cut = start + len(text[start:end].rstrip(" \t\n\r\v\f"))
    if start < cut:
        yield start, cut
    if cut < end:
        yield cut, end


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One row of the table.

    `steps` are expressions or splitters in order. `ignore_merges`: a word that is a token is taken whole. `add_bos`:
    the default where the file has no `add_bos_token`. `clean_spaces`: llama.cpp's detokenizer tidies spaces.
    `byte_level` False: words stay UTF-8 with U+2581 for spaces and `<0xXX>` for unknown bytes. `newline_runs`: a run
    of newlines that is a token is taken whole, and BOS is added whatever the file says (Gemma 4).
    """

    steps: tuple[str | Callable[[str, int, int], Spans], ...]
    ignore_merges: bool = False
    add_bos: bool = False
    clean_spaces: bool = True
    byte_level: bool = True
    newline_runs: bool = False
    han: bool = False
    need_merges: bool = True


def _plain(*steps: str | Callable[[str, int, int], Spans], **flags: bool) -> PreTokenizer:
    return PreTokenizer(steps, **flags)


def _exact(*steps: str | Callable[[str, int, int], Spans], **flags: bool) -> PreTokenizer:
    return PreTokenizer(steps, clean_spaces=False, **flags)


_LINES = r"[^\n]+|[\n]+"
_DIGIT_GPT2 = (r"\p{N}", _GPT2)
_DEEPSEEK3_STEPS = (r"\p{N}{1,3}", _KANA_HAN, _DEEPSEEK3)
_GPT4O = rf"{_cased(_CAPITALS, _SMALL, _CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}"
_MARKED_CASED = _cased(_MARKED, _MARKED, _CONTRACTION + "?")  # llama.cpp folds \p{Lu}, \p{Ll} ... into \p{L}
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-"
    "\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-"
    "\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)

_ROWS: dict[str, PreTokenizer] = {
    "default": _plain(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": _plain(
        _LLAMA3, ignore_merges=True, add_bos=True
    ),
    "minicpm5": _plain(
        r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_OTHERS}|{_SPACES}", ignore_merges=True
    ),
    "deepseek-llm": _exact(
        "[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, _trailing_space, _DEEPSEEK_HAN, r"\p{N}+"
    ),
    "deepseek-coder": _exact("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}"),
    "deepseek-v3 hunyuan-dense hy_v4 joyai-llm": _exact(*_DEEPSEEK3_STEPS),
    "spark2_5": _exact(
        r"\p{N}{1,3}", _KANA_HAN, _DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|"), r"\p{N}"
    ),
    "youtu": _exact(
        _YOUTU,
        rf"{_MARKED_CASED}|\p{{N}}|{_SLASHED}|{_SPACES}",
        ignore_merges=True,
    ),
    "falcon": _plain(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "starcoder refact codeshell exaone minerva-7b mellum2": _plain(*_DIGIT_GPT2),
    "command-r smollm": _exact(*_DIGIT_GPT2),
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais exaone4 "
    "jina-v1-en jina-v2-code roberta-bpe": _plain(_GPT2),
    "trillion granite-docling": _exact(_GPT2),
    "jais-2": _plain(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHERS}|\s*[\r\n]+|{_LONG_SPACES}"),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan grok-2 solar-open": _exact(_QWEN2),
    "stablelm2 megrez": _plain(_QWEN2),
    "qwen35": _exact(
        rf"{_CONTRACTION}|{_CASED}{_MARKED}+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
    ),
    "dbrx smaug-bpe chatglm-bpe": _plain(_LLAMA3),
    "glm4 glm5": _plain(_LLAMA3, ignore_merges=True),
    "poro-chat": _exact(_BLOOM),
    "bloom gpt3-finnish": _plain(_BLOOM),
    "viking": _exact(_BLOOM, r"\p{N}"),
    "tekken": _exact(
        rf"{_cased(_CAPITALS, _SMALL)}|\p{{N}}|{_SLASHED}|{_SPACES}", ignore_merges=True, add_bos=True
    ),
    "chameleon": _exact(
        "<sentinel:[0-9]+>", "(?:IMGIMG)(?:[A-I]{1,4})Z", "[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", _GPT2,
        add_bos=True,
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": _exact(_GPT4O),
    "granite-embed-multi-97m": _exact(
        rf"{_cased(_CAPITALS_M, _SMALL_M, _CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}", ignore_merges=True
    ),
    "tiny_aya cohere2moe": _exact(
        _digits_from_right, rf"{_MARKED_CASED}|\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}"
    ),
    "superbpe": _exact(r"\p{N}+", _digits_superbpe),
    "bailingmoe bailingmoe2 llada-moe": _exact(
        rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_OTHERS}|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "seed-coder": _exact(rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"),
    "ufakzeka": _exact(rf"{_WORD}|\p{{N}}|{_OTHERS}|{_SPACES}"),
    "afmoe": _exact(_digits_from_right, _ASIAN, _DEEPSEEK3),
    "laguna": _exact(_LINES, _QWEN2),
    "exaone-moe": _plain(
        rf"{_CONTRACTION}|{_CASED}\p{{L}}\p{{M}}*(?: ?\p{{L}}\p{{M}}*)*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "kimi-k2": _exact(_KIMI, han=True, need_merges=False),
    "gemma4 granite-embed-multi-311m": _plain(_LINES, byte_level=False, newline_runs=True, add_bos=True),
    "sarvam-moe": _exact(_LINES, byte_level=False),
}  # fmt: skip

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: row for names, row in _ROWS.items() for name in names.split()}


# --- running them ----------------------------------------------------------------------------------------------------


def expand(expression: str) -> str:
    r"""Replace every \p{X} by the class of collapsed text it stands for, inside and outside of brackets."""
    out, at, inside = [], 0, False
    while at < len(expression):
        found = _PROPERTY.match(expression, at)
        if found:
            body = CATEGORIES[found[1]]
            out.append(body if inside else f"[{body}]")
            at = found.end()
            continue
        step = 2 if expression[at] == "\\" else 1
        if step == 1 and expression[at] in "[]":
            inside = expression[at] == "["
        out.append(expression[at : at + step])
        at += step
    return "".join(out)


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expand(expression), re.ASCII)


def split(pre: PreTokenizer, text: str) -> list[str]:
    """Cut `text` into the words that are merged on their own; joined they are `text` again."""
    if not text:
        return []
    collapsed = text if text.isascii() else text.translate(COLLAPSE_HAN if pre.han else COLLAPSE)
    first = pre.steps[0]
    if len(pre.steps) == 1 and isinstance(first, str) and (text is collapsed or "\\p" in first):
        words = _compiled(first).findall(collapsed)
        if sum(map(len, words)) == len(text):
            return words if text is collapsed else _cut(text, words)
    spans = [(0, len(text))]
    for step in pre.steps:
        if not isinstance(step, str):
            spans = [cut for start, end in spans for cut in step(collapsed, start, end)]
        elif "\\p" in step or text is collapsed:
            spans = _apply(_compiled(step), collapsed, spans)
        else:
            spans = _apply(_compiled(step), text.translate(WIDE_SPACE), spans)
    return [text[start:end] for start, end in spans]


def _cut(text: str, words: list[str]) -> list[str]:
    out, at = [], 0
    for word in words:
        end = at + len(word)
        out.append(text[at:end])
        at = end
    return out


def _apply(pattern: re.Pattern[str], view: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The matches of `pattern` in each span, and what lies between them; a span's end is the text's end to it."""
    out = []
    for start, end in spans:
        at = start
        for found in pattern.finditer(view, start, end):
            first, last = found.span()
            if first > at:
                out.append((at, first))
            out.append((first, last))
            at = last
        if at < end:
            out.append((at, end))
    return out
