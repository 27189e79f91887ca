"""Colours that can be told apart: light themes, 16 colours, none; everything written is legible on its ground."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from textual.app import App, ComposeResult

from localmoe.errors import UsageError
from localmoe.tui.screens.dialogs import AskScreen, ChooseScreen, NoticeScreen
from localmoe.tui.screens.figures import FiguresScreen
from localmoe.tui.screens.help import HelpScreen
from localmoe.tui.screens.models import ModelsScreen
from localmoe.tui.screens.parameters import ParametersScreen
from localmoe.tui.screens.rules import RulesScreen
from localmoe.tui.screens.runs import RunsScreen
from localmoe.tui.screens.tokens import TokensScreen
from localmoe.tui.widgets import palette
from localmoe.tui.widgets.heatmap import Heatmap
from localmoe.tui.widgets.key_line import KeyLine
from localmoe.tui.widgets.prompt import Prompt
from localmoe.tui.widgets.token_text import expert_style

from .driving import ask, chat, lines, running, screen_text, until
from .fake_model import FakeModel

THEMES = ("textual-dark", "textual-light")
LEGIBLE = 4.5


class Alone(App[None]):
    """A heatmap with the screen to itself."""

    def compose(self) -> ComposeResult:
        yield Heatmap()


@pytest.fixture(autouse=True)
def truecolour(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALMOE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def luminance(colour: Color, palette: TerminalTheme | None = None, *, front: bool = True) -> float:
    """Relative luminance as WCAG 2 defines it; `palette` has the terminal's own colours."""
    parts = [part / 255 for part in colour.get_truecolor(palette, front)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(style: Style, palette: TerminalTheme | None = None) -> float:
    """Between a style's letters and their ground."""
    assert style.color is not None
    assert style.bgcolor is not None
    front, ground = luminance(style.color, palette), luminance(style.bgcolor, palette, front=False)
    light, dark = max(front, ground), min(front, ground)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_hand():
    """Black on white is 21, as the definition has it; equal colours are 1."""
    assert contrast(Style(color="#000000", bgcolor="#ffffff")) == pytest.approx(21.0)
    assert contrast(Style(color="#777777", bgcolor="#777777")) == 1.0


@pytest.mark.parametrize("dark", [True, False])
def test_marks_stand_out_on_every_level_and_words_on_every_expert(dark):
    for level in range(palette.N_LEVELS):
        style = palette.block(level, 3, "•", dark).style
        assert style is not None
        assert contrast(style) >= 4.1, level  # a mark is a dot; words are asked more of
    for expert in range(64):
        style = expert_style(expert, dark)
        if style.color is not None and style.bgcolor is not None:
            assert contrast(style) >= 4.5, expert


async def test_a_light_theme_has_a_scale_of_its_own_at_once():
    """The colours follow the theme while the picture stays: never is nearly the ground, even grey, the busiest dark."""
    async with Alone().run_test(size=(30, 6)) as pilot:
        heatmap = pilot.app.query_one(Heatmap)
        heatmap.show(np.array([[0.0, 1.0, 2.0, 0.5]]), None, 1.0)
        levels = (palette.NEVER, palette.EVEN, palette.HIGHEST, palette.LOWEST)
        for theme in (*THEMES, THEMES[0]):
            pilot.app.theme = theme
            await pilot.pause()
            cells = [s for s in heatmap.render_line(1) if s.style and s.style.bgcolor and not s.text.strip()][-5:]
            seen = [tuple(s.style.bgcolor.triplet) for s in cells]
            dark = theme == "textual-dark"
            assert [colour for colour in seen if colour in {palette.colour(n, dark) for n in levels}] == [
                palette.colour(level, dark) for level in levels
            ]


@pytest.mark.parametrize("theme", [*THEMES, "solarized-light", "catppuccin-latte", "nord"])
@pytest.mark.parametrize(
    ("key", "screen"),
    [
        ("", None), ("f7", TokensScreen), ("f8", RulesScreen), ("f10", FiguresScreen), ("f1", HelpScreen),
        ("f9", ParametersScreen), ("ctrl+o", ModelsScreen), ("f6", RunsScreen),
    ],
)  # fmt: skip
async def test_everything_written_is_legible(theme, key, screen):
    """As WCAG asks, also in themes whose own colours do not; what lies behind a dialog is dimmed on purpose."""
    async with running(FakeModel(n_layer=6, n_expert=8, labels=[f"prompt {e}" for e in range(8)])) as (app, pilot):
        app.theme = theme
        await ask(app, pilot)
        if key:
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, screen), "the screen")
        await pilot.pause(0.1)
        assert_legible(app)


