"""`localmoe experts` from the command line, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localmoe.cli import main
from localmoe.cli.default_model import tiny_model_path
from localmoe.cli.experts import SUBCOMMANDS
from localmoe.cli.experts_compare import setting_of
from localmoe.errors import UsageError
from localmoe.experts.trace_file import load_recording
from tests.tiny import write_tiny

TEXT = "hello the sun and the red day is one to two "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture
def trace(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "t.npz"
    assert main(["experts", "record", "-m", str(model), "-p", TEXT, "-n", "5", "--temp", "0", "-o", str(path)]) == 0
    return path


def test_help_lists_every_subcommand(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experts"]) == 0
    listed = capfd.readouterr().out
    assert all(name in listed for name in SUBCOMMANDS)
    assert main(["experts", "reprot"]) == 2
    assert "expected report" in capfd.readouterr().err


def test_record_report_export(trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "report", str(trace)]) == 0
    assert "replies (4 tokens)" in capfd.readouterr().out
    assert main(["experts", "report", str(trace), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["n_expert"] == 8
    assert main(["experts", "report", str(trace), "--html", str(tmp_path / "p.html")]) == 0
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    capfd.readouterr()
    for kind, row in (("csv", "choices"), ("jsonl", "tokens"), ("npz", "tokens")):
        out = tmp_path / f"out.{kind}"
        assert main(["experts", "export", str(trace), "-o", str(out)]) == 0
        shown, said = capfd.readouterr()
        n = len(out.read_bytes().splitlines()) - (kind == "csv") if kind != "npz" else load_recording(out).n_token
        assert (shown, said) == ("", f"{n:,} {row}, {out.stat().st_size:,} bytes: {out}\n")
    assert (tmp_path / "out.csv").read_text().startswith("token,layer,slot,expert,weight\n0,0,0,")


def test_a_text_from_a_file_straight_to_csv(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "t.csv"
    assert main(["experts", "record", "-m", str(model), "-f", str(tmp_path / "text"), "-o", str(out)]) == 0
    assert len(out.read_text().splitlines()) > 10


def test_diff(trace: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "b.npz"
    flags = ["-p", TEXT, "--leave-out", "0:1", "-o", str(other)]
    assert main(["experts", "record", "-m", str(model), *flags]) == 0
    assert main(["experts", "diff", str(trace), str(other)]) == 0
    out = capfd.readouterr().out
    assert "0:1 left out" in out
    assert "moved" in out


def test_check_compare_ablate(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["-m", str(model), "-p", TEXT]
    assert main(["experts", "check", *given]) == 0
    said = capfd.readouterr().out
    assert "verdict:" in said
    assert "on the same text:\n" in said
    assert main(["experts", "check", "-m", str(tiny_model_path()), "-p", TEXT]) == 0
    alone = capfd.readouterr().out
    assert "on the same text" not in alone
    shuffled = next(line for line in alone.splitlines() if line.startswith("every router shuffled")).split()[3]
    assert next(line for line in said.splitlines() if line.startswith("KL of every router")).split()[-1] == shuffled
    assert main(["experts", "check", "-m", str(model), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found["layers"]) == 2
    assert len(found["beside"]["tiny-moe, trained"]["layers"]) == 6
    assert main(["experts", "check", *given, "--alone"]) == 0
    assert "on the same text" not in capfd.readouterr().out
    assert main(["experts", "check", *given, "--beside", str(model)]) == 0
    said = capfd.readouterr().out.splitlines()
    own, other = next(line for line in said if line.startswith("KL of one expert less")).split()[-2:]
    assert own == other
    assert main(["experts", "compare", *given, "-b", "used=1"]) == 0
    assert "KL(A || B)" in capfd.readouterr().out
    assert main(["experts", "ablate", *given]) == 0
    assert "shuffled" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "none.npz"], 4, "none.npz"),
        (["record", "-m", "none.gguf", "-p", "a", "-o", "t.txt"], 2, "unknown format"),
        (["record", "-m", "none.gguf", "-o", "t.npz"], 2, "one text is needed"),
        (["check", "-m", "none.gguf"], 4, "none.gguf"),
        (["check", "-m", "none.gguf", "--beside", "nor.gguf"], 4, "nor.gguf"),
        (["check", "-m", "none.gguf", "--beside", "nor.gguf", "--alone"], 2, "--alone and --beside"),
        (["compare", "-m", "none.gguf", "-p", "a", "-b", "use=1"], 2, "not a setting"),
        (["ablate", "-m", "none.gguf", "-f", "none.txt"], 4, "none.txt"),
    ],
)
def test_refusals(arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["experts", *arguments]) == code
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_impossible_experts_are_refused_before_the_text_runs(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", "compare", "-m", str(model), "-p", TEXT, "-b", "leave-out=0:9"]) == 2
    assert "no such expert" in capfd.readouterr().err


def test_settings_are_words() -> None:
    assert setting_of("used=1 leave-out=3:1,5 leave-out=4:0 force=*:2 threshold=0.5") == {
        "n_expert_used": 1,
        "leave_out": ["3:1,5", "4:0"],
        "force_experts": ["*:2"],
        "expert_threshold": 0.5,
    }
    for bad in ("used=x", "leave-out=", "what", "'"):
        with pytest.raises(UsageError):
            setting_of(bad)


def test_one_token_can_be_recorded_but_predicts_nothing(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An empty text is the beginning-of-text token alone."""
    out = tmp_path / "one.npz"
    assert main(["experts", "record", "-m", str(model), "-p", "", "-o", str(out)]) == 0
    assert main(["experts", "report", str(out)]) == 0
    assert "the last token went through 0.3 MiB of the experts' 1.1 MiB" in capfd.readouterr().out
    assert main(["experts", "ablate", "-m", str(model), "-p", ""]) == 3
    assert "the text is too short, got 1 token, expected at least 2 tokens" in capfd.readouterr().err


@pytest.mark.parametrize("command", [["check"], ["ablate", "-p", TEXT], ["compare", "-p", TEXT, "-b", "used=1"]])
def test_a_model_without_experts_is_refused(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dense = write_tiny(tmp_path / "d.gguf", n_expert=0)
    assert main(["experts", command[0], "-m", str(dense), *command[1:]]) == 2
    assert "this model has no experts" in capfd.readouterr().err
