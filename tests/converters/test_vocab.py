"""Vocabularies: SentencePiece and byte-level BPE, pre-tokenizers by definition, special tokens, padding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from localmoe.converters import pretokenizers
from localmoe.converters.source import MetaValue
from localmoe.converters.tokenizer_files import read_files
from localmoe.converters.vocab import read_vocabulary, vocabulary_keys
from localmoe.errors import BadInputError
from localmoe.text.pretokenizers import PRE_TOKENIZERS
from tests.checkpoints import WORDS, added_token, bpe_tokenizer, bpe_vocab, spm_model, spm_pieces

N_BPE = len(bpe_vocab()) + 1
SPACE = "\u2581"
ISOLATED = {"behavior": "Isolated", "invert": False}
RAW_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2_BYTES = {**RAW_BYTES, "use_regex": True}


def split(regex: str) -> dict[str, Any]:
    """A Split step as tokenizer.json spells it."""
    return {"type": "Split", "pattern": {"Regex": regex}, **ISOLATED}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """A Sequence of pre-tokenizers."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


def keys(
    folder: Path, n_vocab: int, *, config: dict[str, Any] | None = None, pre: str | None = None, **texts: Any
) -> dict[str, Any]:
    """The tokenizer keys of a folder with the given files (`tokenizer` is tokenizer.json ...), without `tokenizer.`."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        if isinstance(text, bytes):
            (folder / "tokenizer.model").write_bytes(text)
        elif isinstance(text, str):
            (folder / f"{name}.jinja").write_text(text)
        else:
            (folder / f"{name}.json").write_text(json.dumps(text))
    files = read_files(folder, config or {})
    notes: list[str] = []
    found: dict[str, MetaValue] = vocabulary_keys(
        read_vocabulary(files, n_vocab, pre, notes.append), files, notes.append
    )
    values = {name.removeprefix("tokenizer.").removeprefix("ggml."): value.value for name, value in found.items()}
    return values | {"notes": notes}


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORD_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + WORD_END
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + WORD_END
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("section", "ignore_merges", "expected"),
    [
        (GPT2_BYTES, False, "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False}, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, GPT2_BYTES), False, "smollm"),
        (sequence(split(LLAMA3), RAW_BYTES), True, "llama-bpe"),
        (sequence(split(LLAMA3), RAW_BYTES), False, "dbrx"),
        (sequence(split(LLAMA3.replace(CONTRACTIONS, SPELLED_OUT)), RAW_BYTES), True, "llama-bpe"),
        (sequence({**split(LLAMA3), "behavior": "Removed", "invert": True}, RAW_BYTES), True, "llama-bpe"),
        (sequence(split(QWEN2), RAW_BYTES), False, "qwen2"),
        (sequence(sequence(split(QWEN2)), RAW_BYTES), False, "qwen2"),
        (sequence(split(TEKKEN), RAW_BYTES), True, "tekken"),
        (sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-\ud7ff]+"),
                  {"type": "Digits", "individual_digits": True}, RAW_BYTES), False, "deepseek-coder"),
    ],
)  # fmt: skip
def test_pre_tokenizers_are_recognised_by_their_definition(
    section: dict[str, Any], ignore_merges: bool, expected: str
) -> None:
    """As the models' tokenizer.json files spell them, through JSON and back."""
    tokenizer = {"normalizer": {"type": "NFC"}, "pre_tokenizer": section, "model": {"ignore_merges": ignore_merges}}
    assert pretokenizers.recognise(json.loads(json.dumps(tokenizer)), Path("x")) == expected


