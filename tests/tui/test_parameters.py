"""The parameters of a chat: llama.cpp's defaults, checked as they are typed, kept with the chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmoe.engine.sampling import SamplingParams
from localmoe.errors import UsageError
from localmoe.sessions.store import Store
from localmoe.tui.options import AppOptions
from localmoe.tui.parameters import BY_NAME, PARAMETERS, changed, checked, parse, sampling, shown_value
from localmoe.tui.screens.parameters import ParametersScreen

from .driving import ask, chat, running, screen_text, until
from .fake_model import FakeModel


def test_defaults_are_the_samplers():
    """An untouched chat asks for what SamplingParams has, and for replies of any length."""
    asked = sampling({})
    assert asked.pop("max_tokens") == -1
    assert SamplingParams(**asked) == SamplingParams()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0), ("temperature", " 1.5 ", 1.5), ("top_k", "7", 7), ("seed", "", None),
        ("seed", "random", None), ("seed", "42", 42), ("max_tokens", "-1", -1), ("n_expert_used", "4", 4),
        ("n_ctx", "", None), ("overflow", "forget", "forget"), ("top_p", "", 0.95),
    ],
)  # fmt: skip
def test_what_is_typed(name: str, text: str, value: object):
    assert parse(BY_NAME[name], text, 4) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "hot"), ("temperature", "nan"), ("temperature", "inf"), ("top_k", "1.5"), ("top_p", "1.1"),
        ("top_p", "-0.1"), ("repeat_penalty", "0"), ("seed", "-5"), ("max_tokens", "-2"), ("n_expert_used", "5"),
        ("n_expert_used", "0"), ("n_ctx", "-1"), ("n_ctx", "99999999999"), ("overflow", "cut"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, text: str):
    """By the parameter's name, before it reaches a request."""
    with pytest.raises(UsageError):
        parse(BY_NAME[name], text, 4)


def test_every_value_survives_its_field():
    values = {"temperature": 0.7, "top_k": 3, "seed": 9, "overflow": "forget", "n_ctx": 512}
    for name, value in values.items():
        assert parse(BY_NAME[name], shown_value(BY_NAME[name], value)) == value
    assert all(p.meaning.count("\n") == 0 and len(p.meaning) < 90 for p in PARAMETERS)
    assert changed({"temperature": 0.8, "top_k": 3, "seed": None}) == {"top_k": 3}
    assert checked({"top_k": 3, "x": 1, "temperature": "1"}) == ({"top_k": 3}, ["x", "temperature"])


async def test_the_editor_explains_checks_and_keeps(tmp_path: Path):
    """A wrong value is said while it is typed and cannot be taken; a right one reaches the model and the file."""
    model = FakeModel(answer="ok")
    path = tmp_path / "sessions.db"
    async with running(model, options=AppOptions(sessions=path)) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        await pilot.pause()
        assert "0 always takes the likeliest" in screen_text(app)
        await pilot.press(*"hot")
        await pilot.pause()
        assert "not understood" in screen_text(app)
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(app.screen, ParametersScreen)
        await pilot.press(*["backspace"] * 3, *"0.3", "down", *"9")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.screen is chat(app))
        await ask(app, pilot)
        assert (model.asked[0]["temperature"], model.asked[0]["top_k"], model.asked[0]["min_p"]) == (0.3, 9, 0.05)
    with Store(path) as store:
        assert store.load(1).parameters == {"temperature": 0.3, "top_k": 9}


async def test_the_system_prompt_is_edited_there():
    model = FakeModel(answer="ok")
    async with running(model, options=AppOptions(system="Be brief.")) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        app.screen.query_one("#p-system").load_text("Be long.")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.screen is chat(app))
        await ask(app, pilot)
        assert model.asked[0]["prompt"][0] == {"role": "system", "content": "Be long."}


async def test_escape_changes_nothing():
    model = FakeModel(answer="ok")
    async with running(model) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        await pilot.press("9", "escape")
        await until(pilot, lambda: app.screen is chat(app))
        await ask(app, pilot)
        assert model.asked[0]["temperature"] == 0.8


async def test_experts_and_context():
    """Experts used hold from the next reply on; another context opens the model again, with the chat."""
    opened = []

    def loader(progress):
        opened.append(FakeModel(answer="ok"))
        return opened[-1]

    async with running(loader=loader) as (app, pilot):
        await until(pilot, lambda: app.chat is not None)
        await ask(app, pilot, "one")
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        app.screen.query_one("#p-n_expert_used").value = "3"
        app.screen.query_one("#p-n_ctx").value = "512"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: len(opened) == 2 and app.chat is not None and opened[1].asked)
        await until(pilot, lambda: not chat(app).busy)
        assert opened[0].closed
        assert "top-3 of 4 experts" in screen_text(app)
        await ask(app, pilot, "two")
        assert [m["content"] for m in opened[1].asked[-1]["prompt"]] == ["one", "ok", "two"]
        assert opened[1].asked[-1]["n_expert_used"] == 3


@pytest.mark.parametrize(("trained", "said"), [(256, "256, its most"), (8192, "4096 of 8192")])
async def test_an_empty_field_says_what_it_means_with_this_model(trained: int, said: str):
    model = FakeModel(n_ctx_train=trained, n_expert=8, n_used=3)
    async with running(model) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        await pilot.pause()
        rows = [row.replace("│", " ").split() for row in screen_text(app).splitlines()]
        fields = {" ".join(row[-len(said.split()) - 1 :]) for row in rows}
        assert f"context {said}" in fields
        assert any(" ".join(row).endswith("experts used 3, as its file says") for row in rows)
        app.screen.query_one("#p-n_ctx").focus()
        await pilot.pause()
        assert f"Default: {said}." in " ".join(screen_text(app).replace("│", " ").split())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (160, 50)])
async def test_the_editor_fits(size: tuple[int, int]):
    async with running(FakeModel(answer="ok"), size=size) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        await pilot.pause(0.1)
        for part in ("system prompt", "temperature", "Default: 0.8", "Take"):
            assert part in screen_text(app), part


async def test_down_goes_to_the_next_field_also_where_not_all_have_room():
    """It does not scroll the fields away under the keyboard."""
    async with running(FakeModel(), size=(80, 24)) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(app.screen, ParametersScreen))
        await pilot.pause()
        await pilot.press("down", "down")
        assert app.screen.focused.id == "p-top_p"
        await pilot.press("up")
        assert app.screen.focused.id == "p-top_k"


async def test_a_new_chat_begins_with_what_the_app_was_started_with():
    model = FakeModel(answer="one two three four")
    options = AppOptions(parameters={"max_tokens": 2, "overflow": "forget"})
    async with running(model, options=options) as (app, pilot):
        await ask(app, pilot)
        assert model.asked[-1]["max_tokens"] == 2
        assert chat(app).talk.overflow == "forget"
