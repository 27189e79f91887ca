"""The documentation against what is there: links, commands and their options, make targets, paths, speeds."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.cli import main
from localmoe.cli.app import COMMANDS
from localmoe.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w.*/-]+/[\w.*-]+\.(?:py|yml|toml|md|svg)")
_SPEED = re.compile(r"(\d[\d.,]*) (?:GB/s|GMAC/s|tokens/s|tok/s|ns|ms|MB/s)\b")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code of a page in some languages."""
    return [code for language, code in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced code."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in a page: lines of shell blocks, and code within the text."""
    code = "\n".join(blocks(page, "sh", "bash", "console")).replace("\\\n", " ").splitlines()
    for line in [*code, *_CODE.findall(prose(page))]:
        if re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:localmoe|make)(?: |$)", line):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            start = next(i for i, word in enumerate(words) if word.split("/")[-1] in ("localmoe", "make"))
            yield [words[start].split("/")[-1], *words[start + 1 :]]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page look like."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def folders_in_tree(tree: str) -> list[str]:
    """Paths of a tree written with two spaces a level, folders ending in a slash."""
    found: list[str] = []
    above: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        found.append("".join(above))
    return found


def test_the_tree_of_the_readme_is_the_repository() -> None:
    listed = folders_in_tree(next(code for code in blocks(README, "text") if code.startswith("localmoe/ ")))
    assert [path for path in listed if not (ROOT / path).is_dir()] == []
    packages = {
        f"{init.parent.relative_to(ROOT)}/"
        for top in ("localmoe", "converters", "tui")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert packages - set(listed) == set()


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_paths_exist(page: Path) -> None:
    """A path in code, from the repository's root or from `localmoe/`; `*` stands for anything."""
    for code in [*_CODE.findall(prose(page)), *blocks(page, "sh")]:
        for path in _PATH.findall(code):
            if not path.startswith((".venv", "../", "/")):
                assert any(ROOT.glob(path)) or any((ROOT / "localmoe").glob(path)), path


@pages
def test_commands_and_their_options_exist(page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for program, *words in shell_lines(page):
        if program != "localmoe" or not words or words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, words
        command = words[:2] if words[0] in ("experts", "sessions") else words[:1]
        assert main([*command, "--help"]) == 0
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capfd.readouterr().out))
        options = {word.split("=")[0] for word in words[len(command) :] if re.match(r"--?[a-z]", word)}
        assert options <= known, (words, options - known)


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_in_the_help_are_commands_that_exist(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown, _, examples = capfd.readouterr().out.partition("Examples:\n")
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown))
    assert [line.strip() for line in examples.strip().splitlines()] == list(EXAMPLES[command])
    for line in EXAMPLES[command]:
        program, *words = shlex.split(line.partition("|")[0])
        names = command.split()
        assert (program, words[: len(names)]) == ("localmoe", names)
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in shell_lines(page):
        if program == "make":
            wanted = [word for word in words if re.fullmatch(r"[a-z]+", word)]
            assert set(wanted) <= targets, words


@pages
def test_python_is_python(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)


@pages
def test_a_speed_has_a_row_in_the_results(page: Path) -> None:
    """Every figure with a unit of speed or time that a page states is one of RESULTS.md's."""
    figures = set(re.findall(r"\d[\d.,]*\d|\d", RESULTS.read_text(encoding="utf-8")))
    stated = {figure.rstrip(".,") for figure in _SPEED.findall(prose(page))}
    assert stated <= figures