@pytest.mark.parametrize(
    ("section", "normalizer", "message"),
    [
        (sequence(split(LLAMA3 + "|x"), RAW_BYTES), None, "split"),
        (sequence(split(LLAMA3), GPT2_BYTES), None, "--pre"),
        ({"type": "ByteLevel", "add_prefix_space": True}, None, "unknown 'ByteLevel'"),
        ({"type": "Whitespace"}, None, "unknown 'Whitespace'"),
        (sequence({**split(LLAMA3), "behavior": "MergedWithNext"}, RAW_BYTES), None, "unknown 'Split'"),
        (None, None, "unknown"),
        (GPT2_BYTES, {"type": "Lowercase"}, "normalizer 'Lowercase'"),
        (GPT2_BYTES, {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}, "normalizer 'NFKC'"),
    ],
)
def test_an_unknown_pre_tokenizer_is_an_error_that_names_pre(section: Any, normalizer: Any, message: str) -> None:
    """Nothing is guessed, not even from a regular expression that is nearly a known one."""
    tokenizer = {"normalizer": normalizer, "pre_tokenizer": section, "model": {}}
    with pytest.raises(BadInputError, match=message) as caught:
        pretokenizers.recognise(tokenizer, Path("x"))
    assert "--pre" in str(caught.value)


def test_every_recognised_name_is_llama_cpps_and_runs() -> None:
    """A file that the converter writes loads again."""
    names = set(pretokenizers.DEFINITIONS.values())
    assert names <= pretokenizers.KNOWN
    assert names <= set(PRE_TOKENIZERS)


@pytest.mark.parametrize("spelling", [" ".join, list])
def test_a_vocabulary_that_never_joins_digits_is_smollms(spelling: Any) -> None:
    """SmolLM's tokenizer as transformers 5 saves it: GPT-2's definition, but no merge has a digit."""
    tokenizer = {"pre_tokenizer": GPT2_BYTES, "model": {"merges": [spelling(("t", "h")), spelling(("th", "e"))]}}
    assert pretokenizers.recognise(tokenizer, Path("x")) == "smollm"
    tokenizer["model"]["merges"].append(spelling(("1", "0")))
    assert pretokenizers.recognise(tokenizer, Path("x")) == "gpt-2"


def test_pre_overrides_the_recognition(tmp_path: Path) -> None:
    """--pre is taken without looking at the definition."""
    unknown = bpe_tokenizer(pre_tokenizer={"type": "Whitespace"})
    assert keys(tmp_path, N_BPE, pre="qwen2", tokenizer=unknown)["pre"] == "qwen2"


def test_byte_level_vocabulary(tmp_path: Path) -> None:
    """Tokens by id, types, merges; no scores."""
    found = keys(tmp_path, N_BPE, tokenizer=bpe_tokenizer())
    assert (found["model"], found["pre"]) == ("gpt2", "gpt-2")
    assert found["tokens"] == [*bpe_vocab(), "<|end|>"]
    assert found["token_type"] == [1] * (N_BPE - 1) + [3]
    assert found["merges"][0] == "t h"
    assert "scores" not in found
    assert found["notes"] == []


