"""Before the first private step: the engine shows on a few patients that it does what the guarantee assumes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memguard.capture.evaluation import silenced
from memguard.capture.layout import tensors_in
from memguard.capture.stillness import untouched
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.draws import Chunk
from memguard.privacy.engines.base import Engine, RunStep, Work
from memguard.privacy.engines.loop import LoopEngine
from memguard.privacy.engines.still import no_dropout
from memguard.privacy.guards.batch_statistics import batch_statistics, changed_buffers, moving_buffers
from memguard.privacy.guards.finding import Finding
from memguard.privacy.guards.sensitivity import sensitivity

__all__ = ["Prepared", "Trial", "prepare", "refuse"]

_CANDIDATES, _OWNERS, _RECORDS = 24, 5, 3
_LOW = 1e-2


@dataclass(frozen=True)
class Trial:
    """What the checks may use.

    Attributes:
        owner: ``(N,)`` owner of each record.
        read: Gives the batch of some records, on the device.
        run_step: The user's step, silent.
        max_grad_norm: C.
        average: Over an owner's records.
        seed: Entropy that all processes share, so that all of them look at the same records.
        joins: Whether ``read`` puts several records into one batch of the user's kind; else it gives a list of batches,
            and only the loop can run them.
    """

    owner: NDArray[np.int64]
    read: Callable[[Sequence[int]], Any]
    run_step: RunStep
    max_grad_norm: float
    average: Literal["mean", "sum"]
    seed: bytes
    joins: bool = True


@dataclass(frozen=True)
class Prepared:
    """An engine that passed, and what the ledger is told.

    Attributes:
        engine: Attached.
        findings: That go into the ledger.
        facts: What was measured, for the ledger.
    """

    engine: Engine
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(
    kind: Literal["auto", "opacus", "loop"],
    trainer: Any,
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    trial: Trial,
    *,
    checks: bool = True,
) -> Prepared:
    """Attach an engine and test it.

    Args:
        kind: Which one; ``"auto"`` takes the fastest that passes.
        trainer: Whose loggers are silenced meanwhile.
        module: The LightningModule.
        parameters: What the optimizer trains.
        trial: Records to test on.
        checks: Whether to test at all. The engine is calibrated in any case.

    Returns:
        The attached engine.

    Raises:
        PrivacyError: If no engine of that kind passes, with the reason of the last.

    Guarantees:
        None of these tests is a proof: they look at a few records, at the first weights. They find a loss that is no
        sum over records, a module whose gradients cannot be told apart, a parameter that is reached past the engine.
    """
    if not parameters:
        raise PrivacyError(
            "the optimizer has no parameter that requires a gradient", "there is nothing to train", ""
        )
    if kind == "opacus" and not trial.joins:
        raise PrivacyError(
            'engine="opacus" with batch_size=None and one record a batch',
            "only the loader of the user knows how to put several records into one batch",
            'pass engine="loop", or give the loader a batch_size and a collate_fn',
        )
    kinds = {"auto": ["opacus", "loop"] if trial.joins else ["loop"]}
    names = kinds.get(kind, [kind])
    refusals: list[str] = []
    for name in names:
        engine = _engine(name)(module, parameters)
        try:
            engine.attach()
            prepared = _tested(engine, trainer, module, parameters, trial, checks=checks)
        except PrivacyError as error:
            engine.detach()
            if name == names[-1]:
                if refusals:
                    raise PrivacyError(
                        f"{error.seen} ({'; '.join(refusals)})", error.why, error.fix
                    ) from error
                raise
            refusals.append(f"{name}: {error.seen}")
            continue
        except BaseException:
            engine.detach()
            raise
        if refusals:
            warnings.warn(
                MemguardWarning(
                    f"the engine of choice does not fit this module ({'; '.join(refusals)})",
                    "gradients are computed one record at a time, which is exact and slow",
                    'pass engine="loop" to choose it yourself, or change the module',
                ),
                stacklevel=2,
            )
            prepared.facts["refused"] = refusals
        return prepared
    raise AssertionError("unreachable")


def _engine(name: str) -> type[Engine]:
    if name == "loop":
        return LoopEngine
    from memguard.privacy.engines.opacus import OpacusEngine

    return OpacusEngine


def _tested(
    engine: Engine,
    trainer: Any,
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    trial: Trial,
    *,
    checks: bool,
) -> Prepared:
    prepared = Prepared(engine)
    with rehearsal(trainer, module), no_dropout():
        chosen = _chosen(trial)
        whole = _work(trial, chosen, list(range(len(chosen))))
        one = _reader(trial)
        engine.aside = partial(rehearsal, trainer, module)
        try:
            weighting = engine.calibrate(whole, trial.run_step, one)
        except PrivacyError as error:
            if _same_again(trial, chosen, whole.batch):
                raise
            raise PrivacyError(
                "batches that differ each time the same records are put into one (a collate_fn that draws at random)",
                "the gradients of a batch cannot be compared with those of its records before training",
                'pass engine="loop", which runs every record alone, or draw at random in the dataset\'s __getitem__, '
                "for each record by itself",
            ) from error
        if weighting is not None:
            prepared.facts["weighting"] = str(weighting.kind)
        if not checks:
            return prepared

        def sum_of(owners: Sequence[int], clip: float) -> list[Tensor]:
            into = ClippedSum(parameters, clip)
            if owners:
                engine.accumulate(_work(trial, chosen, owners), trial.run_step, one, into)
            return into.sums

        everybody = range(len(chosen))
        found = sensitivity(partial(sum_of, clip=trial.max_grad_norm), everybody, trial.max_grad_norm)
        found.require()
        # Where everybody is clipped, a clipping of each layer by itself or of too few gradients shows.
        low = _LOW * trial.max_grad_norm
        sensitivity(partial(sum_of, clip=low), everybody, low, companions=False).require()
        _somebody_contributes(sum_of(everybody, trial.max_grad_norm))
        prepared.facts["what"] = f"sensitivity to {found.n_owners} owners before training"
        prepared.facts["max_sensitivity"] = found.max_ratio
        prepared.facts["owners_looked_at"] = found.n_owners
        if found.finding is not None:
            prepared.findings.append(found.finding)
        batch_statistics(module).require()
        changed_buffers(module, [partial(_forward, trial, records) for records in chosen]).require()
        moving_buffers(module, partial(_forward, trial, chosen[0])).require()
    return prepared


def refuse(findings: Sequence[Finding]) -> None:
    """Raise the first finding under which the guarantee would not hold.

    Raises:
        PrivacyError: If there is one.
    """
    for finding in findings:
        if finding.severity == "refuse":
            raise finding.error()


def _somebody_contributes(sums: Sequence[Tensor]) -> None:
    if not any(bool(total.any()) for total in sums):
        raise PrivacyError(
            "the training step gives no parameter of the optimizer a gradient, on records one by one",
            "the model would learn from the noise alone",
            "return the loss from training_step, computed with the parameters that configure_optimizers hands over; a "
            "loss between records (contrast, ranking, partial likelihood) is nothing for a record alone: use one that "
            "each record has by itself, or let a record of the dataset hold a patient's pairs",
        )


def _forward(trial: Trial, records: Sequence[int]) -> None:
    for some in [records] if trial.joins else [[record] for record in records]:
        trial.run_step(trial.read(some))


@contextlib.contextmanager
def rehearsal(trainer: Any, module: nn.Module) -> Iterator[None]:
    """Training steps without a trace: nothing is logged, and module and randomness are as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    with untouched(module), silenced(trainer, module), torch.enable_grad():
        for part, mode in modes:
            part.training = mode
        yield


