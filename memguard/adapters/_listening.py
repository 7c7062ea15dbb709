"""What goes on inside a forward pass: which tables are looked up, and what the output layer is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Listener"]

_PRODUCTS = frozenset(
    {torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.addmm}
)
_LOOKUPS = frozenset({torch.nn.functional.embedding, torch.embedding, Tensor.__getitem__})


class Listener(TorchFunctionMode):
    """Hears the calls of torch functions while it is entered; it changes none of them.

    An ``nn.Linear`` or ``nn.Embedding`` is heard as well as its bare function, so that a head that shares the
    embedding's weights is found too.

    Attributes:
        lookups: Table and indices of each embedding lookup, in order.
        products: Left factor and shape of the result of each matrix product, in order.

    Example:
        >>> emb = torch.nn.Embedding(5, 3)
        >>> with Listener(products_of=5) as heard:
        ...     logits = emb(torch.tensor([[1, 2]])) @ emb.weight.T
        >>> heard.lookups[0][1].tolist(), tuple(heard.products[-1][0].shape)
        ([[1, 2]], (1, 2, 3))
    """

    def __init__(self, products_of: int | None = None) -> None:
        super().__init__()
        self._products_of = products_of
        self.lookups: list[tuple[Tensor, Tensor]] = []
        self.products: list[tuple[Tensor, tuple[int, ...]]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function and remember what it was given."""
        out = func(*args, **(kwargs or {}))
        if func in _LOOKUPS and len(args) >= 2 and isinstance(args[1], Tensor):
            # torch.nn.functional.embedding takes the indices first, the others the table.
            table, indices = args[:2] if func is not torch.nn.functional.embedding else args[1::-1]
            if not indices.is_floating_point():
                self.lookups.append((table, indices.detach()))
        elif func in _PRODUCTS and isinstance(out, Tensor) and out.ndim > 1:
            left = args[1] if func is torch.addmm else args[0]
            if out.shape[-1] == self._products_of and isinstance(left, Tensor):
                self.products.append((left, tuple(out.shape)))
        return out