def test_merges_as_pairs_may_hold_spaces(tmp_path: Path) -> None:
    """tokenizers 0.20's spelling; a space in a half becomes GPT-2's character for it."""
    tokenizer = bpe_tokenizer()
    tokenizer["model"]["vocab"] |= {"a b": N_BPE, "a bc": N_BPE + 1, "c": bpe_vocab()["c"]}
    tokenizer["model"]["merges"] = [m.split(" ") for m in tokenizer["model"]["merges"]] + [["a b", "c"]]
    assert keys(tmp_path, N_BPE + 2, tokenizer=tokenizer)["merges"][-1] == "a\u0120b c"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"merges": ["t h e"]}, r"model.merges\[0\]: merge is not a pair"),
        ({"merges": ["t h", ["t"]]}, r"model.merges\[1\]"),
        ({"merges": ["t zz"]}, "not in the vocabulary, got 'zz'"),
        ({"merges": ["z z"]}, "not in the vocabulary, got 'zz'"),
        ({"merges": None}, "model.merges: is not a list"),
        ({"vocab": {"a": 0, "b": 0}}, "two tokens share an id"),
        ({"vocab": {"a": -1}}, "not a table of tokens"),
        ({"vocab": {"a": 1.5}}, "not a table of tokens"),
        ({"vocab": {}, "merges": []}, "vocabulary is empty"),
        ({"vocab": {"a": 0, "b": 10**9}, "merges": []}, "'b': token id is far beyond the vocabulary"),
        ({"vocab": {"\ud800": 0}, "merges": []}, "not valid Unicode"),
        ({"type": "Unigram"}, "model.type: tokenizer model is not read, got Unigram, expected BPE"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    """Each names the entry."""
    tokenizer = bpe_tokenizer()
    tokenizer["model"] |= model
    tokenizer["added_tokens"] = [] if model.get("vocab") == {} else tokenizer["added_tokens"]
    with pytest.raises(BadInputError, match=message):
        keys(tmp_path, N_BPE, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "entry", [{"id": 1}, {"content": "x"}, 7, {"id": True, "content": "x"}, {"id": -1, "content": "x"}]
)
def test_broken_added_tokens_are_refused(tmp_path: Path, entry: Any) -> None:
    """An entry without id or content."""
    with pytest.raises(BadInputError, match="added token has no id or content"):
        keys(tmp_path, N_BPE, tokenizer=bpe_tokenizer(added_tokens=[entry]))


def test_added_tokens_special_or_not(tmp_path: Path) -> None:
    """Special ones and those that look so are control tokens, the rest user-defined with plain spaces."""
    added = [
        added_token(N_BPE - 1, "<|end|>"),
        added_token(N_BPE, "[INST]", special=False),
        added_token(N_BPE + 1, "<|looks|>", special=False),
        added_token(N_BPE + 2, f"{SPACE}x", special=False),
    ]
    found = keys(tmp_path, N_BPE + 3, tokenizer=bpe_tokenizer(added_tokens=added))
    assert found["tokens"][-4:] == ["<|end|>", "[INST]", "<|looks|>", " x"]
    assert found["token_type"][-4:] == [3, 4, 3, 4]


@pytest.mark.parametrize(("n_vocab", "note"), [(N_BPE + 3, "padded"), (N_BPE - 2, "cut")])
def test_the_vocabulary_takes_the_embeddings_size(tmp_path: Path, n_vocab: int, note: str) -> None:
    """Padded with unused [PADn] or cut, and said."""
    found = keys(tmp_path, n_vocab, tokenizer=bpe_tokenizer())
    assert len(found["tokens"]) == len(found["token_type"]) == n_vocab
    assert note in found["notes"][0]
    if n_vocab > N_BPE:
        assert found["tokens"][-1] == f"[PAD{n_vocab - 1}]"
        assert found["token_type"][-1] == 5


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    """Pieces, scores and types of tokenizer.model; padding scores -10000."""
    found = keys(tmp_path, len(spm_pieces()) + 1, model=spm_model())
    pieces = spm_pieces()
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["tokens"] == [*(piece for piece, _, _ in pieces), f"[PAD{len(pieces)}]"]
    assert found["scores"] == [*(score for _, score, _ in pieces), -10000.0]
    assert found["token_type"] == [*(kind for _, _, kind in pieces), 5]
    assert "merges" not in found


def test_sentencepiece_added_tokens(tmp_path: Path) -> None:
    """added_tokens.json is user-defined, tokenizer_config.json lies over it; a gap between them is padding."""
    n = len(spm_pieces())
    config = {
        "added_tokens_decoder": {
            "2": {"content": "</s>", "special": True},
            str(n + 1): {"content": "<|im|>", "special": False},
            str(n + 3): {"content": f"{SPACE}y", "special": False},
        }
    }
    found = keys(tmp_path, n + 4, model=spm_model(), added_tokens={"<x>": n, "<y>": n + 1}, tokenizer_config=config)
    assert found["tokens"][n:] == ["<x>", "<|im|>", f"[PAD{n + 2}]", " y"]
    assert found["token_type"][n:] == [4, 3, 5, 4]
    assert found["scores"][n:] == [-1000.0, -1000.0, -10000.0, -1000.0]
    assert found["scores"][2] == -1000.0


def test_what_is_no_sentencepiece_model(tmp_path: Path) -> None:
    """A tokenizer.model of something else (tiktoken's are so named too)."""
    with pytest.raises(BadInputError, match="is not a SentencePiece model"):
        keys(tmp_path, 300, model=b"IQ== 0\nIg== 1\n")


def hf_spm() -> dict[str, Any]:
    """The SentencePiece vocabulary as Llama 2's tokenizer.json would hold it: merges in the order of scores."""
    pieces = spm_pieces()
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = [
        f"{piece[:k]} {piece[k:]}"
        for piece, _, kind in sorted(pieces, key=lambda p: -p[1])
        for k in range(1, len(piece))
        if kind == 1 and piece[:k] in vocab and piece[k:] in vocab
    ]
    return {
        "added_tokens": [added_token(i, piece) for i, (piece, _, _) in enumerate(pieces[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": []},
        "model": {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": merges},
    }


def test_a_sentencepiece_like_tokenizer_json_keeps_its_merges_order(tmp_path: Path) -> None:
    """Without tokenizer.model: pieces that merges make are ranked as in the model they came from."""
    found = keys(tmp_path, len(spm_pieces()), tokenizer=hf_spm())
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["token_type"][:4] == [3, 3, 3, 6]
    assert "add_space_prefix" not in found
    made = {SPACE + word for word in WORDS} | {word[:k] for word in WORDS for k in range(2, len(word) + 1)}
    ids = [i for i, (piece, _, kind) in enumerate(spm_pieces()) if kind == 1 and piece in made]
    assert len(ids) > 20
    assert sorted(ids, key=lambda i: -found["scores"][i]) == sorted(ids, key=lambda i: -spm_pieces()[i][1])


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}, None),
        (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}, False),
        ({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}, None, False),
    ],
)
def test_space_prefix_of_a_sentencepiece_like_tokenizer(
    tmp_path: Path, normalizer: Any, pre_tokenizer: Any, prefix: bool | None
) -> None:
    """Written only where text gets no space in front."""
    found = keys(tmp_path, 400, tokenizer=hf_spm() | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer})
    assert found.get("add_space_prefix") is prefix


