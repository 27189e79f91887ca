"""Messages to a prompt: the model's own chat template where it has one, a known form where its tokens show one.

A template is rendered in a sandbox (sandbox.py). Its own text has special tokens parsed; what the messages say never
has: text that spells a special token stays text.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localmoe.errors import BadInputError, UsageError
from localmoe.text.visible import visible

if TYPE_CHECKING:
    from localmoe.gguf_file import GGUFFile
    from localmoe.text.sandbox import Sandbox
    from localmoe.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

KEY = "tokenizer.chat_template"
_STAND_INS = range(0xF0000, 0xFFFFE)  # a plane for private use; those that occur in the text are not used

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "(m['content'] | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_INST = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + (m['content'] | trim) + eos_token }}{% endif %}{% endfor %}"
)
# a form is taken when the vocabulary has all of these tokens; the last is for SentencePiece vocabularies alone
_FALLBACKS = (
    ("ChatML", ("<|im_start|>", "<|im_end|>"), _CHATML),
    ("Llama 3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _LLAMA3),
)


class ChatTemplate:
    """A chat template, compiled when first used; safe to use from several threads.

    `source` says where it comes from, for people: the model, or a built-in form and why.
    """

    def __init__(self, text: str, source: str, tokenizer: Tokenizer) -> None:
        self.text = text
        self.source = source
        self._file = tokenizer.file
        self._tokens = {
            f"{role}_token": tokenizer.token(i).decode(errors="replace")
            for role, i in (
                ("bos", tokenizer.own_bos),
                ("eos", tokenizer.own_eos),
                ("unk", tokenizer.unk),
                ("pad", tokenizer.pad),
            )
            if i is not None
        }
        self._tokens = {"bos_token": "", "eos_token": "", **self._tokens}
        self._compiled: tuple[Sandbox, Any] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_gguf(cls, gguf: GGUFFile, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The model's template, else the form its tokens show, else None: then the model has no way to chat.

        Raises BadInputError where the template is not text.
        """
        text = gguf.metadata.get(KEY)
        if text is not None and not isinstance(text, str):
            raise BadInputError("is not a string", file=tokenizer.file, item=KEY, got=type(text).__name__)
        if text and text.strip():
            return cls(text, f"the model's {KEY}", tokenizer)
        for name, tokens, form in _FALLBACKS:
            if all(tokenizer.id_of(token) is not None for token in tokens):
                return cls(form, f"built-in {name}: the model has no template and has its tokens", tokenizer)
        if tokenizer.kind == "spm":
            return cls(_INST, "built-in [INST]: the model has no template and a Llama or Mistral vocabulary", tokenizer)
        return None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt as text, as Hugging Face's `apply_chat_template` renders it.

        Raises UsageError for messages that are not a list of role and content, BadInputError for whatever the
        template does wrong: syntax, refusals, forbidden access, too long, too large.
        """
        return self._render(_checked(messages), add_generation_prompt, variables)

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The prompt as token ids, with the model's BOS in front exactly once.

        Special tokens are parsed in what the template writes and not in what the messages say. Where no message
        spells one, this equals tokenizing the rendered text with special tokens parsed.
        """
        plain = _checked(messages)
        prompt = self._render(plain, add_generation_prompt, variables)
        controls = [text for text in tokenizer.control_texts() if text in prompt]
        guards = _Guards(prompt + self.text + "".join(_strings(plain)), controls)
        # Both guarded renderings are safe from whole spelled tokens. Guarding every possible first character is also
        # safe from tokens begun in a message and ended by what follows, but a template that looks into the messages
        # may see the difference: then the smaller guard is taken.
        guarded = self._render(guards.everywhere(plain), add_generation_prompt, variables)
        if guards.undo(guarded) != prompt:
            guarded = self._render(guards.occurrences(plain), add_generation_prompt, variables)
        ids = tokenizer.encode_guarded(guarded, guards.originals)
        if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
            ids = [tokenizer.bos, *ids]
        return ids

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        from localmoe.text.sandbox import MAX_SOURCE, TEMPLATE_FAULTS, Sandbox

        if len(self.text) > MAX_SOURCE:
            raise BadInputError("is too long", file=self._file, item=KEY, got=len(self.text), expected=MAX_SOURCE)
        given = {"tools": None, "documents": None, **self._tokens, **variables}
        try:
            with self._lock:
                if self._compiled is None:
                    sandbox = Sandbox()
                    sandbox.budget.restart()
                    self._compiled = sandbox, sandbox.from_string(self.text)
                sandbox, template = self._compiled
                sandbox.budget.restart()
                pieces = template.generate(messages=messages, add_generation_prompt=add_generation_prompt, **given)
                return sandbox.budget.concat(pieces)
        except TEMPLATE_FAULTS as error:
            reason = visible(" ".join(str(error).split())[:300]) or type(error).__name__
            raise BadInputError(f"the chat template fails: {reason}", file=self._file, item=KEY) from None


class _Guards:
    """Stand-ins for characters of messages, so that no control token is found where a message spells it."""

    def __init__(self, seen: str, controls: list[str]) -> None:
        used = set(seen)
        free = (code for code in _STAND_INS if chr(code) not in used)
        self.controls = controls
        self.marks = [next((c for c in text if not c.isspace()), "") for text in controls]
        self.stand_in = {mark: chr(next(free)) for mark in dict.fromkeys(self.marks) if mark}
        self.originals = {ord(stand_in): mark for mark, stand_in in self.stand_in.items()}
        self._table = str.maketrans(self.stand_in)

    def undo(self, text: str) -> str:
        return text.translate(self.originals)

    def everywhere(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_mapped(message, lambda text: text.translate(self._table)) for message in messages]

    def occurrences(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_mapped(message, self._guard) for message in messages]

    def _guard(self, text: str) -> str:
        for control, mark in zip(self.controls, self.marks, strict=True):
            if mark and control in text:
                text = text.replace(control, control.replace(mark, self.stand_in[mark], 1))
        return text


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise UsageError("the messages are no list of mappings with a role", got=type(messages).__name__)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError("a message is not a mapping with a role", got=visible(repr(message)[:80]))
        if not isinstance(message.get("content", ""), (str, type(None), list)):
            raise UsageError("a message's content is not text", got=type(message["content"]).__name__)
    return [dict(message) for message in messages]


def _mapped(value: Any, change: Any, key: str = "") -> Any:
    """A copy of a message with every text in it changed but its roles and types."""
    if isinstance(value, Mapping):
        return {k: _mapped(v, change, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, key) for item in value]
    return change(value) if isinstance(value, str) and key not in ("role", "type") else value


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []
