"""Runs a user's step on a batch so that the gradient of every record comes up for every parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memguard.capture.losses import loss_of
from memguard.capture.shadow import Shadows
from memguard.errors import PrivacyError
from memguard.privacy.engines.backward import has_reentrant_checkpoint, p_grad_aside, scalar_loss
from memguard.privacy.engines.layouts import Layouts
from memguard.privacy.engines.rows import Rows
from memguard.privacy.engines.samplers import Rule, rule_of
from memguard.privacy.engines.spread import LOOP, Spread, UntoldError
from memguard.privacy.engines.standins import StandIn, stand_in_of

__all__ = ["Hooks"]


class Hooks:
    """Hooks on the layers of a module, asleep but for the passes that are asked for.

    Every parameter comes up in one of three ways: by the formula of its layer, by a stand-in for its layer, or, where
    it is used by itself, as one copy a record (:mod:`memguard.privacy.engines.spread`).

    Args:
        module: The user's.
        parameters: What is trained.

    Attributes:
        layouts: What is known about dimensions, over all passes.
        bare: Ids of parameters that are used past their layer, and so given out as one copy a record.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self.module, self.parameters = module, [p for p in parameters if p.requires_grad]
        self.layouts = Layouts()
        self.bare: set[int] = set()
        self._joints: dict[Any, list[int]] = {}
        self._rewritten: set[str] = set()
        self._rows: Rows | None = None
        self._last = Rows(0, self.layouts, self._joints, set())
        self._handles: list[Any] = []
        self._shared: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._stood_in: list[tuple[nn.Module, StandIn]] = []
        self._places: list[tuple[str, nn.Module, str, nn.Parameter]] = []

    def attach(self) -> None:
        """Put the hooks, afresh."""
        self.detach()
        trained = {id(p) for p in self.parameters}
        inside: set[nn.Module] = set()
        for path, layer in self.module.named_modules():
            own = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) in trained}
            self._places += [(path, layer, name, p) for name, p in own.items()]
            stand_in = stand_in_of(layer)
            if stand_in is not None:
                inside.update(layer.children())
                if any(id(p) in trained for p in layer.parameters()):
                    self._stood_in.append((layer, stand_in))
                continue
            if not own or layer in inside:
                continue
            if isinstance(layer, nn.RNNBase | torch.jit.ScriptModule):
                what = (
                    "a compiled script"
                    if isinstance(layer, torch.jit.ScriptModule)
                    else "an LSTM with proj_size"
                )
                raise PrivacyError(
                    f"{path} is {what}", "its gradients of single records are out of reach", LOOP
                )
            rule = rule_of(layer)
            if rule is None or any(id(p) in self.bare for p in own.values()):
                self._shared += [(layer, name, p) for name, p in own.items()]
            else:
                handle = layer.register_forward_hook(self._hook(path, rule), with_kwargs=True, prepend=True)
                self._handles.append(handle)

    def detach(self) -> None:
        """Take the hooks away; nothing stays on the module. Idempotent."""
        while self._handles:
            self._handles.pop().remove()
        self._shared.clear()
        self._stood_in.clear()
        self._places.clear()
        self._last.close()
        self._last.of.clear()

    def forward(self, n: int, step: Callable[[], Any]) -> tuple[Any, Rows]:
        """Run a step and note where gradients of records will come up.

        Args:
            n: Records in its batch.
            step: Runs the user's step.

        Returns:
            What the step returned, and the rows to fill by :meth:`backward`.

        Raises:
            UntoldError: If records cannot be told apart.
        """
        self._in_place()
        self.layouts.begin()
        self._last.close()
        rows = self._last = Rows(n, self.layouts, self._joints, {id(p) for p in self.parameters})
        with self._awake(rows), torch.compiler.set_stance("force_eager"):
            try:
                returned = step()
            except UntoldError:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if not rows.guessed:
                    raise
                raise UntoldError(f"the step failed on a tensor that all records share ({error})") from error
        if isinstance(loss_of(returned), Spread):
            raise UntoldError("the loss contains a parameter by itself, not by way of the records", _LAST)
        return returned, rows

    def _in_place(self) -> None:
        """Pruning and reparametrization give a layer other parameters, whose gradients no hook would see."""
        if self._rows is not None:
            return
        for path, layer, name, parameter in self._places:
            if layer._parameters.get(name) is not parameter:
                raise UntoldError(
                    f"{path}.{name} is no longer the parameter that it was when training began",
                    "its gradients would be missing",
                )

    def settled(self, rows: Rows) -> bool:
        """Whether the pass so far can be trusted; if not, the next one knows more."""
        new = rows.rewritten() - self._rewritten
        self._rewritten |= new
        return not new and not self.layouts.open

    def backward(
        self, returned: Any, rows: Rows, *, seed: float = 1.0, more: Sequence[Tensor] = ()
    ) -> list[Any]:
        """Fill the rows with the gradients of the returned loss.

        Args:
            returned: What the step returned; its graph is freed.
            rows: From :meth:`forward`.
            seed: The loss is multiplied by it.
            more: Tensors whose gradients are wanted too.

        Returns:
            The gradients of ``more``, ``None`` where there is none.
        """
        loss = scalar_loss(returned)
        if not rows.edges:
            raise UntoldError("no trained parameter was used in this step", _LAST)
        one = torch.full_like(loss, seed)
        everything = [*self.module.parameters(), *self.parameters]
        # Hooks run within the pass: a checkpointed block is run again on the way back.
        with self._awake(rows), torch.compiler.set_stance("force_eager"), contextlib.closing(rows):
            if not has_reentrant_checkpoint(loss):
                inputs: list[Any] = [*rows.edges, *more]
                found = torch.autograd.grad(loss, inputs, one, allow_unused=True)
                return list(found[len(inputs) - len(more) :])
            asked: list[Any] = [None] * len(more)
            handles = [t.register_hook(_put(asked, at)) for at, t in enumerate(more)]  # type: ignore[no-untyped-call]
            with p_grad_aside(everything):
                loss.backward(one)  # type: ignore[no-untyped-call]
            for handle in handles:
                handle.remove()
            return asked

    @contextlib.contextmanager
    def _awake(self, rows: Rows) -> Iterator[None]:
        """Hooks listen, stand-ins stand in, parameters used by themselves are one copy a record."""
        shadows, below = Shadows(), self._rows
        try:
            self._rows = rows
            for layer, stand_in in self._stood_in:
                shadows.put(layer, "forward", _standing_in(layer, stand_in, rows))
            for layer, name, parameter in self._shared:
                layer._parameters[name] = rows.share(parameter)  # type: ignore[assignment]
            yield
        finally:
            self._rows = below
            for layer, name, parameter in self._shared:
                layer._parameters[name] = parameter
            shadows.restore()

    def _hook(self, path: str, rule: Rule) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            rows = self._rows
            if rows is None or not torch.is_grad_enabled():
                return None
            x = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
            handed_on = None if x is None else rows.called(path, layer, rule, x, output)
            if path in self._rewritten and handed_on is None and isinstance(output, Tensor):
                return output.clone()
            return handed_on

        return hook


_LAST = "that part of the gradient belongs to no record"


def _standing_in(layer: nn.Module, stand_in: StandIn, rows: Rows) -> Callable[..., Any]:
    usual = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return usual(*args, **kwargs)
        return stand_in(rows, layer, *args, **kwargs)

    return forward


def _put(into: list[Any], at: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        into[at] = gradient.detach()

    return hook