def test_a_sentencepiece_like_tokenizer_that_does_more_is_refused(tmp_path: Path) -> None:
    """Unless --pre says that it is all right."""
    strange = hf_spm() | {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}
    with pytest.raises(BadInputError, match="--pre default overrides, got Digits"):
        keys(tmp_path, 400, tokenizer=strange)
    assert keys(tmp_path, 400, pre="default", tokenizer=strange)["pre"] == "default"


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    """Is named."""
    with pytest.raises(BadInputError, match=r"neither tokenizer.model, tokenizer.json nor tekken.json"):
        keys(tmp_path, 10)


SPECIAL = {
    "bos_token": "<|end|>",
    "eos_token": {"content": "<|stop|>", "__type": "AddedToken"},
    "pad_token": None,
    "unk_token": "not there",
}


def with_specials(**fields: Any) -> dict[str, Any]:
    """A tokenizer.json with two special tokens."""
    return bpe_tokenizer(added_tokens=[added_token(N_BPE - 1, "<|end|>"), added_token(N_BPE, "<|stop|>")], **fields)


def test_special_tokens_from_either_file(tmp_path: Path) -> None:
    """tokenizer_config.json's texts first, config.json's ids where it has none; lists and ids outside are left out."""
    config = {"bos_token_id": 5, "eos_token_id": [1, 2], "pad_token_id": 7, "unk_token_id": -1, "sep_token_id": 10**6}
    found = keys(tmp_path, N_BPE + 2, config=config, tokenizer=with_specials(), tokenizer_config=SPECIAL)
    assert {name: value for name, value in found.items() if name.endswith("_token_id")} == {
        "bos_token_id": N_BPE - 1,
        "eos_token_id": N_BPE,
        "padding_token_id": 7,
    }
    assert [note.split()[0] for note in found["notes"]] == ["unk", "sep"]


