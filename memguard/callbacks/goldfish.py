"""The goldfish loss as a Lightning callback, on an unmodified module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from memguard.callbacks.weighing import Weighing
from memguard.capture import Capture
from memguard.capture.weigh import WeightRule
from memguard.mitigations.goldfish import GoldfishRule

__all__ = ["GoldfishLoss"]


class GoldfishLoss(Weighing):
    """Leave about one in ``k`` of each record's tokens out of its loss, the same ones whenever their context returns.

    For sequence models (Hans et al. 2024, arXiv:2406.10209). A token is left out if a hash of the ``h`` tokens before
    it falls into the lowest k-th of its range, so that in copies of a passage the same tokens are never learned, in
    every epoch and every record. Module, data, returned and logged loss stay as they are; the gradient is that of the
    mean over the tokens that stay (Equation 1 there), record by record: a record keeps its share in the loss of the
    batch, and its weights depend on itself alone. They therefore compose with :class:`~memguard.DPSGD`: they act on
    each record before clipping, and epsilon is what it was.

    Tokens are the targets of the module's cross entropy, in order, without padding and ignored positions. The first
    one always stays. With fewer than ``h`` before it, a token is hashed with those that there are and the beginning of
    the record. In the paper, tokens there are never left out, which for records of 10 to 30 codes would spare many.

    Args:
        k: About one of so many tokens is left out, at least 2. At 2 half of them are.
        h: Tokens before it that decide. A passage that begins elsewhere in another record, or in another window of the
            same one, is masked alike from its token ``h + 1`` on, which speaks for a small ``h``. What follows a
            context that is left out is learned from nobody, which speaks for one that few patients share. The paper has
            13, for text; 5 health codes in a row are mostly those of one patient, and fewer are not.
        seed: Of the hash. Another one leaves out other tokens.
        record_ids: ``None``, records are followed through the loaders; or a function ``batch -> ids``, or the name of
            an entry of the batch. Only their number is used. Beside a LeakageMonitor that one's argument counts.
        train_loader: Which training loader holds the sequences, where there are several.

    Raises:
        MemguardError: At the start of ``fit``, with manual optimization; at the second run of a step on one batch
            (LBFGS).
        IndexTrackingError: At the start, if the loader cannot be followed.
        AmbiguousLossError: At the first step, if its loss is not one cross entropy of sequences.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GoldfishLoss(k=4)], logger=False, enable_checkpointing=False)
        >>> trainer.callbacks[0].said()[:25]
        'GoldfishLoss(k=4, h=5): a'

    Note:
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``): no
        protection of the hardest patients was shown where training ends, at a higher loss. The paper measures that less
        text is reproduced word for word; that says nothing of membership, and the tokens that stay are learned in full.
        A token that is left out in one context is learned in another.
    """

    weights_depend_on: Literal["record", "data"] = "record"

    def __init__(
        self,
        k: int = 4,
        h: int = 5,
        *,
        seed: int = 0,
        record_ids: str | Callable[[Any], Any] | None = None,
        train_loader: str | int | None = None,
    ) -> None:
        super().__init__(record_ids, train_loader)
        GoldfishRule(k, h, seed)  # refused now and not when training starts
        self.k, self.h, self.seed = int(k), int(h), int(seed)
        self._touched: NDArray[np.bool_] | None = None

    @property
    def touched(self) -> NDArray[np.bool_] | None:
        """Training records ``(N,)`` that counted for less than whole: all of them; ``None`` before a training."""
        return self._touched

    @override
    def said(self) -> str:
        return (
            f"GoldfishLoss(k={self.k}, h={self.h}): about one in {self.k} of each record's tokens, by a hash of up to "
            f"{self.h} tokens before it, was left out of the loss. This depends on the record alone and gives no "
            "guarantee."
        )

    @override
    def _rule(self, trainer: pl.Trainer, capture: Capture) -> WeightRule:
        self._touched = np.ones(capture.tracker.n_records("train"), np.bool_)
        return GoldfishRule(self.k, self.h, self.seed)
