"""Listen to the loss functions that a step calls, without changing what they return.

The handler only runs the call as it was written and notes its per-element values. Everything else (which
call is the step's loss, whose value is whose) is decided after the step, in :mod:`memguard.capture.losses`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily

from memguard.capture.call import LossCall
from memguard.capture.graph import kept_log_p, values_at

__all__ = ["LIKELIHOODS", "LossCapture"]

_CLASSES = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")
_PLAIN = ("input", "target", "size_average", "reduce", "reduction")
# Positional names, in the order of the signatures in torch.nn.functional.
_SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    F.cross_entropy: (*_CLASSES, "label_smoothing"),
    F.nll_loss: _CLASSES,
    F.binary_cross_entropy: ("input", "target", "weight", "size_average", "reduce", "reduction"),
    F.binary_cross_entropy_with_logits: (
        "input", "target", "weight", "size_average", "reduce", "reduction", "pos_weight",
    ),
    F.mse_loss: (*_PLAIN, "weight"),
    F.l1_loss: (*_PLAIN, "weight"),
    F.smooth_l1_loss: (*_PLAIN, "beta"),
    F.huber_loss: ("input", "target", "reduction", "delta", "weight"),
    F.gaussian_nll_loss: ("input", "target", "var", "full", "eps", "reduction"),
    F.poisson_nll_loss: (
        "input", "target", "log_input", "full", "size_average", "eps", "reduce", "reduction",
    ),
    F.kl_div: (*_PLAIN, "log_target"),
}  # fmt: skip
_LOSSES = frozenset(_SIGNATURES)
_FLATTENING = frozenset({Tensor.reshape, Tensor.view, Tensor.flatten, torch.reshape, torch.flatten})
_PROOFS = 3
_HELD = 4

LIKELIHOODS = frozenset(
    {"cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
     "gaussian_nll_loss", "poisson_nll_loss", "kl_div"}
)  # fmt: skip
"""Loss functions whose values are nats; the others (squared error, ...) are in the loss's own unit."""


class _Unseen:
    """Hides the listening from modules that choose their arithmetic by ``torch.overrides.has_torch_function``.

    In evaluation, torch's transformer layers and attention take a fused path unless a function mode is active, and
    its last bits differ. While someone listens, the question is answered as if nobody did.
    """

    lock = threading.Lock()
    listeners = 0
    asked: Callable[..., bool] = torch.overrides.has_torch_function

    @classmethod
    def begin(cls) -> None:
        with cls.lock:
            cls.listeners += 1
            if cls.listeners == 1:
                cls.asked = torch.overrides.has_torch_function
                torch.overrides.has_torch_function = _has_torch_function  # type: ignore[assignment]

    @classmethod
    def end(cls) -> None:
        with cls.lock:
            cls.listeners -= 1
            if cls.listeners == 0 and torch.overrides.has_torch_function is _has_torch_function:
                torch.overrides.has_torch_function = cls.asked


def _has_torch_function(relevant_args: Any) -> bool:
    if torch.compiler.is_compiling():
        return bool(_Unseen.asked(relevant_args))
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if not stack or not isinstance(stack[-1], LossCapture):
        return bool(_Unseen.asked(relevant_args))
    with _pop_mode_temporarily():
        return bool(_Unseen.asked(relevant_args))


class LossCapture(TorchFunctionMode):
    """Notes every call of a loss function made while it is entered; the caller's result is untouched.

    Attributes:
        calls: The calls, in order. Each holds a reference to its tensors: clear the list when the step is
            done.

    Example:
        >>> import torch
        >>> logits, y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
        >>> with LossCapture() as seen:
        ...     loss = torch.nn.CrossEntropyLoss()(logits, y)
        >>> [(call.name, tuple(call.elements.shape)) for call in seen.calls]
        [('cross_entropy', (4,))]
        >>> seen.calls[0].result is loss
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[LossCall] = []
        self._flattened: deque[tuple[Any, tuple[int, ...]]] = deque(maxlen=_HELD)  # results, shapes before

    def __enter__(self) -> LossCapture:
        _Unseen.begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            _Unseen.end()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _LOSSES:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if func in _FLATTENING and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self._flatten(args, result)
            return result
        kwargs = kwargs or {}
        named = dict(zip(_SIGNATURES[func], args, strict=False))
        named.update(kwargs)
        if func is F.cross_entropy and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            both = _halves.run(named)
            if both is not None:
                self.calls.append(_call(func, both[0], named, _reduction(named)))
                self.calls[-1].elements, self.calls[-1].source = both[1], self._source(named["input"])
                return both[0]
        result = func(*args, **kwargs)
        self.calls.append(_note(func, result, named))
        self.calls[-1].source = self._source(named["input"])
        return result

    def _flatten(self, args: tuple[Any, ...], result: Any) -> None:
        """Without a gradient no graph keeps the shape that a loss's input had: in inference mode nothing else does."""
        before = args[0] if args else None
        if isinstance(before, Tensor) and isinstance(result, Tensor) and before.dim() > result.dim():
            self._flattened.append((weakref.ref(result), tuple(before.shape)))

    def _source(self, rows: Any) -> tuple[int, ...] | None:
        return next((shape for flat, shape in reversed(self._flattened) if flat() is rows), None)


