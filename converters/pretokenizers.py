"""Pre-tokenizers: which of llama.cpp's `tokenizer.ggml.pre` a tokenizer.json asks for.

llama.cpp's converter encodes a test text and looks the hash of the ids up, which also depends on the vocabulary and so
knows only published models. Here the definition itself, brought into one form, is looked up in a table: the same
definition splits text the same way whatever the vocabulary. The regular expressions are those that the models'
tokenizer.json files hold, as quoted in llama.cpp's src/llama-vocab.cpp beside its own spelling of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localmoe.errors import BadInputError

# One step of a definition: ("split", regex) keeps matches as pieces of their own; ("digits", individual);
# ("bytes", use_regex) is ByteLevel without a prefix space, `use_regex` splitting by GPT-2's expression.
Step = tuple[str, Any]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Other spellings of the same expression.
_SPELLINGS = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "(?i:'s|'t|'re|'ve|'m|'d|'ll)",
    "(?i:'t|'re|'ve|'m|'ll|'d|'s)",
)
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_END_SLASH = _END.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+%s|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*%s"
_CASED_PLAIN = _CASED % ("", "")
_CASED_CONTRACTED = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?")
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_CJK_HANGUL = "[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    r"\s?["
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ"
    "-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰"
    "-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
    "]+"
)
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_WHITESPACE_RUNS = "".join(rf"|\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))

LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_END}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_END}"
RAW_BYTES: Step = ("bytes", False)
GPT2: Step = ("bytes", True)

# (steps, model.ignore_merges or None where it does not matter) -> tokenizer.ggml.pre. Names whose definitions are equal
# (olmo and mpt are gpt-2's, starcoder is smollm's, phi-4 and olmo-2 are dbrx's) share the first.
DEFINITIONS: dict[tuple[tuple[Step, ...], bool | None], str] = {
    ((GPT2,), None): "gpt-2",
    ((("digits", True), GPT2), None): "smollm",
    ((("split", r"\p{N}"), GPT2), None): "smollm",
    ((("split", LLAMA3), RAW_BYTES), True): "llama-bpe",
    ((("split", LLAMA3), RAW_BYTES), False): "dbrx",
    ((("split", QWEN2), RAW_BYTES), None): "qwen2",
    ((("split", rf"{_WORD}|\p{{N}}|{_END}"), RAW_BYTES), None): "ufakzeka",
    (
        (
            (
                "split",
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            RAW_BYTES,
        ),
        None,
    ): "qwen35",
    ((("split", rf"{_CASED_PLAIN}|\p{{N}}|{_END_SLASH}"), RAW_BYTES), None): "tekken",
    ((("split", rf"{_CASED_CONTRACTED}|\p{{N}}{{1,3}}|{_END_SLASH}"), RAW_BYTES), None): "gpt-4o",
    (
        (
            (
                "split",
                rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            RAW_BYTES,
        ),
        None,
    ): "seed-coder",
    (
        (
            (
                "split",
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            RAW_BYTES,
        ),
        None,
    ): "bailingmoe",
    (
        (
            (
                "split",
                rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
                rf"{_WHITESPACE_RUNS}|\s{{1}}",
            ),
            RAW_BYTES,
        ),
        None,
    ): "jais-2",
    (
        (("split", r"\p{N}{1,3}"), ("split", _CJK), ("split", _DEEPSEEK_V3), RAW_BYTES),
        None,
    ): "deepseek-v3",
    (
        (
            ("split", r"[\r\n]"),
            ("split", _DEEPSEEK_LETTERS),
            ("split", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
            ("split", r"\s+$"),
            ("split", _CJK_HANGUL),
            ("digits", True),
            RAW_BYTES,
        ),
        None,
    ): "deepseek-llm",
    (
        (
            ("split", r"[\r\n]"),
            ("split", r"\s?\p{L}+"),
            ("split", r"\s?\p{P}+"),
            ("split", _CJK_HANGUL),
            ("digits", True),
            RAW_BYTES,
        ),
        None,
    ): "deepseek-coder",
}

# Every name llama.cpp knows (llama-vocab.cpp, release 11434): what `--pre` may say.
KNOWN = frozenset(
    """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
    falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling
    granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de
    jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna
    lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5
    minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
    seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion
    ufakzeka viking whitespace youtu
    """.split()  # noqa: SIM905
)


def recognise(tokenizer: dict[str, Any], file: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.json; BadInputError names `--pre` otherwise."""
    problem = _normalizer_problem(tokenizer.get("normalizer"))
    model = tokenizer.get("model")
    ignore_merges = bool(model.get("ignore_merges")) if isinstance(model, dict) else False
    if problem is None:
        steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
        for key in ((steps, None), (steps, ignore_merges)):
            if key in DEFINITIONS:
                name = DEFINITIONS[key]
                return "smollm" if name == "gpt-2" and _never_joins_digits(model) else name
        problem = ", ".join(f"{kind} {what!r}" for kind, what in steps) or "none"
    raise _unknown(problem, "pre_tokenizer", file)