@pytest.mark.parametrize("theme", [*THEMES, "solarized-light", "catppuccin-latte", "nord"])
async def test_every_dialog_is_legible(theme):
    """What is asked, what the keys do, and what was wrong."""

    def refuse(value: str) -> None:
        raise UsageError("not that", got=value)

    async with running(FakeModel()) as (app, pilot):
        app.theme = theme
        asked = AskScreen("A name", "value", refuse)
        for dialog in (asked, ChooseScreen("Which?", ["one", "two"]), NoticeScreen("Not saved", "Why")):
            app.push_screen(dialog)
            await until(pilot, lambda dialog=dialog: app.screen is dialog, "the dialog")
            if dialog is asked:
                await pilot.press("enter")
            await pilot.pause(0.1)
            assert_legible(app)
            await pilot.press("escape")


def assert_legible(app: App[None], palette: TerminalTheme | None = None) -> None:
    """Everything on the screen, or on the panel that is over it, but for keys that do nothing now."""
    panel = app.screen.children[0].region if app.screen.is_modal else app.screen.region
    dimmed = [place for line in app.screen.query(KeyLine) for key, place in line.places if not key.enabled]
    for y, row in enumerate(app.screen._compositor.render_strips()):
        x = 0
        for text, style, _ in row:
            x += cell_len(text)
            if not panel.contains(x - 1, y) or any(key.contains(x - 1, y) for key in dimmed):
                continue
            if style and style.color and style.bgcolor and any(c.isalnum() for c in text):
                shown = Style(color=style.color, bgcolor=style.bgcolor)
                shown = Style(color=style.bgcolor, bgcolor=style.color) if style.reverse else shown
                assert contrast(shown, palette) >= LEGIBLE - 0.02, (app.theme, y, text, str(style))


REPLY = """# One\n\n## Two\n\n### Three\n\n#### Four\n\nText **bold** `code` [link](http://x.y).\n
| a | b |\n|---|---|\n| 1 | 2 |\n\n> quote\n\n1. one\n\n- item\n
```python\n@dec\ndef __init__(x: int = 5):  # comment\n    return "a" + 1 if None else print(x)\n```\n"""


async def test_all_that_markdown_can_mark_is_legible_in_every_theme():
    async with running(FakeModel(answer=REPLY), size=(120, 60)) as (app, pilot):
        await ask(app, pilot)
        app.screen.query_one(Prompt).insert("x")  # a hint's first letter stands below the cursor, now and then
        for name in app.available_themes:
            if not name.startswith("ansi"):
                app.theme = name
                await pilot.pause(0.05)
                assert_legible(app)


VGA = [(0, 0, 0), (170, 0, 0), (0, 170, 0), (170, 85, 0), (0, 0, 170), (170, 0, 170), (0, 170, 170), (170, 170, 170)]
XTERM = [(0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229)]


@pytest.mark.parametrize("colours", ["VGA", "XTERM"])
@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
async def test_themes_of_the_terminals_own_colours_are_legible(theme, colours):
    """With the colours that two kinds of terminals give these names."""
    if colours == "VGA":
        bright = [tuple(min(255, part + 85) for part in colour) for colour in VGA]
        normal = VGA
    else:
        bright = [(127,) * 3, (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255)]
        normal, bright = XTERM, [*bright, (255, 255, 255)]
    front, ground = ((0, 0, 0), (255, 255, 255)) if theme == "ansi-light" else (normal[7], (0, 0, 0))
    palette = TerminalTheme(ground, front, normal, bright)
    async with running(FakeModel(n_layer=6, n_expert=8, answer=REPLY), size=(120, 60)) as (app, pilot):
        app.theme = theme
        await ask(app, pilot)
        await pilot.pause(0.1)
        assert_legible(app, palette)
        for key, screen in (("f8", RulesScreen), ("f10", FiguresScreen), ("f9", ParametersScreen), ("f6", RunsScreen)):
            await pilot.press(key)
            await until(pilot, lambda screen=screen: isinstance(app.screen, screen), "the screen")
            await pilot.pause(0.1)
            assert_legible(app, palette)
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.screen_stack[1], "the chat")