class _Halves:
    """Cross entropy as its two halves, log-softmax and NLL, so that the first serves the values of each record too.

    Without a gradient there is no graph to read them from, and a second call would pass over the whole vocabulary
    again. The halves are what ``cross_entropy`` is made of; still they are used for a kind of call only after three
    calls of that kind have given the same bits as the call itself.
    """

    def __init__(self) -> None:
        self.proofs: dict[tuple[Any, ...], int] = {}

    def run(self, named: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Result and values before reduction; ``None`` where the call is of another kind or not proven yet."""
        logits, target, weight = named["input"], named["target"], named.get("weight")
        plain = all(named.get(name) is None for name in ("size_average", "reduce"))
        reduction = named.get("reduction", "mean")
        if not plain or reduction not in ("mean", "sum") or named.get("label_smoothing", 0.0) != 0.0:
            return None
        if (
            type(logits) is not Tensor
            or type(target) is not Tensor
            or logits.dim() < 2
            or target.is_floating_point()
        ):
            return None
        autocast = torch.is_autocast_enabled(logits.device.type)
        kind = (logits.device.type, logits.dtype, logits.dim(), reduction, weight is None, autocast)
        proofs = self.proofs.get(kind, 0)
        if proofs < 0:
            return None
        try:
            log_p, ignore = F.log_softmax(logits, 1), named.get("ignore_index", -100)
            result = F.nll_loss(log_p, target, weight, ignore_index=ignore, reduction=reduction)
            if proofs < _PROOFS:
                whole = F.cross_entropy(logits, target, weight, ignore_index=ignore, reduction=reduction)
                same = whole.dtype == result.dtype and torch.equal(whole.nan_to_num(), result.nan_to_num())
                self.proofs[kind] = proofs + 1 if same else -1
                return None
            return result, F.nll_loss(log_p, target, weight, ignore_index=ignore, reduction="none")
        except Exception:  # the call as it was written will say what is wrong
            return None


_halves = _Halves()


def _reduction(named: dict[str, Any]) -> str:
    reduction: str = named.get("reduction", "mean")
    if named.get("size_average") is not None or named.get("reduce") is not None:
        reduction = _legacy(named.get("size_average"), named.get("reduce"))
    return reduction


def _call(func: Callable[..., Any], result: Tensor, named: dict[str, Any], reduction: str) -> LossCall:
    by_class = func is F.cross_entropy or func is F.nll_loss
    return LossCall(
        name=func.__name__,
        result=result,
        elements=None,
        input=named["input"],
        target=named["target"],
        reduction=reduction,
        weight=named.get("weight") if by_class else None,
        ignore_index=named.get("ignore_index", -100) if by_class else None,
    )


def _note(func: Callable[..., Any], result: Tensor, named: dict[str, Any]) -> LossCall:
    reduction = _reduction(named)
    for old in ("size_average", "reduce"):
        if named.get(old) is not None:  # said in today's words by now
            named[old] = None
    call = _call(func, result, named, reduction)
    if torch.compiler.is_compiling():
        call.elements = _elements(func, result, named, reduction)
        return call
    if is_functorch_wrapped_tensor(result):
        call.escaped = True
        return call
    try:
        call.elements = _from_graph(func, result, named) if reduction != "none" else None
        if call.elements is None:
            call.elements = _elements(func, result, named, reduction)
    except (
        Exception
    ) as error:  # listening must never stop a training step, whatever is out of order or memory
        call.problem = f"{type(error).__name__}: {error}"
    return call


def _elements(func: Callable[..., Any], result: Tensor, named: dict[str, Any], reduction: str) -> Tensor:
    if reduction == "none":
        return result.detach()
    named["reduction"] = "none"
    with torch.no_grad():
        elements: Tensor = func(**named)
    return elements.detach()


def _from_graph(func: Callable[..., Any], result: Tensor, named: dict[str, Any]) -> Tensor | None:
    """Cross entropy's log-probabilities lie in its own graph already: read them, save a second log-softmax."""
    if func is not F.cross_entropy or named.get("label_smoothing", 0.0) != 0.0:
        return None
    log_p = kept_log_p(result)
    if log_p is None:
        return None
    return values_at(log_p, named["target"], named.get("weight"), named.get("ignore_index", -100))


def _legacy(size_average: bool | None, reduce: bool | None) -> str:
    """The old arguments ``size_average`` and ``reduce`` in today's words."""
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"
