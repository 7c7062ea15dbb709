# ruff: noqa: D102
"""What a report needs of a probe's result and of the patients it is about, by attribute: no probe is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.findings import Gap, Grid, Lines

__all__ = ["EvidenceLike", "ProbeLike", "SubjectLike"]


class SubjectLike(Protocol):
    """Whom an audit is about (`memguard.probes.subject.Subject`), as far as a report needs it."""

    @property
    def n_members(self) -> int: ...
    @property
    def patient(self) -> NDArray[np.int64]: ...
    @property
    def strata(self) -> Mapping[str, NDArray[np.bool_]]: ...


class EvidenceLike(Protocol):
    """One number a record (`memguard.probes.result.Evidence`)."""

    @property
    def name(self) -> str: ...
    @property
    def row(self) -> NDArray[np.int64]: ...
    @property
    def value(self) -> NDArray[np.float64]: ...
    @property
    def p_value(self) -> NDArray[np.float64] | None: ...


class ProbeLike(Protocol):
    """What a probe found (`memguard.probes.result.ProbeResult`); its parts are read by attribute."""

    @property
    def probe(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def numbers(self) -> Mapping[str, Estimate]: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...
    @property
    def tables(self) -> Mapping[str, Grid]: ...
    @property
    def curves(self) -> Mapping[str, Lines]: ...
    @property
    def flagged(self) -> NDArray[np.int64]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def not_tested(self) -> Sequence[Gap]: ...
    @property
    def seconds(self) -> float: ...
