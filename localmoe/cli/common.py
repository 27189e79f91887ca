"""What commands share: model and sampling options, loading, and how experts and text are shown."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from localmoe.cli.app import one_line
from localmoe.cli.cut_off import tell_when_cut_off
from localmoe.cli.text_input import read_utf8
from localmoe.engine.sampling import INTEGERS, SamplingParams
from localmoe.errors import UsageError
from localmoe.experts.labels import expert_labels

if TYPE_CHECKING:
    from localmoe.engine.api import Model, Step

# readable=False: typer does not look at the file. That it may not be read is no wrong usage, and is said by open_gguf.
ModelPath = Annotated[
    Path, typer.Option("-m", "--model", help="The model: a GGUF file.", show_default=False, readable=False)
]
OptionalModelPath = Annotated[
    Path | None, typer.Option("-m", "--model", help="A GGUF file. [default: the demo model]", readable=False)
]
GoOn = Annotated[
    bool, typer.Option("--continue", help="Go on with the newest chat, with its model unless -m names one.")
]
KeptChat = Annotated[
    int | None, typer.Option("--session", metavar="CHAT", help="Go on with this chat (`localmoe sessions list`).")
]
Predict = Annotated[
    int, typer.Option("-n", "--predict", "--n-predict", min=-1, help="Tokens of an answer; -1: until it ends.")
]
Overflow = Annotated[
    str, typer.Option(metavar="stop|forget", help="A full context ends the answer, or the oldest turns are not read.")
]
Threads = Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Threads. [default: physical cores]")]
Context = Annotated[
    int | None,
    typer.Option("-c", "--ctx-size", min=0, help="Context in tokens; 0: the model's. [default: that, up to 4096]"),
]
ExpertsUsed = Annotated[int | None, typer.Option(help="Experts used per token. [default: the model's]")]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option("--leave-out", metavar="LAYER:EXPERTS", help="Experts never chosen: 3:1,5 or 0-7:2 or *:2."),
]
ForceExperts = Annotated[
    list[str] | None, typer.Option("--force-experts", metavar="LAYER:EXPERTS", help="Experts chosen for every token.")
]
ExpertThreshold = Annotated[
    float | None, typer.Option("--expert-threshold", help="Skip an expert whose gate weight is below this; 0: never.")
]
CacheTypeK = Annotated[str, typer.Option("--cache-type-k", "-ctk", help="Type of cached keys: f32, f16, q8_0.")]
CacheTypeV = Annotated[str, typer.Option("--cache-type-v", "-ctv", help="Type of cached values: f32, f16, q8_0.")]

# SamplingParams' fields -> llama.cpp's flags and a line of help.
SAMPLING_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "temperature": (("--temp", "--temperature"), "Temperature; 0 takes the likeliest token."),
    "seed": (("--seed", "-s"), "Seed; -1 draws one. [default: drawn]"),
    "top_k": (("--top-k",), "Keep the k likeliest tokens; 0: all."),
    "top_p": (("--top-p",), "Keep the likeliest up to this sum of probabilities; 1: all."),
    "min_p": (("--min-p",), "Drop tokens below this part of the likeliest one's probability."),
    "typical_p": (("--typical", "--typical-p"), "Locally typical sampling; 1: off."),
    "top_n_sigma": (("--top-nsigma", "--top-n-sigma"), "Keep logits within n standard deviations of the top; -1: off."),
    "xtc_probability": (("--xtc-probability",), "Chance to exclude the top choices; 0: off."),
    "xtc_threshold": (("--xtc-threshold",), "Probability that makes a top choice for XTC."),
    "dynatemp_range": (("--dynatemp-range",), "Temperature varies by this much with the entropy; 0: off."),
    "dynatemp_exponent": (("--dynatemp-exp",), "Exponent of the dynamic temperature."),
    "repeat_penalty": (("--repeat-penalty",), "Penalty for repeated tokens; 1: off."),
    "repeat_last_n": (("--repeat-last-n",), "Tokens the penalties look back on; 0: off."),
    "frequency_penalty": (("--frequency-penalty",), "Penalty for each time a token occurred; 0: off."),
    "presence_penalty": (("--presence-penalty",), "Penalty for a token that occurred; 0: off."),
    "dry_multiplier": (("--dry-multiplier",), "Penalty for prolonging a repetition (DRY); 0: off."),
    "dry_base": (("--dry-base",), "Base of DRY's penalty."),
    "dry_allowed_length": (("--dry-allowed-length",), "Repetitions up to this length are free in DRY."),
    "dry_penalty_last_n": (("--dry-penalty-last-n",), "Tokens DRY looks back on; 0: off."),
    "dry_sequence_breakers": (("--dry-sequence-breaker",), "Text that ends a repetition; 'none': nothing does."),
    "mirostat": (("--mirostat",), "Mirostat 1 or 2; 0: off."),
    "mirostat_tau": (("--mirostat-ent",), "Mirostat's target surprise in bits."),
    "mirostat_eta": (("--mirostat-lr",), "Mirostat's learning rate."),
    "logit_bias": (("--logit-bias", "-l"), "TOKEN+BIAS or TOKEN-BIAS, added to a token's logit."),
    "min_keep": (("--min-keep",), "Tokens every step must leave."),
}


def _sampling_parameters() -> list[inspect.Parameter]:
    """The options of SAMPLING_FLAGS as a function's keyword parameters."""
    texts = ("dry_sequence_breakers", "logit_bias")
    parameters = []
    known = {item.name: item for item in fields(SamplingParams)}
    for name, (flags, text) in SAMPLING_FLAGS.items():
        item = known[name]
        kind: Any = int if name in INTEGERS else float
        default = item.default
        if name in texts or name == "seed":
            kind, default = (list[str] if name in texts else int) | None, None
        metavar = "TEXT" if name in texts else None
        option = typer.Option(*flags, help=text, metavar=metavar, show_default=default is not None)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        )
    return parameters


