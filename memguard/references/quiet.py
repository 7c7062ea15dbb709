"""What Lightning would say at every fit, once would be enough."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
# Of a fit that has no logger, no validation and few records on purpose, and whose user cannot change it.
_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*but have no `val_dataloader`.*",
    ".*treespec, LeafSpec.*",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from announcing devices, reasons to stop and advice, and give its loggers their levels back.

    Warnings of the user's own code are shown as always.

    Example:
        >>> level = logging.getLogger("lightning.pytorch").level
        >>> with quiet():
        ...     logging.getLogger("lightning.pytorch").info("GPU available: False")
        >>> logging.getLogger("lightning.pytorch").level == level
        True
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(max(logging.WARNING, logger.level))
        with warnings.catch_warnings():
            for advice in _ADVICE:
                warnings.filterwarnings("ignore", advice)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
