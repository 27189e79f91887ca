"""Several files that replace a set: killed before every step, the old set or the new one is found, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localmoe import output_file
from localmoe.errors import FileError
from localmoe.gguf_file import open_gguf
from localmoe.output_file import finish_interrupted, replacing_all
from tests.tiny import write_tiny

# argv: folder, number of old parts, of new ones, whether files are unnamed while they are written. For every call that
# changes the folder, a child that is killed just before it; then what is there, and what a reader finds.
KILLS = """
import json, os, shutil, signal, sys
from pathlib import Path
from localmoe.gguf_file import open_gguf
from localmoe.errors import BadInputError, FileError
from localmoe.output_file import replacing_all

folder, n_old, n_new, unnamed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "unnamed"
out = folder / "out"
sets = {name: sorted((folder / name).iterdir()) for name in ("old", "new")}
if not unnamed and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE

def counted(call, left):
    def wrapper(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper

def write(left):
    for name in ("link", "replace", "unlink", "fsync"):
        setattr(os, name, counted(getattr(os, name), left))
    with replacing_all([out / path.name for path in sets["new"]]) as open_next:
        for path in sets["new"]:
            open_next().write(path.read_bytes())

def held(part):
    with open_gguf(part) as file:
        return {name: bytes(file.raw(name)) for name in file.tensors}

tensors = {name: held(paths[0]) for name, paths in sets.items()}

def kind(part):
    found = held(part)
    return next((name for name in tensors if tensors[name] == found), "mixed")

def run(left):
    pid = os.fork()
    if pid == 0:
        try:
            write([left])
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

for steps in range(100):
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "old", out)
    status = run(steps)
    visible = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
    states = {name: sum(visible.get(p.name) == p.read_bytes() for p in paths) for name, paths in sets.items()}
    has_first = sets["new"][0].name in visible
    found = []
    for name in ("new", "old"):
        for asked in (sets[name][-1], sets[name][0]):
            try:
                found.append(kind(out / asked.name))
            except (BadInputError, FileError) as error:
                found.append(type(error).__name__)
    again = run(10**6)
    whole = [(out / path.name).read_bytes() == path.read_bytes() for path in sets["new"]]
    hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
    print(json.dumps([status, states, has_first, found, again, whole, hidden]), flush=True)
    if status == 0:
        break
"""


def make_sets(folder: Path, n_old: int, n_new: int) -> None:
    """The sets `old` and `new` of two models that differ in their weights alone."""
    for name, n, seed in (("old", n_old, 1), ("new", n_new, 2)):
        (folder / name).mkdir()
        write_tiny(folder / name / "m.gguf", n_layer=1, split_max_tensors=-(-13 // n), seed=seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
@pytest.mark.parametrize("unnamed", ["unnamed", "named"])
@pytest.mark.parametrize(("n_old", "n_new"), [(3, 3), (2, 3), (3, 2)])
def test_killed_before_every_step(tmp_path: Path, n_old: int, n_new: int, unnamed: str) -> None:
    """Old parts beside new ones are never a set: the first is missing until all are new."""
    make_sets(tmp_path, n_old, n_new)
    arguments = [str(tmp_path), str(n_old), str(n_new), unnamed]
    done = subprocess.run([sys.executable, "-c", KILLS, *arguments], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 8, done.stderr
    assert rows[-1][0] == 0
    for status, states, has_first, found, again, whole, hidden in rows:
        assert status in (0, 9)
        kinds = set(found)
        if n_old == n_new:
            assert states["old"] == n_old or states["new"] == n_new or not has_first
            assert kinds in ({"old"}, {"new"})
        else:  # other names: the old set stays
            assert states["old"] == n_old
            assert kinds in ({"old"}, {"new", "old"}, {"FileError", "old"}, {"FileError", "BadInputError", "old"})
        assert again == 0
        assert all(whole)
        assert hidden == []
    assert "new" in rows[-1][3]
    assert any("new" in row[3] and row[0] == 9 and not row[2] for row in rows), "no kill fell between two names"


def test_a_set_that_cannot_be_named_stays_for_the_next_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses the second name: an error, and all of the new set is there once it no longer does."""
    make_sets(tmp_path, 3, 3)
    old, new = (sorted((tmp_path / name).iterdir()) for name in ("old", "new"))
    real = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target) == old[1]:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(FileError, match=r"m-00002-of-00003\.gguf: cannot be written: Permission denied"):
            write_copies(new, old)
        with pytest.raises(FileError, match=r"m-00002-of-00003\.gguf: cannot be written"):
            open_gguf(old[2])
    open_gguf(old[2]).close()
    assert [path.read_bytes() for path in old] == [path.read_bytes() for path in new]
    assert sorted(old[0].parent.iterdir()) == old


def write_copies(sources: list[Path], targets: list[Path]) -> None:
    with replacing_all(targets) as open_next:
        for path in sources:
            open_next().write(path.read_bytes())


def test_what_is_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a reader nor another writer touches files of a writer that is alive."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    targets = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    with replacing_all(targets) as open_next:
        files = [open_next(), open_next()]
        for file in files:
            file.write(b"first")
        with replacing_all(targets) as open_other:
            for _ in targets:
                open_other().write(b"second")
        assert [target.read_bytes() for target in targets] == [b"second"] * 2
        files[0].decide()
        finish_interrupted(targets)
        assert [target.read_bytes() for target in targets] == [b"second"] * 2
        os.replace(output_file._hidden(targets[0], *token_of(tmp_path), "ready"), files[0]._hidden)
    assert [target.read_bytes() for target in targets] == [b"first"] * 2
    assert sorted(tmp_path.iterdir()) == targets


def token_of(folder: Path) -> tuple[str, int]:
    """The token of the set whose first part is ready, and that part's number."""
    ready = next(path for path in folder.iterdir() if path.suffix == ".ready")
    return ready.name.split(".")[-2].split("-")[0], 0