@pytest.mark.parametrize("kind", ["sixteen", "none"])
async def test_few_colours_never_carry_a_meaning_alone(monkeypatch, kind):
    """With 16 colours or none loads are shades, choices are in brackets and tokens carry their expert's number."""
    monkeypatch.setenv("COLORTERM", "")
    monkeypatch.setenv("TERM", "xterm")
    if kind == "none":
        monkeypatch.setenv("NO_COLOR", "1")
    async with running(FakeModel(n_layer=6, n_expert=8, answer=["a"] * 12)) as (app, pilot):
        await ask(app, pilot)
        heatmap = chat(app).query_one(Heatmap)
        assert heatmap.look.shaded
        rows = [heatmap.render_line(y) for y in range(1, 7)]
        assert {s.style for row in rows for s in row if s.style} <= {heatmap.look.base, heatmap.look.dim}
        picture = "\n".join(lines(heatmap)[1:7])
        assert "[" in picture
        assert set(picture) & set("░▒▓█")
        routed = chat(app).experts.stats.last_token()[0]
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        assert f"{routed[0, 0]}" in screen_text(app)


async def test_the_chosen_turn_is_told_from_others_without_colours(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with running(FakeModel(answer="ok")) as (app, pilot):
        await ask(app, pilot, "one")
        await ask(app, pilot, "two")
        marks = {"one": "▌", "two": "▌"}
        for chosen in ("two", "one"):
            await pilot.press(*(["tab", "up"] if chosen == "two" else ["up", "up"]))
            await pilot.pause()
            shown = {word: line.split(word)[0].strip()
                     for line in screen_text(app).splitlines() for word in marks if f" {word} " in line}  # fmt: skip
            assert shown == {**marks, chosen: "█"}


async def test_every_theme_is_legible_on_its_own_grounds():
    """Text and footer colours of all of Textual's themes but those that are the terminal's own."""
    async with running(FakeModel()) as (app, pilot):
        for name in app.available_themes:
            if name.startswith("ansi"):
                continue
            app.theme = name
            await pilot.pause()
            values = {k: v for k, v in app.get_css_variables().items() if v.startswith("#")}
            texts = ["foreground", "foreground-muted", "text-accent", "text-success", "text-error", "text-warning"]
            pairs = [(text, ground) for text in texts for ground in ("background", "surface", "panel")]
            pairs += [(f"footer-{part}foreground", "footer-background") for part in ("", "key-", "description-")]
            pairs += [(text, "block-cursor-background") for text in texts]
            for text, ground in pairs:
                assert contrast(Style(color=values[text], bgcolor=values[ground])) >= LEGIBLE - 0.02, (
                    name,
                    text,
                    ground,
                )


@pytest.mark.parametrize("theme", ["ansi-dark", "ansi-light"])
async def test_a_theme_of_the_terminals_own_colours_is_drawn(theme):
    """Its colours have names that no number can be made of; what only explains is dim then."""
    async with running(FakeModel(n_layer=6, n_expert=8)) as (app, pilot):
        app.theme = theme
        await ask(app, pilot)
        for key, screen in (("f7", TokensScreen), ("f8", RulesScreen), ("f10", FiguresScreen)):
            await pilot.press(key)
            await until(pilot, lambda screen=screen: isinstance(app.screen, screen), "the screen")
            await pilot.press("escape")
            await until(pilot, lambda: app.screen is app.screen_stack[1], "the chat")
        dim = [s.text for s in chat(app).experts.query_one(Heatmap).render_line(1) if s.style and s.style.dim]
        assert dim