def _chosen(trial: Trial) -> list[list[int]]:
    """Records of a few owners: among some drawn at random, those with the most and the least to them."""
    rng = np.random.default_rng(np.frombuffer(trial.seed[:8], dtype=np.uint32))
    owners = np.unique(trial.owner[trial.owner >= 0])
    some = rng.choice(owners, min(_CANDIDATES, len(owners)), replace=False)
    records = {int(o): np.flatnonzero(trial.owner == o)[:_RECORDS].tolist() for o in some}
    weight = {o: sum(_elements(trial.read([r])) for r in rows) for o, rows in records.items()}
    ranked = sorted(records, key=lambda o: (weight[o], o))
    if len(ranked) > _OWNERS:
        ranked = [*ranked[:1], *ranked[1 :: max(1, len(ranked) // (_OWNERS - 2))][: _OWNERS - 2], ranked[-1]]
    return [records[o] for o in dict.fromkeys(ranked)]


def _elements(batch: Any) -> int:
    return sum(tensor.numel() for _, tensor in tensors_in(batch))


def _work(trial: Trial, chosen: list[list[int]], owners: Sequence[int]) -> Work:
    positions = np.asarray([r for o in owners for r in chosen[o]], dtype=np.int64)
    owner = np.repeat(np.arange(len(owners)), [len(chosen[o]) for o in owners]).astype(np.int64)
    chunk = Chunk(draw=0, part=0, parts=1, positions=positions, owner=owner, n_owners=len(owners))
    return Work(trial.read(positions.tolist()), chunk, trial.average)


def _same_again(trial: Trial, chosen: list[list[int]], batch: Any) -> bool:
    """Whether the same records give the same batch when they are read again."""
    again = trial.read([record for records in chosen for record in records])
    first, second = (dict(tensors_in(each)) for each in (batch, again))
    return first.keys() == second.keys() and all(
        value.shape == second[key].shape
        and torch.equal(torch.nan_to_num(value), torch.nan_to_num(second[key]))
        for key, value in first.items()
    )


def _reader(trial: Trial) -> Callable[[int], Any]:
    return lambda position: trial.read([position])
