"""Special tokens and the chat template: the last `tokenizer.*` keys.

What counts, in llama.cpp's converter's order (gguf-py's SpecialVocab): the post-processor of tokenizer.json says which
tokens are added around a text, tokenizer_config.json which token is which, config.json gives ids where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType, GGUFWriter

from localmoe.errors import BadInputError

from .card import collected
from .checkpoint import find_file, read_json, read_text
from .hparams import Warn
from .source import MetaValue
from .tokenizer_files import STANDARD_KINDS, TokenizerFiles, check_texts, listed_tokens, token_text

ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": None,  # the writer has no key for it
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_TEMPLATES, _NAMED_TEMPLATE = "tokenizer.chat_templates", "tokenizer.chat_template."
ADD_KEYS = {kind: f"tokenizer.ggml.add_{kind}_token" for kind in ("bos", "eos", "sep")}


class _Specials:
    """The state that the files are read into: tokens by kind, and which are added around a text.

    Tokens are compared as they are written, a text or a table with `content`: for SpecialVocab, too, a table is another
    token than its text.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        self.config = dict(files.tokenizer_config or {})
        self.known = bool(files.tokenizer_config)
        self.kinds = list(STANDARD_KINDS)
        self.add: dict[str, bool] = {}
        if files.tokenizer is None:
            return
        for kind, stand_in in (("bos", "cls"), ("eos", "sep")):
            if not self.token(kind) and self.token(stand_in):
                self.config[f"{kind}_token"] = self.token(stand_in)
        self._read_post_processor(files.tokenizer.get("post_processor"))

    def token(self, kind: str) -> Any:
        """The entry of a special token, None without one."""
        return self.config.get(f"{kind}_token")

    def text(self, kind: str) -> str | None:
        """The text of a special token."""
        return token_text(self.token(kind))

    def _read_post_processor(self, node: object) -> None:
        if not isinstance(node, dict):
            return
        steps = node.get("processors", [node])
        for step in steps if isinstance(steps, list) else []:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "ByteLevel":
                self.add.setdefault("bos", False)
                self.add.setdefault("eos", False)
            elif kind == "RobertaProcessing":
                self.add |= {"bos": True, "eos": True, "sep": True}
                for name in ("cls", "sep"):
                    pair = step.get(name)
                    if self.known and not self.token(name) and isinstance(pair, list) and pair:
                        self.config[f"{name}_token"] = pair[0]
            elif kind == "TemplateProcessing":
                self._read_template(step)

    def _read_template(self, step: dict[str, Any]) -> None:
        """A template such as [BOS] A [EOS]: its first and last special tokens are the ones that are added."""
        single = step.get("single")
        first = last = None
        if isinstance(single, list) and len(single) > 1:
            first, last = _special_id(single[0]), _special_id(single[-1])
        if first:
            if not self.known:
                self.config["bos_token"] = first
            elif first not in (self.token("bos"), self.token("cls")):
                for kind in ("bos", "cls"):
                    if not self.token(kind):
                        self.config[f"{kind}_token"] = first
            self.add["bos"] = first in (self.token("bos"), self.token("cls"))
        if last:
            if self.known and last != self.token("eos"):
                spare = next((kind for kind in ("eot", "eom") if kind not in self.kinds), None)
                if spare is not None:
                    self.kinds.append(spare)
                    self.config[f"{spare}_token"] = self.token("eos")
            self.config["eos_token"] = last
            self.add["eos"] = True
        self._read_pair(step.get("pair"), first, last)

    def _read_pair(self, pair: object, first: str | None, last: str | None) -> None:
        """A pair template with a separator between A and B sets add_sep."""
        if not isinstance(pair, list) or not pair:
            return
        start = 1 if first and _special_id(pair[0]) == first else 0
        stop = len(pair) - 1 if last and _special_id(pair[-1]) == last else len(pair)
        inner = pair[start:stop]
        if len(inner) < 3 or _sequence_id(inner[0]) != "A" or _sequence_id(inner[-1]) != "B":
            return
        ends = (self.token("sep"), self.token("eos"))
        middle = [_special_id(entry) for entry in inner[1:-1]]
        add = (bool(middle[0]) and middle[0] in ends and not last) or (
            len(middle) == 2 and bool(middle[1]) and middle[1] in ends
        )
        self.add["sep"] = add
        if add and not self.token("sep") and self.known:
            self.config["sep_token"] = self.token("eos")


