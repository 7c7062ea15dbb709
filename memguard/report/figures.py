"""The figures: losses and leakage on one time axis, and the true-positive rate where alarms are rare.

Each figure is made once and dressed twice: as SVG whose colours are the page's own CSS variables, so that it
follows a light or dark screen, and as a bitmap for a README or a logger.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from memguard.errors import MemguardWarning
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "curve_figure", "rates_figure", "save_png", "summary_figure", "to_svg"]

LIGHT = {"ink": "#1d2733", "muted": "#65717e", "grid": "#dfe4e8", "held": "#2368a8", "train": "#6b7680",
         "leak": "#c2501c", "band": "#f0c3ab", "paper": "#ffffff"}  # fmt: skip
DARK = {"ink": "#e6eaee", "muted": "#9aa6b2", "grid": "#313a44", "held": "#6db3f2", "train": "#8d98a4",
        "leak": "#f28c55", "band": "#6e4029", "paper": "#161b21"}  # fmt: skip

# Colours that no figure uses by accident; the page puts a CSS variable in their place.
_SENTINEL = {name: f"#0102{index:02x}" for index, name in enumerate(LIGHT, start=16)}


def curve_figure(report: WatchReport, colors: Mapping[str, str] = LIGHT) -> Figure:
    """Held-out and train loss above, membership AUC with its interval below, over the same epochs.

    The best held-out epoch is a vertical line through both, so that a reader sees whether leakage rises
    before or after it. AUC intervals are pointwise.

    Args:
        report: The watched run.
        colors: `LIGHT` or `DARK`.

    Example:
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[CurvePoint(epoch=1, step=1)])
        >>> len(curve_figure(report).axes)
        2
    """
    from matplotlib.figure import Figure

    with _style(colors):
        figure = Figure(figsize=(9.2, 4.5))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
        _losses(above, report, colors)
        _leakage(below, report, colors)
        _best_line(above, below, report, colors)
        figure.subplots_adjust(left=0.045, right=0.905, top=0.94, bottom=0.105, hspace=0.24)
    return figure


def rates_figure(report: WatchReport, colors: Mapping[str, str] = LIGHT) -> Figure:
    """True-positive rate at low false-positive rates, both axes logarithmic, with the line of chance.

    Args:
        report: The watched run; the last look and the one at the best held-out epoch are drawn.
        colors: `LIGHT` or `DARK`.

    Example:
        >>> from memguard.report.data import WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> rates_figure(report).axes[0].get_xscale()
        'log'
    """
    from matplotlib.figure import Figure

    with _style(colors):
        figure = Figure(figsize=(4.6, 3.7))
        _rates(figure.subplots(), report, colors)
        figure.subplots_adjust(left=0.15, right=0.96, top=0.92, bottom=0.14)
    return figure


def summary_figure(report: WatchReport, colors: Mapping[str, str] = LIGHT) -> Figure:
    """Both figures side by side, for a README or a slide.

    Example:
        >>> from memguard.report.data import WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> len(summary_figure(report).axes)
        3
    """
    from matplotlib.figure import Figure

    with _style(colors):
        figure = Figure(figsize=(11.6, 4.6), facecolor=colors["paper"])
        left = figure.add_gridspec(2, 1, left=0.05, right=0.56, top=0.94, bottom=0.11, hspace=0.22)
        right = figure.add_gridspec(1, 1, left=0.7, right=0.99, top=0.94, bottom=0.11)
        above = figure.add_subplot(left[0])
        below = figure.add_subplot(left[1], sharex=above)
        above.tick_params(labelbottom=False)
        _losses(above, report, colors)
        _leakage(below, report, colors)
        _best_line(above, below, report, colors)
        _rates(figure.add_subplot(right[0]), report, colors)
    return figure


def save_png(report: WatchReport, path: str | Path, *, dark: bool = False, dpi: int = 160) -> Path | None:
    """Write the summary figure as PNG. It holds aggregates only, and gets the usual file mode.

    Args:
        report: The watched run.
        path: Where.
        dark: For a dark page.
        dpi: Pixels per inch; the figure is 11.6 by 4.6 inches.

    Returns:
        The path, or ``None`` with a `MemguardWarning` when Matplotlib is missing or the disk refuses.

    Example:
        >>> import tempfile
        >>> from memguard.report.data import WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_png(report, f"{folder}/summary.png", dpi=40).name
        'summary.png'
    """
    path = Path(path)
    try:
        figure = summary_figure(report, DARK if dark else LIGHT)
        with path.open("wb") as file:
            figure.savefig(file, format="png", dpi=dpi)
    except (ImportError, OSError) as error:
        warning = MemguardWarning(
            f"{path} was not drawn ({error})",
            "the picture is missing; the numbers are not",
            "pip install memguard-ehr[report], or choose a folder that can be written",
        )
        warnings.warn(warning, stacklevel=2)
        return None
    return path


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
    buffer = io.StringIO()
    with _style(_SENTINEL):
        draw(report, _SENTINEL).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), make, title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    from html import escape

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


@contextmanager
def _style(colors: Mapping[str, str]) -> Iterator[None]:
    import matplotlib

    settings = {
        "font.family": "sans-serif",
        "font.size": 9.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "memguard",
        "text.color": colors["ink"],
        "axes.labelcolor": colors["muted"],
        "axes.edgecolor": colors["muted"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titlecolor": colors["ink"],
        "axes.titlepad": 7,
        "axes.linewidth": 0.8,
        "xtick.color": colors["muted"],
        "ytick.color": colors["muted"],
        "grid.color": colors["grid"],
        "grid.linewidth": 0.8,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        yield


def _series(curve: Sequence[CurvePoint], name: str) -> tuple[list[float], list[float]]:
    pairs = [(p.epoch, getattr(p, name)) for p in curve]
    kept = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def _losses(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    axes.set_title(f"Loss, {report.loss_unit.replace('/', ' per ')}")
    axes.grid(axis="y")
    ends: list[tuple[float, float, str, str]] = []
    for name, label, color, dash in (
        ("train_loss", "train", colors["train"], (0, (4, 1.6))),
        ("held_out_loss", "held-out", colors["held"], "-"),
    ):
        x, y = _series(report.curve, name)
        if x:
            axes.plot(x, y, color=color, linestyle=dash, marker="o" if len(x) == 1 else "")
            ends.append((x[-1], y[-1], label, color))
    _end_labels(axes, ends)


def _leakage(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    axes.set_title("Leakage: membership AUC" + _confidence(report))
    axes.set_xlabel("epochs of training")
    axes.grid(axis="y")
    axes.axhline(0.5, color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)))
    points = [(p.epoch, p.auc) for p in report.curve if p.auc is not None and math.isfinite(p.auc.value)]
    ends: list[tuple[float, float, str, str]] = []
    lowest, highest = 0.5, 0.5
    if points:
        x = [epoch for epoch, _ in points]
        axes.fill_between(
            x, [a.low for _, a in points], [a.high for _, a in points], color=colors["band"], linewidth=0
        )
        if len(x) == 1:  # a band needs two looks
            axes.plot(x * 2, [points[0][1].low, points[0][1].high], color=colors["band"], linewidth=6)
        axes.plot(
            x, [a.value for _, a in points], color=colors["leak"], marker="o" if len(x) < 40 else "", ms=3.6
        )
        lowest = min(0.5, *(a.low for _, a in points if math.isfinite(a.low)), 0.5)
        highest = max(0.5, *(a.high for _, a in points if math.isfinite(a.high)), 0.5)
        ends.append((x[-1], points[-1][1].value, f"AUC {share(points[-1][1].value)}", colors["leak"]))
    axes.set_ylim(min(0.45, lowest - 0.02), min(1.005, max(0.7, highest + 0.03)))
    ends.append((max((p.epoch for p in report.curve), default=1.0), 0.5, "chance .50", colors["muted"]))
    _end_labels(axes, ends)
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda value, _: share(value, 2 if top - bottom < 0.4 else 1))


def _confidence(report: WatchReport) -> str:
    auc = report.last.auc if report.last else None
    return f" with its {100 * auc.confidence:g} % interval" if auc else ""


def _end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their right end instead of in a legend, pushed apart where they would meet."""
    low, high = axes.get_ylim()
    least = 0.13 * (high - low)
    height = -math.inf
    for x, y, label, color in sorted(ends, key=lambda end: end[1]):
        height = max(y, height + least)
        axes.annotate(
            label,
            (x, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )


def _best_line(above: Axes, below: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [p.epoch for p in report.curve] or [0.0, 1.0]
    first, last = min(epochs), max(epochs)
    start = first if last > first else last - 1
    pad = 0.012 * (last - start)
    below.set_xlim(start - pad, last + pad)
    whole = last - first > 2 or all(epoch == int(epoch) for epoch in epochs)
    below.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=12))
    if report.best_epoch is None:
        return
    for axes in (above, below):
        axes.axvline(report.best_epoch, color=colors["ink"], linewidth=1.1, linestyle=(0, (5, 3)))
    late = report.best_epoch > start + 0.55 * (last - start)
    above.annotate(
        f"best held-out epoch: {report.best_epoch:g}",
        (report.best_epoch, 0.97),
        xycoords=above.get_xaxis_transform(),
        xytext=(-6 if late else 6, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        color=colors["ink"],
    )
    best = report.best
    if (
        best is not None
        and best is not report.last
        and best.auc is not None
        and math.isfinite(best.auc.value)
    ):
        below.annotate(
            f"AUC {share(best.auc.value)}",
            (best.epoch, best.auc.value),
            xytext=(-8 if late else 8, 9 if late else -10),
            textcoords="offset points",
            ha="right" if late else "left",
            va="center",
            color=colors["leak"],
            fontweight="bold",
        )


def _rates(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    axes.set_title("Members found, where false alarms are rare")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    axes.grid()
    last, best = report.last, report.best
    looks = [(last, colors["leak"], "D", "epoch {:g}")]
    if best is not None and last is not None and best.epoch != last.epoch:
        looks.append((best, colors["held"], "o", "epoch {:g}, best held-out"))
    rates = [fpr for look, *_ in looks if look is not None for fpr in look.tpr if fpr > 0]
    floor = min([1e-3, *(rate / 2 for rate in rates)])
    roc = [(f, t) for f, t in report.roc if f >= floor and t >= floor]
    if roc:
        axes.plot(
            [f for f, _ in roc],
            [t for _, t in roc],
            color=colors["band"],
            linewidth=1.6,
            drawstyle="steps-post",
        )
    axes.plot(
        [floor, 1], [floor, 1], color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)), label="chance"
    )
    for look, color, marker, label in looks:
        if look is None:
            continue
        kept = [(fpr, look.tpr[fpr]) for fpr in sorted(look.tpr) if fpr > 0]
        kept = [(fpr, tpr) for fpr, tpr in kept if math.isfinite(tpr.value)]
        if not kept:
            continue
        for fpr, tpr in kept:
            axes.plot([fpr, fpr], [max(tpr.low, floor), max(tpr.high, floor)], color=color, linewidth=1.6)
        x, y = [fpr for fpr, _ in kept], [max(tpr.value, floor) for _, tpr in kept]
        axes.plot(x, y, color=color, marker=marker, ms=5.5, linewidth=1.2, label=label.format(look.epoch))
    # Below the line of chance nothing is ever drawn that matters: the names go there.
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", handlelength=1.6)
    axes.minorticks_off()
    axes.set_xlim(floor, 1)
    axes.set_ylim(floor, 1.25)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
