"""Checkpoints in forms that published ones have: what llama.cpp's converter makes of each is recorded with CASES."""

from __future__ import annotations

from tests.checkpoints import CHAT, ROPE_LLAMA3, Tiny, added_token, bpe_tokenizer, bpe_vocab, spm_pieces

_ROWS = len(bpe_vocab()) + 1
_PIECES = len(spm_pieces())
_TWO_MORE = bpe_tokenizer(
    added_tokens=[added_token(_ROWS - 1 + i, token) for i, token in enumerate(("<|end|>", "<|user|>", "<|bot|>"))]
)
_USER_DEFINED = bpe_tokenizer(
    added_tokens=[
        added_token(_ROWS - 1, "<|end|>"), added_token(_ROWS, "<tool>", special=False),
        added_token(_ROWS + 1, "a b", special=False),
    ]
)  # fmt: skip
_NO_NAMES = {"tokenizer_class": "PreTrainedTokenizerFast"}
_FAST = _NO_NAMES | {"bos_token": "<|end|>"}
_TEMPLATES = [{"name": name, "template": name} for name in ("default", "tool_use")]
_CARD = """---
license: other
license_name: my-license
license_link: https://example.com/licence
language: [en, de]
tags: [moe, merge]
pipeline_tag: text-generation
base_model:
- mistralai/Mistral-7B-v0.1
- https://huggingface.co/meta-llama/Llama-2-7b-hf
datasets:
- some/data
- other/data-set_v2
model_name: My Model
model_creator: Someone
quantized_by: Me
---
# Title
"""
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}

_PLAIN = bpe_tokenizer(
    added_tokens=[
        added_token(_ROWS - 1 + i, token, special=False)
        for i, token in enumerate(("<s>", "</s>", "<tool>", "a\u2581b"))
    ]
)
_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {"</s>": {"id": "</s>", "ids": [_ROWS], "tokens": ["</s>"]}},
}
_ENDED = {**_TEMPLATE, "single": [*_TEMPLATE["single"], _TEMPLATE["pair"][1]]}
_ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", _ROWS], "cls": ["<s>", _ROWS - 1]}
_TABLE = {"__type": "AddedToken", "content": "</s>"}

