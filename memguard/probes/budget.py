"""What may be spent when training ends: members evaluated once more, and steps of a reference model."""

from __future__ import annotations

from typing import Literal

__all__ = ["final_budget", "reference_steps"]

_SHARE = 0.02  # of the training time that the final pass may cost on "auto"
_FORWARD = 1 / 3  # cost of evaluating a record, in units of training on it


def final_budget(n_trained: int, epochs: int, final_evaluation: Literal["auto"] | bool = "auto") -> int:
    """How many members the last look may evaluate.

    A backward pass costs about two forward ones, so a record is evaluated at a third of the price of training on
    it, and 2 % of the training time pays for 6 % of the members for each epoch: for all of them after 17 epochs.

    Args:
        n_trained: Training records seen at least once.
        epochs: Epochs of training finished; 0 counts as 1.
        final_evaluation: ``"auto"``, what 2 % of the training time pays for; ``True``, all; ``False``, none.

    Returns:
        A number from 0 to ``n_trained``.

    Example:
        >>> [final_budget(4000, epochs) for epochs in (0, 1, 5, 17)]
        [240, 240, 1200, 4000]
        >>> final_budget(4000, 5, True), final_budget(4000, 5, False)
        (4000, 0)
    """
    if final_evaluation is False:
        return 0
    if final_evaluation != "auto":
        return n_trained
    return min(n_trained, int(_SHARE * max(epochs, 1) * n_trained / _FORWARD))


def reference_steps(budget: float, steps: int) -> int:
    """Optimizer steps that a reference model may take, at least one.

    Args:
        budget: As a share of the run's own.
        steps: That the run took.

    Example:
        >>> reference_steps(0.4, 1000), reference_steps(0.001, 90)
        (400, 1)
    """
    return max(int(budget * steps), 1)