def with_sampling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the sampling flags; it takes them as one `sampling: SamplingParams`."""
    own = inspect.signature(command, eval_str=True)
    options = _sampling_parameters()
    names = [option.name for option in options]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in names}
        command(**arguments, sampling=sampling_from_flags(chosen))

    kept = [parameter for parameter in own.parameters.values() if parameter.name != "sampling"]
    wrapper.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return wrapper


def sampling_from_flags(values: dict[str, Any]) -> SamplingParams:
    """SamplingParams of parsed flags; UsageError names the field that is wrong."""
    values = {name: value for name, value in values.items() if value is not None}
    if "logit_bias" in values:
        values["logit_bias"] = dict(map(parse_bias, values["logit_bias"]))
    if "dry_sequence_breakers" in values:
        values["dry_sequence_breakers"] = tuple(
            text.replace("\\n", "\n") for text in values["dry_sequence_breakers"] if text != "none"
        )
    return SamplingParams(**values)


def parse_bias(text: str) -> tuple[int, float]:
    """(token, bias) of `15043+1` or `15043-inf`."""
    found = re.fullmatch(r"([0-9]{1,12})([+-])(inf|\d*\.?\d+(?:e-?\d+)?)", text.strip())
    if not found:
        raise UsageError("not a bias", item="logit_bias", got=repr(text), expected="TOKEN+BIAS or TOKEN-BIAS")
    return int(found[1]), float(found[2] + found[3])


def sampling_arguments(sampling: SamplingParams) -> dict[str, Any]:
    """The keyword arguments of `Model.generate` and `Model.chat`."""
    return asdict(sampling)


def load_arguments(
    context: int | None,
    threads: int | None,
    experts_used: int | None,
    cache_type_k: str,
    cache_type_v: str,
    **routing: Any,
) -> dict[str, Any]:
    """Keyword arguments of `localmoe.load` for a command's options; `routing` where it is given."""
    return {
        "n_ctx": context,
        "n_threads": threads,
        "n_expert_used": experts_used,
        "cache_type_k": cache_type_k,
        "cache_type_v": cache_type_v,
        **{name: value for name, value in routing.items() if value not in (None, [])},
    }


def open_model(path: Path, load: dict[str, Any]) -> Model:
    """Open a model; what it waits for, and a context beyond what it was trained for, is said on stderr."""
    import localmoe

    tell_when_cut_off(path)
    model = localmoe.load(str(path), progress=say, **load)
    trained = model.config.n_ctx_train
    if model.n_ctx > trained:
        say(f"note: a context of {model.n_ctx} is more than the {trained} tokens the model was trained on")
    return model


def read_text(path: str) -> str:
    """A UTF-8 file, or standard input for `-`, without its last newline (as llama.cpp reads prompts)."""
    return read_utf8(path).removesuffix("\n")


def text_files(path: str | None) -> list[Path]:
    """The file that `read_text` reads, if it reads one: no output may take its place."""
    return [] if path in (None, "-") else [Path(path)]


def show_text(text: str) -> None:
    """Write generated text to stdout now; a terminal gets no control characters of a model's making."""
    if sys.stdout.isatty():
        from localmoe.text.visible import visible

        text = visible(text, keep_newlines=True)
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Lines to stderr; nothing of a file's or a model's making controls the terminal."""
    from localmoe.text.visible import visible

    print("\n".join(map(visible, text.split("\n"))), file=sys.stderr)


def write_text(path: Path, text: str, inputs: Sequence[Path] = ()) -> None:
    """A text file, replaced whole; UsageError if it is one of `inputs`, FileError if the system refuses."""
    from localmoe.output_file import check_target, replacing

    with replacing(check_target(path, inputs, file=str(path)), say) as out:
        out.write(text.encode("utf-8", "backslashreplace"))


def count_experts(steps: Iterable[Step], n_layer: int, n_expert: int) -> NDArray[np.int64]:
    """How often each expert was used by the steps that have a token: (L, E)."""
    counts = np.zeros((n_layer, n_expert), np.int64)
    for step in steps:
        if step.token >= 0:
            layer, slot = np.nonzero(step.experts >= 0)
            np.add.at(counts, (layer, step.experts[layer, slot]), 1)
    return counts


def skipped_share(steps: Iterable[Step]) -> float:
    """The share of the choices asked for that no expert ran for: those below a threshold, or left without an expert."""
    slots = [step.experts for step in steps if step.token >= 0 and step.experts.size]
    return float(np.mean([(experts < 0).mean() for experts in slots])) if slots else 0.0


def experts_table(counts: NDArray[np.int64]) -> list[str]:
    """Lines that say, layer by layer, which share of the choices fell on each expert, greatest first (8 at most)."""
    lines = []
    for layer, row in enumerate(counts):
        total = int(row.sum())
        if total:
            order = np.argsort(-row, kind="stable")[:8]
            shares = "  ".join(f"{expert:3d} {100 * row[expert] / total:3.0f}%" for expert in order if row[expert])
            lines.append(f"layer {layer:3d}: {shares}")
    return lines


def expert_legend(model: Model) -> list[str]:
    """A line for each expert with what the model's file calls it (no claim about its skill)."""
    labels = expert_labels(model.gguf.metadata, model.config.n_expert)
    return [f"expert {expert:3d}: labelled: {one_line(label)}" for expert, label in enumerate(labels)]
