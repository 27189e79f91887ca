"""Examples at the end of a command's help: what it is for, in lines that can be copied."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "convert": (
        "localmoe convert Mixtral-8x7B-Instruct-v0.1 -o mixtral.gguf --type Q4_K_M",
        "localmoe convert model-f16.gguf -o model-q6.gguf --type Q6_K --dry-run",
    ),
    "quantize": (
        "localmoe quantize model-f16.gguf model-q4.gguf Q4_K_M",
        "localmoe quantize model-f16.gguf model-iq2.gguf IQ2_M --imatrix imatrix.gguf",
        "localmoe quantize model-00001-of-00003.gguf model.gguf COPY",
    ),
    "inspect": ("localmoe inspect model.gguf", "localmoe inspect model.gguf --json | jq .memory"),
    "run": (
        "localmoe run -m model.gguf -p 'Once upon a time' -n 64",
        "localmoe run -m model.gguf -f prompt.txt -n 64 --temp 0 --experts-used 1 --expert-summary",
        "localmoe run -m model.gguf -p 'Once upon a time' -n 16 --seed 1 --json",
    ),
    "chat": (
        "localmoe chat -m model.gguf",
        "localmoe chat --continue",
        "localmoe chat -m model.gguf -sys 'Answer in one line.' -c 8192",
    ),
    "tui": ("localmoe tui --tiny", "localmoe tui -m model.gguf -c 4096", "localmoe tui --continue"),
    "tokenize": (
        "localmoe tokenize -m model.gguf 'Hello world'",
        "localmoe tokenize -m model.gguf --stdin --ids < text.txt",
    ),
    "bench": (
        "localmoe bench -m model.gguf -p 512 -n 128 -d 0,4096",
        "localmoe bench -m model.gguf -p 512 -n 128 -o json",
        "localmoe bench -m model.gguf --profile",
    ),
    "experts record": (
        "localmoe experts record -m model.gguf -f text.txt -o a.npz",
        "localmoe experts record -m model.gguf -p 'Once upon a time' -n 64 -o b.npz --experts-used 1",
    ),
    "experts report": ("localmoe experts report a.npz", "localmoe experts report a.npz --html a.html"),
    "experts diff": ("localmoe experts diff a.npz b.npz",),
    "experts export": ("localmoe experts export a.npz -o a.csv",),
    "experts check": (
        "localmoe experts check -m model.gguf",
        "localmoe experts check -m model.gguf -f text.txt --alone",
    ),
    "experts compare": (
        "localmoe experts compare -m model.gguf -f text.txt -b used=1",
        "localmoe experts compare -m model.gguf -f text.txt -a threshold=0.1 -b 'threshold=0.2 leave-out=3:1,5'",
    ),
    "experts ablate": ("localmoe experts ablate -m model.gguf -f text.txt --tokens 512",),
    "imatrix": ("localmoe imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf",),
    "perplexity": (
        "localmoe perplexity -m model.gguf -f text.txt",
        "localmoe perplexity -m model-f16.gguf -f text.txt --kl-divergence-base base.kld",
        "localmoe perplexity -m model-q4.gguf --kl-divergence-base base.kld --kl-divergence",
    ),
}


def epilog(command: str) -> str | None:
    """The examples of one command as the end of its help, None where its help has its own."""
    if command not in EXAMPLES:
        return None
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
