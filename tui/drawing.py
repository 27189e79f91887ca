"""Drawing only what changed: Textual sends four messages for it, and draws all inside the hull of what changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style as RichStyle
from textual._compositor import ChopsUpdate, Compositor
from textual.color import Color
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget

# Textual looks for a widget's CSS along its first bases: those that only change a method must not be widgets.
if TYPE_CHECKING:
    from textual.widget import Widget as _Widget
else:
    _Widget = object

Chops = dict[int, dict[int, Strip | None]]
"""What stands on each line from some columns on."""


class LineUpdate(ChopsUpdate):
    """Lines to be sent; Textual's makes an object for every move of the cursor."""

    def render_segments(self, console: Console) -> str:
        parts = []
        for y, left, right in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=True):
                if strip is not None and x < right and end > left:
                    strip = strip if end <= right else strip.crop(0, right - x)
                    parts += [f"\x1b[{y + 1};{x + 1}H", strip.render(console)]
        return "".join(parts)


class LineCompositor(Compositor):
    """Draws the changed lines of the widgets that are in them."""

    def update_widgets(self, widgets: set[Widget]) -> None:
        super().update_widgets(widgets & self.visible_widgets.keys())  # what is new is laid out first

    def render_partial_update(self) -> ChopsUpdate | None:
        screen = self.size.region
        regions = [part for region in self._dirty_regions if (part := region.intersection(screen))]
        self._dirty_regions.clear()
        if not regions:
            return None
        spans = list(self._regions_to_spans(regions))
        chops: Chops = {}
        ends: dict[int, dict[int, int]] = {}
        for y, left, right in spans:
            inside = {cut: end for cut, end in pairwise(self.cuts[y]) if cut < right and end > left}
            ends.setdefault(y, {}).update(inside)
            chops.setdefault(y, {}).update(dict.fromkeys(inside))
        missing = sum(map(len, chops.values()))
        for widget, (region, clip) in self.visible_widgets.items():
            seen = region.intersection(clip)
            if parts := [part for other in regions if (part := seen.intersection(other))]:
                missing -= self._draw(widget, region, seen, Region.from_union(parts), chops)
            if not missing:
                break
        lists = {y: list(each.values()) for y, each in ends.items()}
        return LineUpdate(chops, spans, lists)  # type: ignore[arg-type] # it asks for the lines of its spans alone

    def _draw(self, widget: Widget, region: Region, seen: Region, part: Region, chops: Chops) -> int:
        """Put the lines of a part of a widget, of which `seen` is on the screen, where nothing stands: how often."""
        left, right = seen.column_span
        free = {}
        for y in part.line_range:
            if wanted := [cut for cut, strip in chops.get(y, {}).items() if strip is None and left <= cut < right]:
                free[y] = wanted
        if not free:
            return 0
        top = min(free)
        strips = widget.render_lines(Region(seen.x - region.x, top - region.y, seen.width, max(free) + 1 - top))
        for y, wanted in free.items():
            cuts = [cut for cut in self.cuts[y] if left <= cut <= right]
            strip = strips[y - top]
            pieces = [strip] if len(cuts) == 2 else strip.divide([cut - left for cut in cuts[1:]])
            chops[y].update((cut, piece) for cut, piece in zip(cuts, pieces, strict=False) if cut in wanted)
        return sum(map(len, free.values()))


class DrawnScreen(Screen[None]):
    """A screen that can draw all that changed in one step, without messages."""

    def __init__(self) -> None:
        super().__init__()
        self._compositor = LineCompositor()
        self._waiting = False

    def check_idle(self) -> None:
        if not self._waiting:
            super().check_idle()

    @contextmanager
    def one_drawing(self) -> Iterator[None]:
        """Draw at its end what is marked meanwhile."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            later = self._layout_required or self._scroll_required or self.app._batch_count or not self.is_current
            if self._dirty_widgets and not later:
                self._compositor.update_widgets(self._dirty_widgets)
                self._compositor_refresh()
            elif later or self._callbacks:
                self.check_idle()


def mark(widget: Widget, *regions: Region) -> None:
    """Have a widget's content drawn again, or these parts of it; its size must not change by that."""
    if widget.is_attached:
        widget._layout_cache.clear()
        widget._set_dirty(*regions)
        if widget in widget.screen._compositor.visible_widgets:
            widget.screen._dirty_widgets.add(widget)
            widget.screen.check_idle()


class OwnLines(_Widget):
    """Draws its lines without border and padding, where it has none: Textual takes longer to add those than to draw."""

    _of_style: tuple[Style, bool, Color, RichStyle] | None = None

    def render_lines(self, crop: Region) -> list[Strip]:
        known, style = self._of_style, self.visual_style
        if known is None or known[0] is not style:  # Textual makes another one when the style sheet says so
            below, above = self.background_colors
            known = style, any(self.styles.gutter), above, Style(background=below + above).rich_style
            self._of_style = known
        _, framed, above, ground = known
        if framed:
            return super().render_lines(crop)
        width = self.size.width
        lines = [self.render_line(y).adjust_cell_length(width, ground) for y in crop.line_range]
        left, right = crop.column_span
        lines = lines if (left, right) == (0, width) else [line.crop(left, right) for line in lines]
        return _filtered(self, lines, above)


class OnlyGround(_Widget):
    """Has nothing to draw itself: its children are drawn before it."""

    def render_lines(self, crop: Region) -> list[Strip]:
        if any(self.styles.border.spacing):
            return super().render_lines(crop)
        below, above = self.background_colors
        ground = Style(background=below + above).rich_style
        return _filtered(self, [Strip.blank(crop.width, ground)], above) * crop.height


def _filtered(widget: Widget, strips: list[Strip], ground: Color) -> list[Strip]:
    """Lines as the terminal is sent them: without colours if it has none."""
    for line_filter in widget.get_line_filters():
        strips = [strip.apply_filter(line_filter, ground) for strip in strips]
    return strips
