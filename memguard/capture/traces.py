"""The loss of each record once an epoch, in two bytes: what the run reveals about who is being memorized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from memguard.errors import DataError, IndexTrackingError

__all__ = ["LossTraces"]

_VERSION = 1
_Floats = np.ndarray[Any, np.dtype[Any]]


class LossTraces:
    """One loss for each record and snapshot; NaN where a record was not seen.

    Within a snapshot the first observation of a record counts, so the repeats with which distributed
    samplers pad an epoch, and those of samplers with replacement, do not blur it.

    Args:
        n_records: N.
        dtype: Storage, float16 (2 bytes a record and snapshot, three decimal digits) or float32.
        fingerprint: Says which dataset the positions belong to; checked when a state is loaded.

    Example:
        >>> traces = LossTraces(3)
        >>> traces.add([2, 0], [0.5, 1.0])
        >>> traces.close(epoch=0)
        True
        >>> traces.array().tolist(), traces.coverage
        ([[1.0, nan, 0.5]], 0.666...)
    """

    def __init__(self, n_records: int, dtype: Any = np.float16, *, fingerprint: str = "") -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
            raise DataError(
                f"traces of {self.dtype}", "more bytes hold no more of a loss", "use float16 or float32"
            )
        self.n_records, self.fingerprint = int(n_records), fingerprint
        self._rows: _Floats = np.empty((0, self.n_records), dtype=self.dtype)
        self._n_rows = 0
        self._current = np.full(self.n_records, np.nan, dtype=np.float32)
        self._pending: list[tuple[_Floats, _Floats]] = []
        self._seen = np.zeros(self.n_records, dtype=bool)
        self.epochs: list[int] = []
        self.steps: list[int] = []

    def __len__(self) -> int:
        return self._n_rows

    def add(self, positions: Any, loss: Any) -> None:
        """Note losses seen in a step.

        Args:
            positions: ``(B,)`` positions of the records.
            loss: ``(B,)`` losses; NaN (no predicted position) is left out.

        Raises:
            IndexTrackingError: If the lengths differ or a position lies outside the dataset.
        """
        rows = np.asarray(positions, dtype=np.int64).reshape(-1)
        values = np.asarray(loss, dtype=np.float32).reshape(-1)
        if len(rows) != len(values):
            raise IndexTrackingError(
                f"{len(rows)} positions for {len(values)} losses",
                "a loss would be given to the wrong record",
                "pass record_ids= with one id per record",
            )
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_records):
            raise IndexTrackingError(
                f"position {int(rows.max())} in traces of {self.n_records} records",
                "the dataset changed its length after the run began",
                "keep one dataset for the whole fit",
            )
        # First one wins: skip what is known, then write backwards so that the earliest repeat is written
        # last.
        keep = np.isnan(self._current[rows]) & ~np.isnan(values)
        rows, values = rows[keep][::-1], values[keep][::-1]
        self._current[rows] = values

    def close(self, epoch: int | None = None, step: int | None = None) -> bool:
        """End a snapshot.

        Returns:
            False if nothing was seen since the last one; then no snapshot is made.
        """
        fresh = ~np.isnan(self._current)
        if not fresh.any():
            return False
        self._reserve(self._n_rows + 1)
        limit = np.finfo(self.dtype).max
        self._rows[self._n_rows] = np.clip(self._current, -limit, limit)
        self._n_rows += 1
        self._seen |= fresh
        self._current.fill(np.nan)
        self.epochs.append(int(epoch) if epoch is not None else self._n_rows - 1)
        self.steps.append(int(step) if step is not None else -1)
        return True

    def array(self) -> _Floats:
        """``(S, N)`` snapshots in order, in the storage dtype; a read-only view, nothing is copied."""
        view = self._rows[: self._n_rows]
        view.flags.writeable = False
        return view

    @property
    def current(self) -> _Floats:
        """``(N,)`` float32, the open snapshot; a view."""
        return self._current

    @property
    def coverage(self) -> float:
        """Share of the records that were seen at least once."""
        return float((self._seen | ~np.isnan(self._current)).mean()) if self.n_records else 0.0

    def first(self) -> _Floats:
        """``(N,)`` float32, each record's earliest loss; NaN where there is none."""
        out = np.full(self.n_records, np.nan, dtype=np.float32)
        for row in self._rows[: self._n_rows]:
            missing = np.isnan(out)
            if not missing.any():
                break
            out[missing] = row[missing]
        return out

    # -- ranks ---

    def payload(self) -> dict[str, _Floats]:
        """What this rank saw in the open snapshot, small enough to be gathered."""
        rows = np.flatnonzero(~np.isnan(self._current))
        return {"positions": rows, "loss": self._current[rows].copy()}

    def merge(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Replace the open snapshot by those of all ranks; a record seen on several ranks counts once.

        Args:
            payloads: What :meth:`payload` gave on each rank, in rank order; the same list on every rank.

        Example:
            >>> traces = LossTraces(3)
            >>> first, second = {"positions": [0, 1], "loss": [1, 2]}, {"positions": [2, 0], "loss": [3, 9]}
            >>> traces.merge([first, second])
            >>> traces.current.tolist()
            [1.0, 2.0, 3.0]
        """
        self._current.fill(np.nan)
        for payload in payloads:
            self.add(payload["positions"], payload["loss"])

    # -- state ---

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only, so that a checkpoint loads under ``weights_only=True``."""
        return {
            "version": _VERSION,
            "n_records": self.n_records,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype.name,
            "snapshots": torch.from_numpy(self._rows[: self._n_rows].copy()),
            "current": torch.from_numpy(self._current.copy()),
            "epochs": list(self.epochs),
            "steps": list(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run.

        Raises:
            DataError: If the state belongs to another version or to another dataset.
        """
        if state.get("version") != _VERSION:
            raise DataError(
                f"traces of version {state.get('version')}", "their layout is not known", "train anew"
            )
        if int(state["n_records"]) != self.n_records or (
            self.fingerprint and state["fingerprint"] and state["fingerprint"] != self.fingerprint
        ):
            raise DataError(
                f"the checkpoint's traces are of {state['n_records']} records "
                f"({state['fingerprint'] or 'unnamed'}), the dataset has {self.n_records} "
                f"({self.fingerprint or 'unnamed'})",
                "losses would be given to other patients' records",
                "resume with the dataset that the run began with",
            )
        snapshots = state["snapshots"].numpy()
        self._rows = np.empty((0, self.n_records), dtype=self.dtype)
        self._n_rows = 0
        self._reserve(len(snapshots))
        self._rows[: len(snapshots)] = snapshots
        self._n_rows = len(snapshots)
        self._current = state["current"].numpy().astype(np.float32).copy()
        self.epochs, self.steps = [int(e) for e in state["epochs"]], [int(s) for s in state["steps"]]
        self._seen = np.zeros(self.n_records, dtype=bool)
        for row in self._rows[: self._n_rows]:
            self._seen |= ~np.isnan(row)

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._rows):
            return
        # Pages that were never written cost nothing, so doubling is cheap in memory that is really used.
        grown = np.empty((max(8, rows, 2 * len(self._rows)), self.n_records), dtype=self.dtype)
        grown[: self._n_rows] = self._rows[: self._n_rows]
        self._rows = grown
