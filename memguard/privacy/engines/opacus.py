"""The gradients of all records of a batch in one pass, by Opacus's formulas for single layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memguard.capture.call import LossCall
from memguard.capture.layout import LayoutMemory
from memguard.capture.losses import LossCapture, loss_of
from memguard.capture.stillness import forked_rng
from memguard.errors import AmbiguousLossError, MemguardWarning, PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.engines.backward import gradients, scalar_loss
from memguard.privacy.engines.base import Engine, Read, RunStep, Work
from memguard.privacy.engines.hooks import Hooks
from memguard.privacy.engines.loop import LoopEngine, shown
from memguard.privacy.engines.passes import Pass, Plan, asked_for, rounding, scales
from memguard.privacy.engines.rows import Rows
from memguard.privacy.engines.spread import UntoldError
from memguard.privacy.engines.still import no_dropout
from memguard.privacy.engines.weighting import (
    Weighting,
    by_identity,
    candidates,
    disagreeing,
    largest_difference,
)

__all__ = ["OpacusEngine"]

_TRIES = 4  # the first shows dimensions, the second views that are changed in place; twice with checkpointing
_ASKED = 3  # records that decide between weightings


class OpacusEngine(Engine):
    """One forward and one backward pass over a batch give the gradient of every record in it.

    Nothing of the module changes: no wrapper, no attribute, no replaced layer, and ``p.grad`` stays as it is. Where the
    records of a batch cannot be told apart, the batch is run by :class:`LoopEngine` instead, and a warning says so
    once: a slower sum, never a wrong one.

    Args:
        module: Whose ``training_step`` runs.
        parameters: What the optimizer trains.
        reduction: The loss is a ``"mean"`` over records or a ``"sum"``. ``"auto"`` finds it out in :meth:`calibrate`;
            without that, it accepts a loss that one function of ``torch.nn.functional`` returned.

    Attributes:
        weightings: Every way of weighing that fits the records seen so far; none until :meth:`calibrate`. Where two of
            them part in a batch, records of it are run alone, and those that are wrong are struck out.
        n_looped: Batches that were left to the loop.

    Guarantees:
        Right for losses that are a sum over records of what each record alone gives, up to known weights. Batch
        statistics, contrastive losses and partial likelihoods are not; :meth:`calibrate` refuses them.

    Note:
        The formulas for single layers are those of Opacus (Yousefpour et al. 2021, arXiv:2109.12298). Memory is one
        float32 copy of all parameters for each record: B * V * d * 4 bytes for an embedding.

    Example:
        >>> import numpy as np
        >>> from memguard.privacy.draws import Chunk
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> chunk = Chunk(draw=0, part=0, parts=1, positions=np.array([0, 1]), owner=np.array([0, 1]), n_owners=2)
        >>> into = ClippedSum(list(net.parameters()), max_grad_norm=1.0)
        >>> engine = OpacusEngine(net, list(net.parameters()), reduction="mean")
        >>> engine.attach()
        >>> _ = engine.accumulate(Work(x, chunk), lambda batch: net(batch).mean(), lambda i: x[i : i + 1], into)
        >>> engine.detach()
        >>> into.sums[0].tolist()
        [[1.0, 1.0]]
    """

    name = "opacus"

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        reduction: Literal["auto", "mean", "sum"] = "auto",
    ) -> None:
        super().__init__(module, parameters)
        if reduction not in ("auto", "mean", "sum"):
            raise PrivacyError(f"reduction={reduction!r}", "it is unknown", 'pass "auto", "mean" or "sum"')
        self.reduction = reduction
        self.weightings: list[Weighting] = [] if reduction == "auto" else [Weighting(reduction)]
        self.n_looped = 0
        self._refuted = ""
        self._hooks = Hooks(module, parameters)
        self._loop = LoopEngine(module, parameters)
        self._memory = LayoutMemory()
        self._attached = False

    @property
    def weighting(self) -> Weighting | None:
        """The most particular of :attr:`weightings`; ``None`` until one is known."""
        return self.weightings[0] if self.weightings else None

    def attach(self) -> None:
        """Put hooks on the layers; they sleep but within :meth:`accumulate` and the checks."""
        self._hooks.attach()
        self._attached = True

    def detach(self) -> None:
        """Take the hooks away. Idempotent."""
        self._hooks.detach()
        self._attached = False

    def accumulate(self, work: Work, run_step: RunStep, read: Read, into: ClippedSum) -> Any:
        """Add the clipped contribution of each owner; see :meth:`Engine.accumulate`."""
        n = len(work.chunk.positions)
        try:
            if n == 1:
                return self._loop.accumulate(work, run_step, lambda _: work.batch, into)
            returned, rows, scale = self._told(work, run_step, read)
        except (UntoldError, AmbiguousLossError) as problem:
            if self.n_looped == 0:
                warnings.warn(
                    MemguardWarning(
                        f"a batch of {n} records is run record by record: {problem.seen}",
                        "the sums are right, and slower",
                        'pass engine="loop" if this is so in most batches',
                    ),
                    stacklevel=2,
                )
            self.n_looped += 1
            return self._loop.accumulate(work, run_step, read, into)
        into.add(self._contributions(work, rows, scale))
        return shown(returned, scalar_loss(returned).detach())

    def calibrate(
        self, work: Work, run_step: RunStep, read: Read, *, tolerance: float | None = None
    ) -> Weighting:
        """Compare the gradients of a batch's records with those of each record alone, and learn how the loss weighs.

        Call it before training, with dropout off (:func:`~memguard.privacy.engines.still.no_dropout`), on a few
        records of different lengths.

        Args:
            work: At least three records.
            run_step: Runs the user's step on a batch.
            read: Gives the batch of one record alone.
            tolerance: Largest relative difference; 1e-3, or 8 roundings of the coarsest gradient, by default.

        Returns:
            How the loss weighs its records; all that fit are in :attr:`weightings`.

        Raises:
            PrivacyError: If no weighting makes them equal: the loss is not a sum over records.
        """
        n = len(work.chunk.positions)
        if n < 3:
            raise PrivacyError(
                f"{n} records to calibrate on", "too few to tell a mean from a sum", "pass at least 3"
            )
        alone = [self._alone(run_step(read(int(position)))) for position in work.chunk.positions]
        found = self._fitting(work, run_step, read, alone, tolerance)
        if isinstance(found, str):
            self._spread_uncovered(work, run_step, read)
            found = self._fitting(work, run_step, read, alone, tolerance)
        if isinstance(found, str):
            raise PrivacyError(
                f"the loss of a batch of {n} records is not a sum over its records ({found})",
                "what one patient contributes depends on others, so it cannot be clipped from a batch",
                'pass engine="loop", which runs every record alone, or let no record see another: no batch '
                "normalization, no contrast or ranking within a batch, padding masked",
            )
        self.weightings = found
        return found[0]

    def coverage(self, work: Work, run_step: RunStep, read: Read) -> dict[str, tuple[float, float]]:
        """Compare the sum over records with autograd's own gradient of the batch's loss, for each parameter.

        Args:
            work: At least two records.
            run_step: Runs the user's step on a batch.
            read: Gives the batch of one record alone.

        Returns:
            By name: the largest absolute difference, and the largest absolute value of autograd's gradient. A parameter
            that is used past its layer (``F.linear(h, embedding.weight)``) differs.
        """
        with forked_rng():
            rows = self._pass(work, run_step, read, lambda calls, loss: (1, [])).rows
        with forked_rng():
            whole = gradients(scalar_loss(run_step(work.batch)), self.parameters, self.module)
        names = {id(p): name for name, p in self.module.named_parameters()}
        found = {}
        for at, (p, grad) in enumerate(zip(self.parameters, whole, strict=True)):
            ours = rows.of[id(p)].sum(0) if id(p) in rows.of else torch.zeros_like(p)
            grad = torch.zeros_like(p) if grad is None else grad
            difference = (ours.detach() - grad).abs().max().item() if p.numel() else 0.0
            found[names.get(id(p), f"parameter {at}")] = (
                difference,
                grad.abs().max().item() if p.numel() else 0.0,
            )
        return found

    # -- one pass ---

    def _told(self, work: Work, run_step: RunStep, read: Read) -> tuple[Any, Rows, Tensor | None]:
        """A pass with its rows filled, and what they are to be multiplied by; None for nothing."""
        if self._refuted:
            raise UntoldError(self._refuted)
        fitting: list[Weighting] = []

        def plan(calls: list[LossCall], loss: Tensor) -> tuple[float, list[Tensor]]:
            one = by_identity(calls, loss)
            known = self.weightings or ([] if one is None else [one])
            # A loss that is the result of one function needs no guess.
            fitting[:] = [one] if one is not None and one in known else known
            if not fitting:
                raise PrivacyError(
                    "the loss that the step returned is not the result of one loss function",
                    "how it weighs the records of a batch is not known",
                    'call calibrate() first, or pass reduction="mean" if it is a mean over records, "sum" if a sum',
                )
            only_mean = [weighting.kind for weighting in fitting] == ["mean"]
            return len(work.chunk.positions) if only_mean else 1, asked_for(fitting, calls)

        for _ in range(1 + len(self.weightings)):
            seen = self._pass(work, run_step, read, plan)
            if len(fitting) == 1 and fitting[0].kind in ("mean", "sum"):
                return seen.returned, seen.rows, None
            factors, problem = scales(seen, fitting, work.batch, self._memory)
            told = [scale for scale in factors if scale is not None]
            if problem is not None and len(fitting) == 1:
                raise problem
            records = disagreeing(told, seen.rows, self.parameters, 2 * rounding(seen.rows))
            if problem is None and not records:
                return seen.returned, seen.rows, told[0]
            seen.rows.of.clear()  # not two at once in memory
            self._settle(work, run_step, read, (records or list(range(seen.rows.n)))[:_ASKED])
        raise UntoldError("several weightings of its records fit the loss", "one of them is wrong")

    def _settle(self, work: Work, run_step: RunStep, read: Read, records: Sequence[int]) -> None:
        """Strike out the weightings that do not give some records of a batch their own gradients.

        Raises:
            UntoldError: If none is left; from then on for every batch.
        """
        with self.aside(), no_dropout(), forked_rng():
            seen = self._pass(
                work, run_step, read, lambda calls, loss: (1, asked_for(self.weightings, calls))
            )
            alone = [self._alone(run_step(read(int(work.chunk.positions[i])))) for i in records]
        factors, _ = scales(seen, self.weightings, work.batch, self._memory)
        limit = rounding(seen.rows)
        self.weightings = [
            weighting
            for weighting, scale in zip(self.weightings, factors, strict=True)
            if scale is not None
            and largest_difference(self.parameters, seen.rows, scale, alone, records)[0] <= limit
        ]
        seen.rows.of.clear()
        if not self.weightings:
            self._refuted = "the loss is not a sum over its records, as it was for those before training"
            raise UntoldError(self._refuted, "what a record contributes depends on the others")

    def _pass(self, work: Work, run_step: RunStep, read: Read, plan: Plan) -> Pass:
        """Forward and backward, every dimension known; a record alone tells what one batch leaves open."""
        if not self._attached:
            raise PrivacyError(
                "the engine is not attached", "no gradient of a record would come up", "call attach()"
            )
        hooks, positions = self._hooks, work.chunk.positions
        for _ in range(_TRIES):
            with LossCapture() as heard:
                returned, rows = hooks.forward(len(positions), lambda: run_step(work.batch))
            if loss_of(returned) is None:
                raise UntoldError("the step returned no loss for a batch", "a record in it may have one")
            loss = scalar_loss(returned)
            if hooks.settled(rows):
                seed, more = plan(heard.calls, loss)
                asked = hooks.backward(returned, rows, seed=seed, more=more)
                if hooks.settled(rows):  # a checkpointed block is first seen on the way back
                    return Pass(returned, rows, heard.calls, loss, asked)
            if hooks.layouts.open:
                single, row = hooks.forward(1, lambda: run_step(read(int(positions[0]))))
                if loss_of(single) is not None:
                    hooks.backward(single, row)
        where = min(map(str, hooks.layouts.open), default="an output that is changed in place")
        raise UntoldError(f"which dimension counts the records is open at {where}", "rows may be no records")

    def _contributions(self, work: Work, rows: Rows, scale: Tensor | None) -> list[Tensor]:
        """``(P, *shape)`` for each parameter; the rows are used up."""
        chunk, n = work.chunk, rows.n
        device = self.parameters[0].device
        owner = torch.as_tensor(chunk.owner, device=device)
        weight = torch.ones(n, device=device) if scale is None else scale.to(device)
        if work.average == "mean":
            weight = weight / torch.bincount(owner, minlength=chunk.n_owners)[owner]
        one_each = chunk.n_owners == n and bool((chunk.owner == range(n)).all())
        found = []
        for p in self.parameters:
            mine = rows.of.pop(id(p), None)
            if mine is None:
                found.append(torch.zeros(1, device=p.device).expand(chunk.n_owners, *p.shape))
            elif one_each and scale is None:
                found.append(mine)
            else:
                factor = weight.to(mine).reshape(n, *[1] * p.dim())
                weighed = mine * factor if id(p) in rows.borrowed else mine.mul_(factor)
                # Row by row: in a product with zeros, a NaN of one owner would be everybody's.
                total = weighed if one_each else mine.new_zeros(chunk.n_owners, *p.shape)
                found.append(total if one_each else total.index_add_(0, owner, weighed))
        return found

    # -- calibration ---

    def _alone(self, returned: Any) -> list[Tensor | None]:
        if returned is None:
            return [None] * len(self.parameters)
        return gradients(scalar_loss(returned), self.parameters, self.module)

    def _fitting(
        self,
        work: Work,
        run_step: RunStep,
        read: Read,
        alone: list[list[Tensor | None]],
        tolerance: float | None,
    ) -> list[Weighting] | str:
        """The weightings that make rows and gradients of single records equal, or what differs."""

        def weightings(calls: list[LossCall], loss: Tensor) -> list[Weighting]:
            return [w for w in candidates(calls, loss) if self.reduction in ("auto", w.kind)]

        def plan(calls: list[LossCall], loss: Tensor) -> tuple[float, list[Tensor]]:
            return 1, asked_for(weightings(calls, loss), calls)

        seen = self._pass(work, run_step, read, plan)
        names = {id(p): name for name, p in self.module.named_parameters()}
        limit = rounding(seen.rows) if tolerance is None else tolerance
        closest, best, found = "", float("inf"), []
        known = weightings(seen.calls, seen.loss)
        for weighting, scale in zip(known, scales(seen, known, work.batch, self._memory)[0], strict=True):
            if scale is None:
                continue
            error, record, at = largest_difference(self.parameters, seen.rows, scale, alone)
            if error <= limit:
                found.append(weighting)
            elif error < best:
                name = names.get(id(self.parameters[at]), f"parameter {at}")
                best = error
                closest = (
                    f"the gradient of record {record} differs by {error:.2g} of its norm, mostly in {name}"
                )
        if found:
            return found
        return closest or "no weighting is known"

    def _spread_uncovered(self, work: Work, run_step: RunStep, read: Read) -> None:
        """Parameters that are used past their layer are given out as one copy a record from now on."""
        found = self.coverage(work, run_step, read)
        names = dict(self.module.named_parameters())
        limit = 1e-3 * max((scale for _, scale in found.values()), default=0.0)
        missed = {id(names[name]) for name, (error, _) in found.items() if error > limit and name in names}
        if missed - self._hooks.bare:
            self._hooks.bare |= missed
            self.attach()