def _special_id(entry: object) -> str | None:
    return _template_id(entry, "SpecialToken")


def _sequence_id(entry: object) -> str | None:
    return _template_id(entry, "Sequence")


def _template_id(entry: object, kind: str) -> str | None:
    inner = entry.get(kind) if isinstance(entry, dict) else None
    found = inner.get("id") if isinstance(inner, dict) else None
    return found if isinstance(found, str) else None


def special_keys(
    files: TokenizerFiles, n_vocab: int, warn: Warn, known: Mapping[str, int] | None = None
) -> dict[str, MetaValue]:
    """Special token ids, add_*_token flags and chat templates, in the order in which the converter writes them.

    `known` are ids that the vocabulary itself gives: no other file then counts, and bos alone is added.
    """
    if known is not None:
        keys = {str(ID_KEYS[kind]): MetaValue(known[kind], GGUFValueType.UINT32) for kind in ID_KEYS if kind in known}
        keys |= {ADD_KEYS[kind]: MetaValue(kind == "bos", GGUFValueType.BOOL) for kind in ("bos", "eos")}
        return keys | _template_keys(files)
    specials = _Specials(files)
    by_text: dict[str, int] = {}
    for token_id, token, _ in listed_tokens(files):
        by_text.setdefault(token, token_id)
    found: dict[str, int] = {}

    def take(kind: str, token_id: object) -> None:
        if type(token_id) is not int or kind in found:
            return
        if 0 <= token_id < n_vocab:
            found[kind] = token_id
        else:
            warn(f"{kind} token {token_id} is outside the vocabulary of {n_vocab} and left out")

    for kind in specials.kinds if specials.known else []:
        flag = specials.config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            specials.add.setdefault(kind, flag)
        take(kind, by_text.get(specials.text(kind) or ""))
    for kind in specials.kinds:
        take(kind, files.config.get(f"{kind}_token_id"))
    keys = {name: MetaValue(found[kind], GGUFValueType.UINT32) for kind in found if (name := ID_KEYS[kind])}
    keys |= {
        ADD_KEYS[kind]: MetaValue(add, GGUFValueType.BOOL) for kind, add in specials.add.items() if kind in ADD_KEYS
    }
    return keys | _template_keys(files)


def _template_keys(files: TokenizerFiles) -> dict[str, MetaValue]:
    """The chat template, from tokenizer_config.json or else chat_template.jinja or chat_template.json."""
    template = (files.tokenizer_config or {}).get("chat_template")
    file = files.folder / "tokenizer_config.json"
    if template is None:
        template, file = _template_file(files)
    if template is None:
        return {}
    if isinstance(template, dict):  # as transformers has them once they are read
        template = [{"name": name, "template": text} for name, text in template.items()]
    entries = [{"name": "default", "template": template}] if isinstance(template, str) else template
    if not isinstance(entries, list) or not all(_is_named_template(entry) for entry in entries):
        raise BadInputError("is neither a text nor a list of named templates", file=file, item="chat_template")
    check_texts([text for entry in entries for text in (entry["name"], entry["template"])], file)
    writer = GGUFWriter(path=None, arch="llama")
    writer.add_chat_template(template)
    keys = collected(writer)
    if _TEMPLATES in keys:  # gguf-py gives the names in the order of a set: another one in every run
        names = [key.removeprefix(_NAMED_TEMPLATE) for key in keys if key.startswith(_NAMED_TEMPLATE)]
        assert sorted(names) == sorted(keys[_TEMPLATES].value)
        keys[_TEMPLATES] = keys[_TEMPLATES]._replace(value=names)
    return keys


def _is_named_template(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)


def _template_file(files: TokenizerFiles) -> tuple[Any, Any]:
    folder = files.folder
    main = read_text(folder, "chat_template.jinja")
    if main is None:
        table = read_json(folder, "chat_template.json") or {}
        return table.get("chat_template"), folder / "chat_template.json"
    extra = folder / "additional_chat_templates"
    names = sorted(path.name for path in extra.glob("*.jinja")) if extra.is_dir() else []
    if not names:
        return main, folder / "chat_template.jinja"
    entries: list[dict[str, str | None]] = [{"name": "default", "template": main}]
    for name in names:
        relative = f"additional_chat_templates/{name}"
        if find_file(folder, relative) is not None:
            entries.append({"name": name.removesuffix(".jinja"), "template": read_text(folder, relative)})
    return entries, folder / "chat_template.jinja"
