"""A tensor that is the same for every record, with one copy a record behind it, so that each copy gets its gradient.

A positional embedding, a class token or a learned scale is used once for a whole batch; autograd sums its gradient over
the records where it is broadcast. A :class:`Spread` looks like the one tensor to the user's code and runs every
operation record by record (``torch.func.vmap``); where it meets a tensor of the batch, the result is an ordinary
tensor of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import _set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from memguard.errors import PrivacyError
from memguard.privacy.engines.layouts import Layouts

__all__ = ["LOOP", "Spread", "Spreading", "UntoldError"]


LOOP = 'pass engine="loop", which runs every record alone'


class UntoldError(PrivacyError):
    """The gradients of single records cannot be told in this batch; the loop over records can."""

    def __init__(self, seen: str, why: str = "") -> None:
        super().__init__(seen, why, LOOP)


_METADATA = frozenset(
    [getattr(Tensor, name).__get__ for name in
     ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf", "layout", "is_sparse", "is_quantized",
      "is_meta", "is_mps", "is_xpu", "is_nested", "grad", "itemsize", "nbytes", "_version")]
    + [getattr(Tensor, name) for name in
       ("size", "dim", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "stride", "is_contiguous",
        "element_size", "get_device", "__len__", "__hash__", "data_ptr", "storage_offset", "__repr__", "__format__")]
)  # fmt: skip
_VALUES = frozenset(
    [Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.detach]
)
_EXPANDS = frozenset([Tensor.expand, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to])
_REPEATS = frozenset([Tensor.repeat, torch.tile, Tensor.tile])


class Spreading:
    """One pass over a model, as the spread tensors in it see it.

    Args:
        n: Records in the batch.
        layouts: Tells which dimension of an ordinary tensor counts the records.
        joints: Where a result carries its records, for each place; kept over passes.
    """

    def __init__(self, n: int, layouts: Layouts, joints: dict[Any, list[int]]) -> None:
        self.n, self.layouts, self.joints = n, layouts, joints
        self._calls: Counter[str] = Counter()

    def spread(self, rows: Tensor) -> Spread:
        """Wrap ``(n, *shape)`` rows, equal in value, as a tensor of shape ``shape``."""
        shown = rows.detach()[0]
        spread: Spread = Tensor._make_subclass(Spread, shown, rows.requires_grad)
        spread.rows, spread.shown, spread.within = rows, shown, self
        return spread

    def copies(self, tensor: Tensor) -> Tensor:
        """``(n, *shape)``: one view of a tensor a record."""
        return tensor.unsqueeze(0).expand(self.n, *tensor.shape)

    def apply(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation with spread tensors among its arguments, record by record."""
        name = getattr(func, "__name__", str(func))
        key = ("spread", name, self._calls[name])
        self._calls[name] += 1
        in_place = name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))
        if in_place and isinstance(args[0], Spread):
            raise _untold(f"{name} changes in place what all records share")
        if func in _EXPANDS or func in _REPEATS:
            expanded = self._expanded(key, func, args, kwargs)
            if expanded is not None:
                return expanded
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        dims = [self._dim((*key, at), leaves[at]) for at in tensors]
        met = any(
            d is not None and not isinstance(leaves[at], Spread) for at, d in zip(tensors, dims, strict=True)
        )

        def run(given: Sequence[Tensor], keep: Callable[[Tensor, int], Tensor]) -> Any:
            filled = list(leaves)
            for at, d, tensor in zip(tensors, dims, given, strict=True):
                of_batch = d is not None and not isinstance(leaves[at], Spread)
                filled[at] = keep(tensor, d) if of_batch and d is not None else tensor
            a, k = tree_unflatten(filled, spec)
            out = func(*a, **k)
            return a[0] if in_place else out

        inputs = [leaf.rows if isinstance(leaf, Spread) else leaf for leaf in (leaves[at] for at in tensors)]
        ways = tuple(0 if isinstance(leaves[at], Spread) else d for at, d in zip(tensors, dims, strict=True))
        each = torch.func.vmap(
            lambda *given: run(given, torch.Tensor.unsqueeze), in_dims=ways, randomness="same"
        )
        _set_vmap_fallback_warning_enabled(False)  # slow there, and right
        try:
            if in_place and dims[0] is None:
                raise _untold(f"{name} writes into a tensor that is not of the batch")
            out = each(*inputs)
            if in_place:
                return args[0]
            if not met:
                return tree_map(lambda t: self.spread(t) if isinstance(t, Tensor) else t, out)
            outs, out_spec = tree_flatten(out)
            if not all(isinstance(t, Tensor) for t in outs):
                raise _untold(f"{name} gives no tensor")
            where = self._joints(key, run, inputs, ways, [leaves[at] for at in tensors])
            return tree_unflatten(
                [t.squeeze(1 + e).movedim(0, e) for t, e in zip(outs, where, strict=True)], out_spec
            )
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            raise _untold(f"{name} cannot be run record by record ({error})") from error
        finally:
            _set_vmap_fallback_warning_enabled(True)

    def _dim(self, key: Any, tensor: Tensor) -> int | None:
        if isinstance(tensor, nn.Parameter) and not isinstance(tensor, Spread):
            return None
        if isinstance(tensor, Spread):
            return 0
        return self.layouts.find(key, tensor.shape, n=self.n, dims=range(tensor.dim()))

    def _joints(
        self,
        key: Any,
        run: Callable[..., Any],
        inputs: list[Tensor],
        ways: tuple[int | None, ...],
        leaves: list[Any],
    ) -> list[int]:
        """The dimension of each result that counts the records: the one that grows with them, on meta tensors."""

        def shapes(n: int) -> list[torch.Size]:
            given = []
            for tensor, way, leaf in zip(inputs, ways, leaves, strict=True):
                shape = list(tensor.shape)
                if isinstance(leaf, Spread):
                    shape = shape[1:]
                elif way is not None:
                    shape[way] = n
                given.append(torch.empty(shape, dtype=tensor.dtype, device="meta"))
            with torch.no_grad():
                return [t.shape for t in tree_flatten(run(given, lambda t, d: t))[0]]

        key = (*key, tuple(t.dim() for t in inputs))
        if key not in self.joints:
            few, more = shapes(2), shapes(3)
            grown = [[d for d in range(len(a)) if a[d] != b[d]] for a, b in zip(few, more, strict=True)]
            if any(len(each) != 1 or a[each[0]] != 2 for each, a in zip(grown, few, strict=True)):
                raise _untold(f"{key[1]} mixes records")
            self.joints[key] = [each[0] for each in grown]
        return self.joints[key]

    def _expanded(
        self, key: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """``token.expand(batch size, ...)`` is where a shared tensor becomes one of the batch."""
        spread = args[0]
        if not isinstance(spread, Spread) or kwargs:
            return None
        given = args[1:]
        if func is Tensor.expand_as:
            given = tuple(given[0].shape)
        elif len(given) == 1 and isinstance(given[0], (tuple, list, torch.Size)):
            given = tuple(given[0])
        shape = spread.shown.shape
        new = len(given) - len(shape)
        old = (1,) * new + tuple(shape)
        # Of the dimensions that are stretched, the one that follows the records.
        stretched = [want if have == 1 else -1 for have, want in zip(old, given, strict=True)]
        if self.n == 1:
            stretched = [
                1 if want == -1 and have == 1 else want for have, want in zip(old, stretched, strict=True)
            ]
        d = self.layouts.find(key, stretched, n=self.n, dims=range(len(stretched)))
        if d is None:
            return None
        rows = spread.rows.reshape(self.n, *old).squeeze(1 + d).movedim(0, d)
        if func in _REPEATS:
            return rows.repeat(*given[:d], 1, *given[d + 1 :])
        return rows.expand(*given[:d], self.n, *given[d + 1 :])


class Spread(Tensor):
    """One tensor to look at, one copy for each record behind it; see the module.

    Attributes:
        rows: ``(n, *shape)``, the copies, equal in value.
        shown: The tensor as the user sees it, without a graph.
        within: The pass that it belongs to.
    """

    rows: Tensor
    shown: Tensor
    within: Spreading

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every operation on it comes here."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _VALUES or getattr(func, "__self__", None) is Tensor.data or not torch.is_grad_enabled():
            plain = tree_map(lambda t: t.shown if isinstance(t, Spread) else t, (args, kwargs))
            return func(*plain[0], **plain[1])
        first = next(leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Spread))
        return first.within.apply(func, args, kwargs)


def _untold(seen: str) -> UntoldError:
    return UntoldError(seen, "the gradients of single records cannot be taken apart there")
