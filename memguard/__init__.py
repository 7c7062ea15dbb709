"""Watch a model while it trains on health records, and say which patients it memorizes."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
