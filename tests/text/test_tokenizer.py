"""Tokenizing and detokenizing: llama.cpp's recorded cases, values derived by hand, and length."""

from __future__ import annotations

import time

import pytest

from localmoe.errors import BadInputError, UsageError
from localmoe.text import tokenizer
from localmoe.text.tokenizer import StreamDecoder, Tokenizer
from tests.slowness import slowness
from tests.text.small import VOCAB_DIR, bpe_metadata, make, spm_metadata

RECORDED = ("llama-spm", "llama-bpe", "qwen2", "gpt-2")
_loaded: dict[str, Tokenizer] = {}


def recorded(name: str) -> Tokenizer:
    path = VOCAB_DIR / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    if name not in _loaded:
        _loaded[name] = tokenizer.load(path)
    return _loaded[name]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_cases_are_exact_and_decode_to_the_text(name: str) -> None:
    tok = recorded(name)
    base = VOCAB_DIR / f"ggml-vocab-{name}.gguf"
    texts = base.with_name(base.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = base.with_name(base.name + ".out").read_text().splitlines()
    assert len(texts) == len(lines) + 1  # the last separator ends the file
    for text, line in zip(texts, lines, strict=False):
        ids = tok.encode(text, add_bos=False)
        assert ids == [int(number) for number in line.split()], text
        assert tok.decode(ids) == text


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("letter", ["a", "^", " ", "\0"])
def test_a_megabyte_of_one_letter_is_quick(name: str, letter: str) -> None:
    tok = recorded(name)
    start = time.thread_time()
    ids = tok.encode(letter * 1_000_000, add_bos=False)
    assert time.thread_time() - start < 5 * slowness()
    if len(ids) < 300_000:
        assert tok.decode(ids) == letter * 1_000_000


def test_spm_merges_the_best_score_first_and_prefixes_a_space() -> None:
    tok = make(spm_metadata())
    # ▁ a b: "▁a" scores -5 and "ab" -4, so "ab" comes first; then "▁ab" (-6)
    assert tok.encode("ab", add_bos=False) == [264]
    assert tok.encode("ab") == [1, 264]
    assert tok.encode("a b", add_bos=False) == [263, 259, 261]
    assert tok.encode("", add_bos=False) == []


def test_spm_without_space_prefix_and_with_eos() -> None:
    tok = make(spm_metadata(add_space_prefix=False, add_eos_token=True))
    assert tok.encode("ab") == [1, 262, 2]
    assert tok.decode([262]) == "ab"


def test_spm_writes_unknown_characters_as_bytes() -> None:
    tok = make(spm_metadata())
    assert tok.encode("é€", add_bos=False) == [259, 266, 3 + 0xE2, 3 + 0x82, 3 + 0xAC]
    assert tok.decode([259, 266, 3 + 0xE2, 3 + 0x82, 3 + 0xAC]) == "é€"


def test_spm_keeps_leading_spaces_when_decoding() -> None:
    tok = make(spm_metadata())
    for text in ("  ab", " a", "a ", "   "):
        assert tok.decode(tok.encode(text)) == text


def test_bpe_merges_by_rank_within_words() -> None:
    tok = make(bpe_metadata())
    assert tok.encode("abc ab lll") == [257, 258, 32, 259, ord("l")]
    assert tok.decode([257, 258, 32, 259, ord("l")]) == "abc ab lll"


def test_bpe_takes_a_whole_word_where_merges_are_ignored() -> None:
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"][:-3], "xyz", "<|im_end|>", "<|endoftext|>"]
    with_word = bpe_metadata(pre="llama-bpe", tokens=tokens, token_type=None, add_bos_token=False)
    assert make(with_word).encode("xyz") == [261]
    with_word["tokenizer.ggml.pre"] = "qwen2"
    assert make(with_word).encode("xyz") == [120, 121, 122]


def test_special_tokens_are_parsed_only_when_asked_for() -> None:
    tok = make(bpe_metadata())
    assert tok.encode("<|im_end|>", parse_special=True) == [262]
    assert tok.encode("<|im_end|>") == list(b"<|im_end|>")
    assert tok.encode("a<think>b") == [97, 260, 98]  # user-defined tokens are matched in any text
    assert tok.decode([262]) == ""
    assert tok.decode([262], special=True) == "<|im_end|>"


def test_text_never_becomes_a_control_token_by_merging() -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.token_type"][256] = 3  # "ab"
    assert make(metadata).encode("ab") == [97, 98]
    assert make(metadata).encode("ab", parse_special=True) == [256]


def test_text_merges_through_a_control_token_and_not_into_one() -> None:
    bpe, spm = bpe_metadata(), spm_metadata(add_space_prefix=False)
    bpe["tokenizer.ggml.token_type"][256] = 3  # "ab", of which "abc" and " ab" are made
    assert make(bpe).encode("abc ab") == [257, 258]
    bpe["tokenizer.ggml.token_type"][258] = 3
    assert make(bpe).encode("ab ab") == [97, 98, 32, 97, 98]
    spm["tokenizer.ggml.token_type"][263] = 3  # "▁a", of which "▁ab" is made
    spm["tokenizer.ggml.scores"][263] = 0.0
    assert make(spm).encode(" ab") == [1, 264]
    assert make(spm).encode(" a") == [1, 259, 260]


def test_end_of_generation_tokens_come_from_keys_and_names() -> None:
    tok = make(bpe_metadata(eos_token_id=65))
    assert tok.eog == {65, 262, 263}
    assert tok.is_control(262)
    assert not tok.is_control(65)


def test_bos_follows_the_model() -> None:
    assert make(bpe_metadata()).encode("l") == [108]
    assert make(bpe_metadata(add_bos_token=True)).encode("l") == [263, 108]
    assert make(bpe_metadata(add_bos_token=True)).encode("l", add_bos=False) == [108]
    with pytest.raises(BadInputError, match="bos_token_id"):
        make(bpe_metadata(add_bos_token=True, bos_token_id=None, pre="glm4")).encode("l")


def test_what_no_key_names_is_llama_cpps_default() -> None:
    """Of byte-level BPE Falcon's 11, for GLM none as BOS; of SentencePiece LLaMA's."""
    plain = make(bpe_metadata(bos_token_id=None, eos_token_id=None))
    assert (plain.bos, plain.eos, plain.unk) == (11, 11, None)
    assert 11 in plain.eog
    assert (plain.own_bos, plain.own_eos) == (None, None)
    glm = make(bpe_metadata(bos_token_id=None, eos_token_id=None, pre="glm4"))
    assert (glm.bos, glm.eos) == (None, 11)
    assert make(bpe_metadata(bos_token_id=None, pre="llama-bpe")).encode("l") == [11, 108]
    spm = make(spm_metadata())
    assert (spm.bos, spm.eos, spm.unk) == (spm.own_bos, spm.own_eos, 0) == (1, 2, 0)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UsageError, match=r"U\+D800 at character 1"):
        make(bpe_metadata()).encode("a\ud800")


def test_ids_out_of_range_are_refused() -> None:
    for bad in (-1, 264):
        with pytest.raises(UsageError, match="no such token"):
            make(bpe_metadata()).decode([bad])


def test_stream_decoder_never_emits_half_a_character() -> None:
    decoder = StreamDecoder(make(bpe_metadata()))
    assert [decoder.push(byte) for byte in "é👍".encode()] == ["", "é", "", "", "", "👍"]
    assert decoder.flush() == ""


def test_stream_decoder_replaces_bytes_once_they_cannot_become_a_character() -> None:
    decoder = StreamDecoder(make(bpe_metadata()))
    assert [decoder.push(byte) for byte in b"\xff\xe2\x82a\xf0"] == ["\ufffd", "", "", "\ufffda", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_phi3_special_tokens_swallow_following_space() -> None:
    metadata = bpe_metadata() | {"general.name": "Phi-3 mini"}
    assert make(metadata).encode("<|im_end|> \n a", parse_special=True) == [262, 97]
