"""Which dimension of a tensor counts the records: the one that has followed their number in every batch so far."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

__all__ = ["Layouts"]


class Layouts:
    """Dimensions that may count the records, for each place in a model, narrowed down by every batch.

    A batch of 5 records with 5 time steps does not tell ``(records, time)`` from ``(time, records)``; a batch of
    another size does. What one batch leaves open is listed in :attr:`open`, and no gradient may be built on it.

    Attributes:
        open: Places that are not settled, since :meth:`begin`.

    Example:
        >>> layouts = Layouts()
        >>> layouts.find("linear", (5, 5, 8), n=5, dims=range(2)), sorted(layouts.open)
        (0, ['linear'])
        >>> layouts.begin()
        >>> layouts.find("linear", (7, 1, 8), n=1, dims=range(2)), sorted(layouts.open)
        (1, [])
        >>> layouts.find("linear", (5, 5, 8), n=5, dims=range(2)), sorted(layouts.open)
        (1, [])
    """

    def __init__(self) -> None:
        self._dims: dict[Hashable, frozenset[int]] = {}
        self._sizes: dict[Hashable, set[int]] = {}
        self.open: set[Hashable] = set()

    def begin(self) -> None:
        """A new pass over the model."""
        self.open = set()

    def find(self, key: Hashable, shape: Sequence[int], *, n: int, dims: Iterable[int]) -> int | None:
        """The dimension that counts the records, or ``None`` if the tensor is the same for all of them.

        Args:
            key: The place in the model.
            shape: Of the tensor there, in this batch.
            n: Records in this batch.
            dims: Which dimensions can be meant.

        Returns:
            A dimension; the first of several while the place is open.
        """
        here = frozenset(d for d in dims if d < len(shape) and shape[d] == n)
        left = self._dims[key] = self._dims.get(key, here) & here
        sizes = self._sizes.setdefault(key, set())
        sizes.add(n)
        if n > 1 and (len(left) > 1 or len(sizes) < 2):
            self.open.add(key)
        return min(left) if left else None