def recognise_pattern(pattern: object, file: Path) -> str:
    """llama.cpp's name for byte-level BPE over the matches of a regular expression; BadInputError names `--pre`."""
    name = DEFINITIONS.get(((("split", pattern), RAW_BYTES), None)) if isinstance(pattern, str) else None
    if name is None:
        raise _unknown(repr(pattern), "config.pattern", file)
    return name


def _unknown(problem: str, item: str, file: Path) -> BadInputError:
    return BadInputError(
        "pre-tokenizer is not one that llama.cpp knows; if you know which it is, say so with --pre",
        file=file,
        item=item,
        got=problem if len(problem) <= 300 else problem[:300] + "...",
    )


def _never_joins_digits(model: object) -> bool:
    """Whether merges leave every digit alone, so that splitting digits off first changes nothing.

    transformers 5 saves SmolLM's tokenizer (and mergekit's merges of it) without the step that does so, and llama.cpp's
    converter, which compares ids, calls the result "smollm" still.
    """
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list) or not merges:
        return False
    return not any(digit in "".join(merge) for merge in merges for digit in "0123456789")


def _normalizer_problem(normalizer: object) -> str | None:
    """What a normalizer does beyond Unicode's NFC (which llama.cpp leaves out for every model), None if nothing."""
    if normalizer is None:
        return None
    if not isinstance(normalizer, dict):
        return f"normalizer {normalizer!r}"
    if normalizer.get("type") == "Sequence" and isinstance(normalizer.get("normalizers"), list):
        return next((p for p in map(_normalizer_problem, normalizer["normalizers"]) if p is not None), None)
    return None if normalizer.get("type") == "NFC" else f"normalizer {normalizer.get('type')!r}"


def _steps(node: object) -> Iterator[Step]:
    """The steps of a pre_tokenizer section in order; one it does not know becomes ("unknown", its type)."""
    if not isinstance(node, dict):
        yield ("unknown", str(node))
        return
    kind = node.get("type")
    if kind == "Sequence" and isinstance(node.get("pretokenizers"), list):
        for child in node["pretokenizers"]:
            yield from _steps(child)
    elif kind == "Split" and node.get("behavior") in ("Isolated", "Removed") and isinstance(node.get("pattern"), dict):
        yield _split_step(node)
    elif kind == "Digits":
        yield ("digits", bool(node.get("individual_digits")))
    elif kind == "ByteLevel" and not node.get("add_prefix_space"):
        yield ("bytes", bool(node.get("use_regex", True)))
    else:
        yield ("unknown", str(kind))


def _split_step(node: dict[str, Any]) -> Step:
    """A Split as ("split", regex). Some models remove what lies between matches, which equals keeping the matches."""
    pattern = node["pattern"].get("Regex")
    removes_between = node["behavior"] == "Removed" and bool(node.get("invert"))
    keeps_matches = node["behavior"] == "Isolated" and not node.get("invert")
    if not isinstance(pattern, str) or not (removes_between or keeps_matches):
        return ("unknown", f"Split {node.get('pattern')} {node['behavior']}")
    for spelling in _SPELLINGS:
        pattern = pattern.replace(spelling, _CONTRACTIONS)
    for character, escape in (("\r", r"\r"), ("\n", r"\n")):
        pattern = pattern.replace(character, escape)
    return ("split", pattern)
