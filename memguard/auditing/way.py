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
    gaps += _of_another_training(sides)
    codes = sides.content.codes
    if codes is None:
        return (), None
    names, unlike = names_of(vocabulary, owners), ""
    if names and (most := int(codes.values.max(initial=0))) >= len(names):
        names, unlike = (), f"{len(names)} names, and records hold tokens up to {most}"
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
    elif len(names) > found.vocabulary:
        unlike = f"{len(names)} names for a model of {found.vocabulary} tokens"
        names = names_of("auto", owners, size=found.vocabulary) if isinstance(vocabulary, str) else ()
    elif names:
        names = (*names, *(f"tok{i}" for i in range(len(names), found.vocabulary)))
    if not names:
        if unlike:
            unlike += ": they are not those of the model, and codes would be called by wrong names"
        gaps.append(
            NotTested(
                what="Anything that needs names of codes: sensitive codes, age, sex",
                why=unlike or "nobody says what the tokens are called",
                fix="pass vocabulary= with the names of all tokens of the training, in order",
            )
        )
    return names, found


def _of_another_training(sides: Sides) -> list[NotTested]:
    """Whether the model knows less of its training records than somebody who guesses: then it is not theirs."""
    n, unit, content = len(sides.members), sides.target.unit, sides.content
    loss = sides.target.loss[:n][np.isfinite(sides.target.loss[:n])]
    if content.codes is not None and unit == "nats/token":
        choices, among = np.unique(content.codes.take(np.arange(n)).values).size, "tokens of these records"
    elif content.y is not None and unit == "nats/record" and np.unique(content.y[:n]).size <= n // 2:
        choices, among = np.unique(content.y[:n]).size, "outcomes of these records"
    else:
        return []
    if choices < 2 or not loss.size or loss.mean() <= np.log(choices):
        return []
    return [
        NotTested(
            what="The model of these patients, as it seems",
            why=f"it loses {loss.mean():.2f} {unit} on its own training records, more than a guess among the {choices} "
            f"{among} ({np.log(choices):.2f}): weights, tokenizer or data may not be those of the training",
            fix="check the checkpoint, the vocabulary and the split; what is found here clears nobody",
        )
    ]


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