VARIANTS: dict[str, Tiny] = {
    "named-tokens": Tiny(
        "llama",
        n_vocab=_ROWS + 7,
        texts={
            "tokenizer.json": _PLAIN,
            "tokenizer_config.json": _NO_NAMES
            | {"bos_token": "<s>", "eos_token": _TABLE, "pad_token": "[PAD]", "image_token": "a\u2581b"}
            | {"additional_special_tokens": ["<tool>", "<new>"]},
        },
    ),
    "named-tokens-in-older-files": Tiny(
        "llama",
        n_vocab=_ROWS + 7,
        texts={
            "tokenizer.json": _PLAIN,
            "tokenizer_config.json": _NO_NAMES | {"unk_token": "<unk>"},
            "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
            "added_tokens.json": {"<s>": _ROWS - 1, "later": _ROWS + 4, "<unk>": _ROWS + 3},
        },
    ),
    "template-of-pairs": Tiny(
        "llama",
        n_vocab=_ROWS + 3,
        texts={
            "tokenizer.json": {**_PLAIN, "post_processor": _TEMPLATE},
            "tokenizer_config.json": _NO_NAMES | {"eos_token": "</s>"},
        },
    ),
    "template-with-a-table": Tiny(
        "llama",
        n_vocab=_ROWS + 3,
        texts={
            "tokenizer.json": {**_PLAIN, "post_processor": _ENDED},
            "tokenizer_config.json": _NO_NAMES | {"eos_token": _TABLE},
        },
    ),
    "roberta-template": Tiny(
        "llama",
        n_vocab=_ROWS + 3,
        texts={
            "tokenizer.json": {**_PLAIN, "post_processor": _ROBERTA},
            "tokenizer_config.json": _NO_NAMES | {"pad_token": "<tool>"},
        },
    ),
    "added-user-defined": Tiny("llama", n_vocab=_ROWS + 2, texts={"tokenizer.json": _USER_DEFINED}),
    "rows-of-padding": Tiny("llama", n_vocab=_ROWS + 40),
    "spm-added-with-a-gap": Tiny(
        tokenizer="spm",
        n_vocab=_PIECES + 6,
        texts={"added_tokens.json": {"<|im_start|>": _PIECES + 1, "<|im_end|>": _PIECES + 4}},
    ),
    "spm-added-beyond-the-rows": Tiny(
        tokenizer="spm", n_vocab=_PIECES, texts={"added_tokens.json": {"<pad>": _PIECES}}
    ),
    "spm-added-in-the-config": Tiny(
        tokenizer="spm",
        n_vocab=_PIECES + 3,
        texts={
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "eos_token": "<|im_end|>",
                "added_tokens_decoder": {
                    "1": {"content": "<s>", "special": True},
                    f"{_PIECES}": {"content": "<|im_start|>", "special": False},
                    f"{_PIECES + 1}": {"content": "<|im_end|>", "special": True},
                },
            }
        },
    ),
    "layer-norm-eps": Tiny("llama", config={"rms_norm_eps": None, "layer_norm_eps": 1e-4}),
    "both-eps": Tiny("llama", config={"rms_norm_eps": 1e-6, "norm_epsilon": 1e-4}),
    "norm-eps": Tiny("llama", config={"rms_norm_eps": None, "norm_eps": 1e-4}),
    "special-tokens-map": Tiny(
        "llama",
        n_vocab=_ROWS + 2,
        texts={
            "tokenizer.json": _TWO_MORE,
            "tokenizer_config.json": _NO_NAMES,
            "special_tokens_map.json": {"bos_token": "<|end|>", "eos_token": "<|bot|>", "pad_token": "<|user|>"},
        },
    ),
    "generation-config": Tiny(
        "llama",
        config={"bos_token_id": None, "eos_token_id": [2, 5]},
        texts={"generation_config.json": {"bos_token_id": 3, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1}},
    ),
    "templates": Tiny("llama", texts={"tokenizer_config.json": _FAST | {"chat_template": _TEMPLATES}}),
    "template-beside-config": Tiny(
        "llama", texts={"tokenizer_config.json": _FAST | {"chat_template": "A"}, "chat_template.jinja": CHAT}
    ),
    "template-json": Tiny("llama", texts={"chat_template.json": {"chat_template": CHAT}}),
    "tied-with-a-head": Tiny("llama", config={"tie_word_embeddings": True}),
    "dtype": Tiny("llama", version=5, dtype="BF16", config={"dtype": "bfloat16"}),
    "torch-dtype-null": Tiny("llama", config={"torch_dtype": None}),
    "rope-dynamic": Tiny("llama", config={"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "rope-yarn": Tiny("llama", config={"rope_scaling": {**_YARN, "attention_factor": 1.2, "mscale": 1.0}}),
    "rope-llama3": Tiny("llama", config={"rope_scaling": {**ROPE_LLAMA3, "original_max_position_embeddings": 64}}),
    "rope-theta-absent": Tiny(config={"rope_theta": None}),
    "sliding-window": Tiny("mistral", config={"sliding_window": 128}),
    "three-experts": Tiny(n_expert=3, n_layer=1, n_ff=52, n_head_kv=1, dtype="BF16"),
    "six-experts-top-3": Tiny(n_expert=6, n_used=3, n_head_kv=4, head_dim=16, dtype="F64"),
    "sixteen-experts": Tiny(n_expert=16, n_used=4, n_layer=1, version=5, shards=4),
    "two-experts-top-1": Tiny(n_expert=2, n_used=1, dtypes={"gate": "F16", "w2": "BF16", "norm": "F64"}),
    "mixtral-yarn": Tiny(version=5, config={"rope_parameters": {**_YARN, "rope_theta": 1e6}}),
    "mixtral-llama3": Tiny(
        head_dim=128,
        config={"rope_theta": 5e5, "rope_scaling": {**ROPE_LLAMA3, "original_max_position_embeddings": 64}},
    ),
    "rope-original-length-outside": Tiny(
        "llama",
        config={"original_max_position_embeddings": 64, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ),
    "codellama-rows": Tiny("llama", n_layer=1, n_embd=16, n_head=2, n_vocab=32016, tied=True, dtype="F16"),
    "smollm-rows": Tiny("llama", n_layer=1, n_embd=16, n_head=2, n_vocab=49152, tied=True, dtype="F16"),
    "Nous-Hermes-2-Mixtral-8x7B-DPO": Tiny(texts={"README.md": _CARD}),
    "Tiny-Llama-3B-v1.5-chat": Tiny(
        "llama",
        config={"_name_or_path": "org/other-13B"},
        texts={"README.md": "---\nlicense: [mit, apache-2.0]\nbase_model: a/B-13B-v1.2\nlanguage: fr\ntags: t\n---\n"},
    ),
    "key-value-heads-absent": Tiny("llama", n_head_kv=4, config={"num_key_value_heads": None}),
    "added-empty-and-twice": Tiny(
        "llama",
        n_vocab=_ROWS + 4,
        texts={
            "tokenizer.json": bpe_tokenizer(
                added_tokens=[
                    added_token(_ROWS - 1 + i, token, special=i < 2)
                    for i, token in enumerate(("<|end|>", "<a>", "", "<a>"))
                ]
            ),
            "tokenizer_config.json": _FAST | {"added_tokens_decoder": {f"{_ROWS + 1}": {"content": ""}}},
        },
    ),
    "template-with-carriage-returns": Tiny("llama", texts={"chat_template.jinja": "{{ a }}\r\nb\rc\n"}),
    "rope-of-each-kind-of-layer": Tiny(
        "llama", version=5, config={"rope_parameters": {"full_attention": {"rope_theta": 5e5, "rope_type": "default"}}}
    ),
    "num-experts": Tiny(n_expert=5, config={"num_local_experts": None, "num_experts": 5}),
}
