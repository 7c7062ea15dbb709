"""Figures and text for the run's own loggers, found by class name: no logger is imported here.

A logger gets aggregates only. `log_report` takes a `WatchReport`, which has no rows per patient, and there is
no function here that takes a frame of flags.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from memguard.errors import MemguardWarning
from memguard.report.data import WatchReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_figure", "log_report", "log_text"]


def log_figure(logger: object, name: str, figure: Figure, *, step: int | None = None) -> bool:
    """Hand a figure to a logger that can show one.

    Args:
        logger: Any Lightning logger; a subclass counts as its parent.
        name: Key, beginning with ``memguard/``.
        figure: Aggregates only.
        step: Where on the logger's axis.

    Returns:
        Whether it was taken. A logger of another kind gets nothing; one that fails gives a `MemguardWarning`.

    Example:
        >>> log_figure(object(), "memguard/curve", None)
        False
    """
    return _send(_FIGURE, logger, name, figure, step)


def log_text(logger: object, name: str, text: str, *, step: int | None = None) -> bool:
    """Hand Markdown text to a logger that can show it.

    Args:
        logger: Any Lightning logger; a subclass counts as its parent.
        name: Key, beginning with ``memguard/``.
        text: Aggregates only.
        step: Where on the logger's axis.

    Returns:
        Whether it was taken.

    Example:
        >>> log_text(object(), "memguard/curve_table", "| epoch |")
        False
    """
    return _send(_TEXT, logger, name, text, step)


def log_report(loggers: Iterable[object], report: WatchReport, *, step: int | None = None) -> int:
    """Verdict, curve table and figures to every logger that shows them, small cells suppressed.

    Without Matplotlib only the text goes.

    Args:
        loggers: ``trainer.loggers``; call on rank 0 only.
        report: The watched run.
        step: ``trainer.global_step``.

    Returns:
        How many figures and texts were taken.

    Example:
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> log_report([object()], report)
        0
    """
    from memguard.report.figures import LIGHT, curve_figure, rates_figure
    from memguard.report.table import curve_markdown

    taken = 0
    for logger in loggers:
        taken += log_text(logger, "memguard/watch", curve_markdown(report), step=step)
        if _adapter(_FIGURE, logger) is None:
            continue
        try:
            figures = {"memguard/curve": curve_figure(report), "memguard/low_fpr": rates_figure(report)}
            if any(point.probes for point in report.curve):
                from memguard.report.probed import probes_figure

                figures["memguard/probes"] = probes_figure(report, LIGHT)
        except ImportError:
            continue
        for name, figure in figures.items():
            figure.set_facecolor("white")
            taken += log_figure(logger, name, figure, step=step)
    return taken


_Adapter = Callable[[Any, str, Any, "int | None"], None]


def _adapter(table: dict[str, _Adapter], logger: object) -> _Adapter | None:
    return next((table[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in table), None)


def _send(table: dict[str, _Adapter], logger: object, name: str, content: object, step: int | None) -> bool:
    adapter = _adapter(table, logger)
    if adapter is None:
        return False
    try:
        adapter(logger, name, content, step)
    except Exception as error:  # a logger may fail in its own ways (network, quota); training must go on
        warning = MemguardWarning(
            f"{type(logger).__name__} did not take {name} ({error!r})",
            "it is missing there; the files in the output folder are complete",
            "see the logger's own documentation, or remove it from Trainer(logger=...)",
        )
        warnings.warn(warning, stacklevel=3)
        return False
    return True


def _tensorboard_figure(logger: Any, name: str, figure: Any, step: int | None) -> None:
    logger.experiment.add_figure(name, figure, global_step=step, close=False)


def _tensorboard_text(logger: Any, name: str, text: str, step: int | None) -> None:
    logger.experiment.add_text(name, text, global_step=step)


def _wandb_figure(logger: Any, name: str, figure: Any, step: int | None) -> None:
    logger.log_image(key=name, images=[_bitmap(figure)], step=step)


def _wandb_text(logger: Any, name: str, text: str, step: int | None) -> None:
    logger.log_text(key=name, columns=["text"], data=[[text]], step=step)


def _mlflow_figure(logger: Any, name: str, figure: Any, step: int | None) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{_file_name(name, step)}.png")


def _mlflow_text(logger: Any, name: str, text: str, step: int | None) -> None:
    logger.experiment.log_text(logger.run_id, text, f"{_file_name(name, step)}.md")


def _file_name(name: str, step: int | None) -> str:
    return name if step is None else f"{name}_step_{step}"


def _bitmap(figure: Any) -> Any:
    """(H, W, 3) uint8 pixels: what every version of the W&B logger takes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


_FIGURE: dict[str, _Adapter] = {
    "TensorBoardLogger": _tensorboard_figure,
    "WandbLogger": _wandb_figure,
    "MLFlowLogger": _mlflow_figure,
}
_TEXT: dict[str, _Adapter] = {
    "TensorBoardLogger": _tensorboard_text,
    "WandbLogger": _wandb_text,
    "MLFlowLogger": _mlflow_text,
}