def test_tokens_that_a_file_names_are_special(tmp_path: Path) -> None:
    """Whatever their flags say; those that the vocabulary lacks come after it, as in transformers."""
    first = N_BPE - 1
    plain = [added_token(first + i, token, special=False) for i, token in enumerate(("<A>", "<B>"))]
    named = {"eos_token": "<A>", "pad_token": "<C>", "additional_special_tokens": ["<B>", "<D>"]}
    files: dict[str, Any] = {
        "tokenizer": bpe_tokenizer(added_tokens=plain),
        "tokenizer_config": named,
        "special_tokens_map": {"cls_token": "<B>"},
    }
    found = keys(tmp_path, first + 5, **files)
    assert found["tokens"][first:] == ["<A>", "<B>", "<C>", "<D>", f"[PAD{first + 4}]"]
    assert found["token_type"][first:] == [3, 3, 3, 3, 5]
    found = keys(tmp_path, first + 5, **(files | {"tokenizer_config": {**named, "added_tokens_decoder": {}}}))
    assert found["token_type"][first:] == [3, 4, 3, 3, 5]


def test_what_the_post_processor_adds_counts(tmp_path: Path) -> None:
    """A template that begins with BOS adds it, whatever tokenizer_config.json says; ByteLevel alone adds none."""
    first = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [first, text], "pair": [], "special_tokens": {}}
    chosen = {**SPECIAL, "add_bos_token": False, "add_eos_token": True}
    found = keys(tmp_path, N_BPE + 1, tokenizer=with_specials(post_processor=template), tokenizer_config=chosen)
    assert (found["add_bos_token"], found["add_eos_token"]) == (True, True)
    found = keys(
        tmp_path, N_BPE + 1, tokenizer=with_specials(post_processor={"type": "ByteLevel"}), tokenizer_config=chosen
    )
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)


def test_chat_templates_from_all_their_places(tmp_path: Path) -> None:
    """A text, a list of named ones, chat_template.json and chat_template.jinja; tokenizer_config.json's comes first."""
    tokenizer = bpe_tokenizer()
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]

    def chat(folder: str, **texts: Any) -> dict[str, Any]:
        found = keys(tmp_path / folder, N_BPE, tokenizer=tokenizer, **texts)
        return {name: value for name, value in found.items() if "chat_template" in name}

    assert chat("a", tokenizer_config={"chat_template": "T"}, chat_template="J") == {"chat_template": "T"}
    assert chat("b", tokenizer_config={"x": 1}, chat_template="J") == {"chat_template": "J"}
    assert chat("c", tokenizer_config={"x": 1}, chat_template={"chat_template": "K"}) == {"chat_template": "K"}
    assert chat("d", tokenizer_config={"chat_template": named}) == {
        "chat_templates": ["tool_use"],
        "chat_template.tool_use": "B",
        "chat_template": "A",
    }
    more = [*named, *({"name": name, "template": name} for name in ("z", "r-g", "k"))]
    assert chat("g", tokenizer_config={"chat_template": more})["chat_templates"] == ["tool_use", "z", "r_g", "k"]
    with pytest.raises(BadInputError, match="chat_template: is neither a text nor a list"):
        chat("e", tokenizer_config={"chat_template": [{"name": 1}]})
    with pytest.raises(BadInputError, match="not valid Unicode"):
        chat("f", tokenizer_config={"chat_template": "\ud800"})


def test_files_are_not_changed_by_reading(tmp_path: Path) -> None:
    """Special tokens are worked out on a copy."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe_tokenizer()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "<|end|>"}))
    files = read_files(tmp_path, {})
    before = copy.deepcopy(files)
    vocabulary_keys(read_vocabulary(files, N_BPE, None, print), files, print)
    assert files == before
