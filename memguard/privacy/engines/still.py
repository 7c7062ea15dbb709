"""Switch dropout off without leaving training mode, so that two passes over the same records can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import _VF
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

__all__ = ["no_dropout"]

# Where the probability stands among the positional arguments, and its name.
_PROBABILITY: dict[Callable[..., Any], tuple[int, str]] = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    F.multi_head_attention_forward: (10, "dropout_p"),
}
for _place, _names in (
    (F, ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")),
    (
        torch,
        ("dropout", "dropout_", "native_dropout", "alpha_dropout", "alpha_dropout_", "feature_dropout",
         "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
    ),
):  # fmt: skip
    _PROBABILITY.update({getattr(_place, _name): (1, "p") for _name in _names})
# Checkpointed blocks run again within these, where a function mode is asleep.
_BACKWARD = frozenset((torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward))
_RECURRENT = frozenset((_VF.lstm, _VF.gru, _VF.rnn_tanh, _VF.rnn_relu))
_PLACES: list[tuple[Any, str]] = [
    *((F, func.__name__) for func in _PROBABILITY if getattr(F, func.__name__, None) is func),
    *((torch, func.__name__) for func in _PROBABILITY if getattr(torch, func.__name__, None) is func),
    *((_VF, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
]


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _BACKWARD:
            with _patched():
                return func(*args, **kwargs)
        if func in _PROBABILITY:
            args = _with_zero(args, kwargs, *_PROBABILITY[func])
        elif func in _RECURRENT:
            # A packed sequence brings its batch sizes as second argument, and everything after moves by one.
            packed = len(args) > 3 and isinstance(args[3], (list, tuple))
            args = _with_zero(args, kwargs, 6 if packed else 5, "dropout")
        return func(*args, **kwargs)


@contextmanager
def _patched() -> Iterator[None]:
    """The same by other names: the functions themselves are replaced where modules look them up."""
    before = [(place, name, getattr(place, name)) for place, name in _PLACES]
    try:
        for place, name, func in before:
            setattr(place, name, _still(func))
        yield
    finally:
        for place, name, func in before:
            setattr(place, name, func)


def _still(func: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _NoDropout().__torch_function__(func, (), args, kwargs)

    return call


def _with_zero(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, name: str) -> tuple[Any, ...]:
    if len(args) > at:
        return (*args[:at], 0.0, *args[at + 1 :])
    kwargs[name] = 0.0
    return args


@contextmanager
def no_dropout() -> Iterator[None]:
    """Dropout keeps everything inside: modules, functions, attention, recurrent layers; modes stay as they are.

    Compiled modules run eagerly inside, since their dropout is compiled in. Random numbers that a model draws by
    itself (stochastic depth by ``torch.rand``, noise layers) are not touched.

    Example:
        >>> net = torch.nn.Dropout(0.5)
        >>> with no_dropout():
        ...     net(torch.ones(4)).tolist(), net.training
        ([1.0, 1.0, 1.0, 1.0], True)
    """
    with torch.compiler.set_stance("force_eager"), _NoDropout():
        yield
