"""Figures as SVG inside a page: colours that follow a light or dark screen, text that stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from memguard.report.data import WatchReport
from memguard.report.figures import LIGHT, curve_figure, rates_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg", "to_svg"]

# Colours that no figure uses by accident; the page puts a CSS variable in their place.
_SENTINEL = {name: f"#0102{index:02x}" for index, name in enumerate(LIGHT, start=16)}


def to_svg(make: str, report: WatchReport, *, title: str, description: str) -> str:
    """One figure as SVG text to stand inside an HTML page.

    Colours become ``var(--ink)`` and so on, text stays text in the page's font, element ids are made unique
    to the figure, and nothing refers to another file.

    Args:
        make: ``"curve"`` or ``"rates"``.
        report: The watched run.
        title: Short name, read out first.
        description: What the figure shows, for who does not see it.

    Example:
        >>> from memguard.report.data import WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> to_svg("rates", report, title="Rates", description="None.")[:24]
        '<svg class="figure rates'
    """
    draw = {"curve": curve_figure, "rates": rates_figure}[make]
    return inline_svg(lambda colors: draw(report, colors), make, title=title, description=description)


def inline_svg(
    draw: Callable[[Mapping[str, str]], Figure], name: str, *, title: str, description: str
) -> str:
    """Any figure as SVG text to stand inside an HTML page, as `to_svg` makes it.

    Args:
        draw: Gives the figure in the colours that it is handed (the keys of `memguard.report.figures.LIGHT`).
        name: A word of its own for each figure of a page: part of its class and of the ids in it.
        title: Short name, read out first.
        description: What the figure shows, for who does not see it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> inline_svg(lambda colors: Figure(), "empty", title="Nothing", description="None.")[:24]
        '<svg class="figure empty'
    """
    buffer = io.StringIO()
    with style(_SENTINEL):
        draw(_SENTINEL).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1var(--font)", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for key, color in _SENTINEL.items():
        svg = svg.replace(color, f"var(--{key})")
    box = re.search(r'viewBox="[^"]+"', svg)
    head = (
        f'<svg class="figure {name}" role="img" aria-labelledby="{name}-title {name}-text" '
        f"{box.group() if box else ''}>"
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]
