"""The way into a model: how it is asked, what its tokens are called, and which of them are sensitive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memguard.adapters.base import ModelAdapter
from memguard.adapters.find import find_adapter
from memguard.auditing.names import names_of
from memguard.auditing.sides import Sides
from memguard.errors import MemguardError
from memguard.probes.result import NotTested
from memguard.records.sensitivity import Sensitive, SensitivityTable

__all__ = ["ask_through", "sensitive_of"]


def ask_through(
    module: Any,
    owners: Sequence[Any],
    sides: Sides,
    *,
    vocabulary: Any,
    adapter: Any,
    gaps: list[NotTested],
) -> tuple[tuple[str, ...], ModelAdapter | None]:
    """Names of the tokens, and how the model is asked; proved on the losses of the first records that have one.

    Args:
        module: With the weights that are asked.
        owners: Where names are looked for: datamodule, data set, model.
        sides: Both of them.
        vocabulary: As `memguard.audit` takes it.
        adapter: As `memguard.audit` takes it.
        gaps: What is missing is added here.

    Returns:
        No names and no adapter where there are none.
    """
    codes = sides.content.codes
    if codes is None:
        return (), None
    names = names_of(vocabulary, owners)
    rows = np.flatnonzero(np.isfinite(sides.target.loss))[:64]
    try:
        found, why = find_adapter(
            module,
            adapter=adapter,
            vocabulary=len(names) or None,
            example=codes.take(rows),
            loss=sides.target.loss[rows] if sides.target.unit == "nats/token" else None,
        )
    except MemguardError as error:
        found, why = None, f"{error.seen}: {error.why}"
    if found is None:
        gaps.append(
            NotTested(
                what="Probabilities, continuations and embeddings",
                why=why,
                fix="pass adapter= (docs/adapters.md)",
            )
        )
    elif names and len(names) > found.vocabulary:
        names = names_of(vocabulary, owners, size=found.vocabulary)
    if not names:
        gaps.append(
            NotTested(
                what="Anything that needs names of codes: sensitive codes, age, sex",
                why="nobody says what the tokens are called",
                fix="pass vocabulary= with the names of all tokens, in order",
            )
        )
    return names, found


def sensitive_of(
    given: SensitivityTable | Sensitive | str | Path | None, names: tuple[str, ...], gaps: list[NotTested]
) -> Sensitive | None:
    """Which tokens are sensitive; ``None`` where nobody knows what they are called.

    Args:
        given: As `memguard.audit` takes it.
        names: Of the tokens.
        gaps: What is missing is added here.
    """
    if isinstance(given, Sensitive):
        return given
    if not names:
        return None
    table = given
    if table is None:
        table = SensitivityTable.default()
    elif not isinstance(table, SensitivityTable):
        table = SensitivityTable.read(table)
    found = table.label(names)
    if not found.sensitive.any():
        gaps.append(
            NotTested(
                what="Sensitive codes",
                why="no token of the model is in the table of sensitive codes",
                fix="pass sensitive= with a table of your own (docs/sensitive-codes.md)",
            )
        )
    return found
