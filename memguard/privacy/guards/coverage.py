"""Are all gradients seen? What an engine computes for each record, against what autograd computes for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memguard.privacy.guards.finding import Finding, Verdict

__all__ = ["Coverage", "Covered", "coverage", "optimizer_covers", "weights_moved"]


@dataclass(frozen=True, kw_only=True)
class Coverage(Verdict):
    """What :func:`coverage` found.

    Attributes:
        errors: For each parameter, the norm of the difference as a share of the larger of its two norms (or of a
            thousandth of the norm over all parameters, where that is larger).
        worst: Name of the parameter with the largest one.
    """

    errors: dict[str, float]
    worst: str | None


@dataclass(frozen=True, kw_only=True)
class Covered(Verdict):
    """What :func:`optimizer_covers` or :func:`weights_moved` found.

    Attributes:
        missing: Parameters that are trained and not clipped; or that did not move.
        idle: Parameters that are clipped and not trained.
    """

    missing: tuple[str, ...]
    idle: tuple[str, ...] = ()


def coverage(
    per_record_sum: Mapping[str, Tensor],
    autograd: Mapping[str, Tensor | None],
    *,
    tolerance: float = 1e-3,
) -> Coverage:
    """Compare the sum of the unclipped gradients of single records with autograd's gradient of the summed loss.

    Args:
        per_record_sum: For each parameter, what the engine under test gives with C at infinity.
        autograd: For each parameter, the gradient of the sum of the losses of the same records; ``None`` is zero.
        tolerance: What rounding may add; 1e-3 is for float32. There is no chance in this test.

    Returns:
        The verdict; parameters that only one side has are differences.

    Guarantees:
        A difference shows a gradient that reaches a parameter past the engine (a weight used by ``F.linear`` outside
        of its module, a module without hooks), or a batch whose loss is not a sum over records. Agreement is about
        this batch and these parameters: a branch that it did not take was not seen.

    Example:
        >>> coverage({"w": torch.ones(2)}, {"w": torch.ones(2)}).ok
        True
        >>> coverage({"w": torch.ones(2)}, {"w": torch.ones(2), "b": torch.ones(1)}).worst
        'b'
    """
    names = sorted(set(per_record_sum) | set(autograd))
    ours = {n: _float(per_record_sum.get(n)) for n in names}
    theirs = {n: _float(autograd.get(n)) for n in names}
    floor = 1e-3 * max(_norm(theirs.values()), _norm(ours.values()))
    errors = {name: _error(ours[name], theirs[name], floor) for name in names}
    worst = max(errors, key=lambda n: errors[n]) if errors else None
    finding = None
    if worst is not None and not errors[worst] <= tolerance:
        n = sum(not value <= tolerance for value in errors.values())
        finding = Finding(
            "coverage/differs",
            f"gradients of single records do not add up to the gradient of the batch in {n} of {len(names)} "
            f"parameters, most in {worst} ({errors[worst]:.2g} of its norm)",
            "what is clipped is then not what is trained with, and a part of a patient's influence has no bound",
            'use the engine "loop", or let every parameter be used by its own module alone',
        )
    return Coverage(finding=finding, errors=errors, worst=worst)


def optimizer_covers(
    trained: Iterable[tuple[str, nn.Parameter]], clipped: Iterable[tuple[str, nn.Parameter]]
) -> Covered:
    """Compare the parameters that an optimizer trains with those whose gradients are clipped and noised.

    Args:
        trained: Names and parameters of the optimizer.
        clipped: Names and parameters of the engine.

    Returns:
        The verdict. Identity counts, not names: an optimizer over copies made before ``model.to(device)`` trains
        nothing.

    Example:
        >>> a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        >>> optimizer_covers([("a", a), ("b", b)], [("a", a)]).missing
        ('b',)
    """
    optimizer, engine = {id(p): n for n, p in trained}, {id(p): n for n, p in clipped}
    missing = tuple(name for key, name in optimizer.items() if key not in engine)
    idle = tuple(name for key, name in engine.items() if key not in optimizer)
    finding = None
    if missing or idle:
        what = [f"{len(missing)} trained and not clipped ({', '.join(missing[:5])})"] if missing else []
        what += [f"{len(idle)} clipped and not trained ({', '.join(idle[:5])})"] if idle else []
        finding = Finding(
            "coverage/parameters",
            f"optimizer and clipping know different parameters: {'; '.join(what)}",
            "a gradient that is not clipped carries whole patients, and one that is not trained is noise for nothing",
            "give the optimizer exactly the parameters that require a gradient, after the model is on its device, "
            "and do not thaw layers during training",
        )
    return Covered(finding=finding, missing=missing, idle=idle)


def weights_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Covered:
    """Did the first noisy step change every parameter? With noise on all of them, none can stay.

    Args:
        before: Parameters of the model before the step, copies.
        after: The same after it.

    Returns:
        The verdict; ``missing`` names those that stayed bit for bit. A learning rate of 0 in the first step (warm-up)
        looks the same: ask after a step that had one.

    Example:
        >>> weights_moved({"w": torch.zeros(2)}, {"w": torch.zeros(2)}).missing
        ('w',)
    """
    still = tuple(name for name, value in before.items() if torch.equal(value, after[name]))
    finding = None
    if still:
        finding = Finding(
            "coverage/still",
            f"{len(still)} of {len(before)} parameters did not move in a noisy step ({', '.join(still[:5])})",
            "epsilon is spent on parameters that the model does not use",
            "build the optimizer from the parameters of the model that is trained, on its device",
        )
    return Covered(finding=finding, missing=still)


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().to("cpu", torch.float64)


def _norm(values: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(v.square().sum()) for v in values if v is not None))


def _error(ours: Tensor | None, theirs: Tensor | None, floor: float) -> float:
    if ours is None or theirs is None:
        size = _norm([ours, theirs])
        return size / max(size, floor) if size else 0.0
    if ours.shape != theirs.shape:
        return float("inf")
    scale = max(_norm([ours]), _norm([theirs]), floor)
    return _norm([ours - theirs]) / scale if scale else 0.0
