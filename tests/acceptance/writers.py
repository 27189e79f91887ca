"""Every command that writes a file, with small inputs: what rows 16 and 18 to 21 are asked of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from localmoe.cli import main
from localmoe.sessions.record import Record
from localmoe.sessions.store import Store
from tests.checkpoints import Tiny, write_checkpoint
from tests.tiny import write_tiny

SMALL = {"n_layer": 1, "n_embd": 64, "n_ff": 64}
OLD = b"older output"
Command = Callable[[Path | str], tuple[str, ...]]


class Writers:
    """Inputs in a folder, and the commands that read them.

    `commands`: name -> the arguments for an output, whose name must end in `suffixes[name]`; `inputs`: name -> files
    that the command reads and must not replace.
    """

    def __init__(self, folder: Path, *, large: bool = False) -> None:
        """`large`: what is converted takes long enough to be stopped in the midst of it."""
        self.folder = folder
        wide = {"n_layer": 2, "n_embd": 512, "n_ff": 512, "n_head": 8} if large else SMALL
        self.quantized = write_tiny(folder / "quantized.gguf", **wide)
        self.model = write_tiny(folder / "model.gguf", **SMALL)
        self.dense = write_tiny(folder / "dense.gguf", n_expert=0, **SMALL)
        self.checkpoint = write_checkpoint(folder / "checkpoint", Tiny(n_layer=4 if large else 1))
        self.text = folder / "text.txt"
        self.text.write_text("the red sun is in the day and he is one of the moe expert hello to it " * 30)
        self.recipe = folder / "recipe.yml"
        experts = (f"  - source_model: {self.dense}\n    positive_prompts: [{word}]\n" for word in ("sun", "hello"))
        self.recipe.write_text(f"base_model: {self.dense}\ngate_mode: hidden\nexperts:\n{''.join(experts)}")
        self.trace = folder / "trace.npz"
        self.data = folder / "data"
        with Store(self.data / "sessions.db") as store:
            record = Record(store, str(self.model), "", {})
            record.ask("Why?")
        assert main(["experts", "record", "-m", str(self.model), "-f", str(self.text), "-o", str(self.trace)]) == 0
        measured = ("-m", str(self.model), "-f", str(self.text), "-c", "32", "--chunks", "3")
        checkpoint, model, trace = map(str, (self.checkpoint, self.model, self.trace))
        self.commands: Mapping[str, Command] = {
            "quantize": lambda out: ("quantize", str(self.quantized), str(out), "Q8_0"),
            "convert": lambda out: ("convert", checkpoint, "-o", str(out), "--type", "F16"),
            "franken": lambda out: ("franken", str(self.recipe), "-o", str(out), "--type", "F16", "--report", "none"),
            "imatrix": lambda out: ("imatrix", *measured, "-o", str(out)),
            "perplexity": lambda out: ("perplexity", *measured, "--kl-divergence-base", str(out)),
            "record": lambda out: ("experts", "record", "-m", model, "-f", str(self.text), "-o", str(out)),
            "export": lambda out: ("experts", "export", trace, "-o", str(out)),
            "report": lambda out: ("experts", "report", trace, "--html", str(out)),
            "sessions": lambda out: ("sessions", "export", "-o", str(out), "--replace"),
        }
        self.suffixes = {"record": ".npz", "export": ".csv", "sessions": ".md"}
        self.inputs: Mapping[str, tuple[Path, ...]] = {
            "quantize": (self.quantized,),
            "convert": tuple(sorted(path for path in self.checkpoint.iterdir())),
            "franken": (self.recipe, self.dense),
            "imatrix": (self.model, self.text),
            "perplexity": (self.model, self.text),
            "record": (self.model, self.text),
            "export": (self.trace,),
            "report": (self.trace,),
            "sessions": (self.data / "sessions.db",),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Where the chats are."""
        return {"LOCALMOE_DATA": str(self.data)}

    def target(self, folder: Path, name: str) -> Path:
        """A name for a command's output."""
        return folder / f"out{self.suffixes.get(name, '.gguf')}"


NAMES = ("quantize", "convert", "franken", "imatrix", "perplexity", "record", "export", "report", "sessions")
