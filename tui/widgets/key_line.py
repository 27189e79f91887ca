"""The line of keys: as many as fit, none cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.content import Content
from textual.dom import DOMNode
from textual.geometry import Region
from textual.widgets import Footer

if TYPE_CHECKING:
    from textual.screen import Screen

AROUND = 3
"""Columns of a key beside its name and what it does."""


@dataclass(frozen=True)
class ShownKey:
    """A key as the line has it, `display`ed by its name; one that does nothing now is not `enabled`."""

    key: str
    display: str
    description: str
    enabled: bool

    @property
    def width(self) -> int:
        return cell_len(self.display) + cell_len(self.description) + AROUND


@cache
def _listed(kind: type[DOMNode]) -> tuple[str | None, ...]:
    return tuple(binding.id for binding in kind.BINDINGS if isinstance(binding, Binding))


class KeyLine(Footer):
    """A footer that leaves out the keys that have no room, from the end: the important ones come first.

    Textual's has a widget for each key.

    To make those anew whenever a reply begins or ends took longer than to lay out and draw the question.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"key", "description", "off"}
    DEFAULT_CSS = """
    KeyLine {
        & > .key { color: $footer-key-foreground; background: $footer-key-background; text-style: bold; }
        & > .description { color: $footer-description-foreground; background: $footer-description-background; }
        & > .off { text-style: dim; }
    }
    """

    _keys: tuple[ShownKey, ...] = ()

    def compose(self) -> ComposeResult:
        yield from ()

    def bindings_changed(self, screen: Screen[object]) -> None:
        if screen.app.app_focus and self.is_attached and screen is self.screen:
            self._follow()

    def on_resize(self) -> None:
        self._follow()

    def _follow(self) -> None:
        keys = tuple(self._fitting())
        if keys != self._keys:
            self._keys = keys
            self.refresh()

    def _in_order(self) -> list[ActiveBinding]:
        """What holds now: of the widget with the keyboard first, then around it, each as its class lists them.

        Textual's own order puts a key first that such a widget had for something else.
        """
        around = (self.screen.focused or self.screen).ancestors_with_self

        def place(active: ActiveBinding) -> tuple[int, int]:
            node, name = active.node, active.binding.id
            listed = _listed(type(node))
            return around.index(node) if node in around else 0, listed.index(name) if name in listed else len(listed)

        return sorted(self.screen.active_bindings.values(), key=place)

    def _fitting(self) -> Iterator[ShownKey]:
        left, actions = self.size.width or self.screen.size.width, set[str]()
        for _, binding, enabled, _ in self._in_order():
            if not binding.show or binding.action in actions:
                continue
            actions.add(binding.action)
            key = ShownKey(binding.key, self.app.get_key_display(binding), binding.description, enabled)
            left -= key.width
            if left < 0:
                return
            yield key

    @property
    def places(self) -> Iterator[tuple[ShownKey, Region]]:
        """Each key that is shown, and where on the screen."""
        x = self.region.x
        for key in self._keys:
            yield key, Region(x, self.region.y, key.width, 1)
            x += key.width

    def render(self) -> Content:
        parts = []
        for key in self._keys:
            words = Content.assemble((f" {key.display} ", ".key"), (f"{key.description} ", ".description"))
            parts.append(words if key.enabled else words.stylize(".off"))
        return Content.assemble(*parts)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        for key, place in self.places:
            if place.contains(event.screen_x, event.screen_y):
                if key.enabled:
                    self.app.simulate_key(key.key)
                else:
                    self.app.bell()
                return
