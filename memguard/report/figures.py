"""The figures: losses and leakage on one time axis, and the true-positive rate where alarms are rare."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memguard.errors import MemguardWarning
from memguard.report.data import WatchReport
from memguard.report.panels import best_line, leakage_panel, losses_panel, rates_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "curve_figure", "rates_figure", "save_png", "style", "summary_figure"]

LIGHT = {"ink": "#1d2733", "muted": "#65717e", "grid": "#dfe4e8", "held": "#2368a8", "train": "#6b7680",
         "leak": "#c2501c", "band": "#f0c3ab", "paper": "#ffffff"}  # fmt: skip
DARK = {"ink": "#e6eaee", "muted": "#9aa6b2", "grid": "#313a44", "held": "#6db3f2", "train": "#8d98a4",
        "leak": "#f28c55", "band": "#6e4029", "paper": "#161b21"}  # fmt: skip


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

    with style(colors):
        figure = Figure(figsize=(9.2, 4.5))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.15])
        losses_panel(above, report, colors)
        leakage_panel(below, report, colors)
        best_line(above, below, report, colors)
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

    with style(colors):
        figure = Figure(figsize=(4.6, 3.7))
        rates_panel(figure.subplots(), report, colors)
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

    with style(colors):
        figure = Figure(figsize=(11.6, 4.6), facecolor=colors["paper"])
        left = figure.add_gridspec(2, 1, left=0.05, right=0.56, top=0.94, bottom=0.11, hspace=0.22)
        right = figure.add_gridspec(1, 1, left=0.7, right=0.99, top=0.94, bottom=0.11)
        above = figure.add_subplot(left[0])
        below = figure.add_subplot(left[1], sharex=above)
        above.tick_params(labelbottom=False)
        losses_panel(above, report, colors)
        leakage_panel(below, report, colors)
        best_line(above, below, report, colors)
        rates_panel(figure.add_subplot(right[0]), report, colors)
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


@contextmanager
def style(colors: Mapping[str, str]) -> Iterator[None]:
    """The look of every figure, set while the block runs and put back after it.

    Args:
        colors: `LIGHT` or `DARK`.

    Example:
        >>> import matplotlib
        >>> with style(DARK):
        ...     matplotlib.rcParams["text.color"] == DARK["ink"]
        True
    """
    import matplotlib

    settings: dict[Any, Any] = {
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
    with matplotlib.rc_context(settings):
        yield
