"""The walls between packages, and what a wheel holds."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.slowness import slowness
from tests.tiny import write_tiny

ROOT = Path(__file__).parents[1]

# who may import whom; a package may always import itself, and everyone the base
BASE = {
    "errors",
    "jit",
    "jit_cache",
    "ggml",
    "native",
    "target",
    "gguf_file",
    "gguf_cursor",
    "output_file",
    "late_signals",
    "progress",
    "scheduling",
}
MAY_IMPORT = {
    "base": {"base"},
    "quants": {"kernels"},  # the SIMD vocabulary alone: see test_quants_use_only_the_simd_vocabulary
    "kernels": {"quants"},
    "text": set(),
    "experts": set(),
    "sessions": {"text"},
    "model": {"kernels", "quants", "text", "experts"},
    "engine": {"model", "kernels", "quants", "text", "experts"},
    "converters": {"quants", "engine", "model", "text", "experts"},
    "tui": {"engine", "experts", "sessions", "text"},
    "cli": {"engine", "model", "experts", "sessions", "text", "quants", "converters", "tui", "kernels"},
}


def package_of(module: str) -> str:
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "root"
    return "base" if name in BASE else "cli" if name == "__main__" else name


def modules() -> dict[str, Path]:
    """Every module of the project by its installed name."""
    found = {}
    for folder, name in ((ROOT / "localmoe", "localmoe"), (ROOT / "converters", "localmoe.converters"),
                         (ROOT / "tui", "localmoe.tui")):  # fmt: skip
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((name, *(p for p in parts if p != "__init__")))] = path
    return found


def imports_of(module: str, path: Path, *, types: bool = False) -> set[str]:
    """The project's modules that one imports, relative imports resolved; `types`: those for type checkers too."""
    tree = ast.parse(path.read_text())
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not types
        for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")
            base = ".".join(up[: len(up) - node.level + 1]) if node.level else ""
            target = ".".join(p for p in (base, node.module) if p)
            found.add(target)
            found.update(f"{target}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith("localmoe.")}


def test_packages_import_only_what_the_design_lets_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in sorted(imports_of(module, path))
        if package_of(module) != "root"
        and package_of(other) not in {package_of(module), "base", *MAY_IMPORT[package_of(module)]}
        and other in modules()
    ]
    assert wrong == []


def test_no_module_imports_itself_in_the_end() -> None:
    """Imports within functions and for types count: a cycle there is a wall in the wrong place too."""
    found = modules()
    graph = {m: {o for o in imports_of(m, path, types=True) if o in found and o != m} for m, path in found.items()}
    while ready := [m for m, others in graph.items() if not others & graph.keys()]:
        for module in ready:
            del graph[module]
    assert sorted(graph) == []


def test_quants_use_only_the_simd_vocabulary() -> None:
    used = {
        other
        for module, path in modules().items()
        if package_of(module) == "quants"
        for other in imports_of(module, path)
        if package_of(other) == "kernels" and other in modules()
    }
    assert all(name.split(".")[-1].startswith(("simd", "kernels")) for name in used), used


def test_torch_is_never_imported_at_the_top_of_a_module() -> None:
    for path in modules().values():
        tops = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not any("torch" in ast.unparse(node) for node in tops), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy without the working tree's leftovers."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("localmoe", "converters", "tui"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, timeout=280)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_one_package_and_all_of_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"localmoe"}
    missing = [
        m for m in modules() if not {m.replace(".", "/") + ".py", m.replace(".", "/") + "/__init__.py"} & set(names)
    ]
    assert missing == []
    assert "localmoe/tui/app.tcss" in names
    assert {"localmoe/py.typed", "localmoe/data/tiny-moe.gguf", "localmoe/data/tiny-moe-licences.txt"} <= set(names)


def test_the_wheel_alone_shows_help_quickly_and_converts(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment through a path file; localmoe itself from the wheel only."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    ours = Path(pytest.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{ours}\n")
    python = home / "bin" / "python"
    env = {**os.environ, "PYTHONNOUSERSITE": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "localmoe", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=280)

    where = [str(python), "-c", "import localmoe; print(localmoe.__file__)"]
    located = subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert str(site) in located.stdout
    run("--help")
    spent = []
    for _ in range(5):
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.3 * slowness()
    source = write_tiny(tmp_path / "in.gguf")
    done = run("convert", source, "-o", tmp_path / "out.gguf", "--type", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").stat().st_size < source.stat().st_size
