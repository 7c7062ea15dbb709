"""MEDS-EIC-AR: autoregressive models of everything-is-code records (checked with 0.5.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from memguard.adapters._sequences import check_readable
from memguard.adapters.hf import HFAdapter, causal_lm
from memguard.errors import AbilityError
from memguard.records.content import Ragged

__all__ = ["MEICARAdapter", "codes_of", "is_meicar"]

Ints = NDArray[np.int64]

PAD = 0  # PAD_INDEX of MEDSTorchBatch


def is_meicar(module: Any) -> bool:
    """Whether a module is a ``MEICARModule``, or its ``Model``: known by its attributes, nothing is imported."""
    return _model(module) is not None


def codes_of(batch: Any) -> Ragged:
    """The sequences of a ``MEDSTorchBatch`` in subject-measurement mode, padding on either side taken off.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> batch = SimpleNamespace(code=torch.tensor([[5, 6, 0], [0, 8, 9]]))
        >>> codes_of(batch).values.tolist()
        [5, 6, 8, 9]
    """
    code = batch.code.detach().cpu().numpy()
    return Ragged.from_padded(code, code != PAD)


class MEICARAdapter(HFAdapter):
    """Ask the model of a ``MEICARModule``: its weights directly, whatever generation backend is set.

    Its loss is the mean over the codes of a batch after the first of each sequence, without padding (code 0), which
    is what minus the mean of ``log_probs`` is. A continuation ends with the code that ends a timeline, the
    ``eos_token_id`` that training gave the model, or where ``max_seq_len`` is reached: the window is not moved on.

    Args:
        module: A ``MEICARModule`` or its ``model``.
        batch: Most sequences in one call.
        vocabulary: V, if it is known and to be checked.

    Raises:
        AbilityError: If the module is of another kind.
        DataError: When asked about sequences with code 0 inside, which the model does not read.
    """

    def __init__(self, module: nn.Module, *, batch: int = 64, vocabulary: int | None = None) -> None:
        model = _model(module)
        if model is None:
            raise AbilityError(
                f"{type(module).__name__} without a model.HF_model",
                "this adapter asks MEDS-EIC-AR models only",
                "use HFAdapter or CausalAdapter",
            )
        super().__init__(
            model.HF_model, vocabulary=vocabulary, longest=int(model.max_seq_len), pad=PAD, batch=batch
        )

    def of(self, module: Any) -> MEICARAdapter:
        """Ask another ``MEICARModule`` in the same way.

        Raises:
            AbilityError: If it does not fit.
        """
        return MEICARAdapter(module, batch=self.batch, vocabulary=self.vocabulary)

    def _refuse(self, sequences: Ragged, *, empty: bool = True) -> None:
        check_readable(sequences, self.vocabulary, self.longest, forbidden=PAD, empty=empty)


def _model(module: Any) -> Any | None:
    for found in (module, getattr(module, "model", None)):
        language = getattr(found, "HF_model", None)
        if isinstance(language, nn.Module) and hasattr(found, "max_seq_len") and hasattr(found, "_hf_inputs"):
            return found if causal_lm(language) is not None else None
    return None
