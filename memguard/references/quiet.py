"""What Lightning would say at every fit, once would be enough."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["quiet"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from announcing devices and reasons to stop, and give its loggers their levels back.

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
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
