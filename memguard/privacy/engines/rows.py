"""One pass over a batch: where gradients of single records come up, and what they are for each parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from memguard.capture.layout import source_shape
from memguard.privacy.engines.layouts import Layouts
from memguard.privacy.engines.samplers import Rule, leading_dims
from memguard.privacy.engines.spread import Spread, Spreading, UntoldError

__all__ = ["Rows"]


class Rows(Spreading):
    """The gradients of single records of one pass, filled while autograd runs back through it.

    Args:
        n: Records in the batch.
        layouts: What is known about dimensions.
        joints: What is known about results of shared tensors.
        trained: Ids of the parameters that are asked for.

    Attributes:
        edges: Where gradients are taken: what to hand to ``torch.autograd.grad``.
        of: For each parameter, by ``id``, its ``(n, *shape)`` gradients so far, float32 at least.
        borrowed: Ids of the parameters whose entry is a tensor of autograd's, not to be changed in place.
        guessed: Whether some tensor was taken to be the same for all records.
        eps: Rounding of the coarsest gradient that came up.
    """

    def __init__(self, n: int, layouts: Layouts, joints: dict[Any, list[int]], trained: set[int]) -> None:
        super().__init__(n, layouts, joints)
        self.trained = trained
        self.edges: list[GradientEdge] = []
        self.of: dict[int, Tensor] = {}
        self._calls_of: Counter[str] = Counter()
        self.borrowed: set[int] = set()
        self.guessed = False
        self._views: list[tuple[str, Tensor, int]] = []
        self._handles: list[Any] = []
        self._changed: set[str] = set()
        self.eps = 0.0

    # -- places where gradients come up ---

    def watch(self, tensor: Tensor, take: Callable[[Tensor], None], path: str = "") -> None:
        """Call ``take`` with the gradient of a tensor as it is now, also if it is changed in place later.

        A view is another matter: a change in place goes through its base, past the place that is watched.
        """
        if not tensor.requires_grad:
            return
        if tensor._is_view():
            self._views.append((path, tensor, tensor._version))

        def hook(gradient: Tensor) -> None:
            self.eps = max(self.eps, torch.finfo(gradient.dtype).eps)
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                take(gradient.detach())

        self._handles.append(tensor.register_hook(hook))  # type: ignore[no-untyped-call]
        self.edges.append(get_gradient_edge(tensor))

    def close(self) -> None:
        """Let go of the graph: it holds the hooks, and they hold this, in a circle that no collector sees."""
        while self._handles:
            self._handles.pop().remove()
        self.edges.clear()
        self._changed = self.rewritten()
        self._views.clear()

    def rewritten(self) -> set[str]:
        """Paths of the layers whose output was a view and was changed in place: their gradients will not come up."""
        return self._changed | {path for path, tensor, version in self._views if tensor._version != version}

    def share(self, parameter: nn.Parameter) -> Spread:
        """A parameter that is used by itself, as one copy a record."""
        self.guessed = True
        rows = self.copies(parameter)
        self.watch(rows, lambda g: self.add(parameter, g, borrowed=True))
        return self.spread(rows)

    def called(self, path: str, layer: nn.Module, rule: Rule, x: Tensor, output: Any) -> Any:
        """A layer with a formula was called: watch its output.

        Returns:
            What to hand on instead of the output; ``None`` to leave it.
        """
        key = ("layer", path, self._calls_of[path])
        self._calls_of[path] += 1
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        if isinstance(x, Spread):
            if not isinstance(output, Spread):
                raise UntoldError(f"{path} made a tensor of the batch from one that all records share")
            self._rule(path, layer, rule, x.rows, output.rows)
            return None
        leading = leading_dims(layer, x)
        d = self.layouts.find(key, x.shape, n=self.n, dims=range(1 if leading is None else min(leading, 2)))
        if d is not None:
            self._rule(path, layer, rule, x, output, d)
            return None
        source = source_shape(x) if leading == 1 else None
        if source is not None:
            lead = source[: len(source) - x.dim() + 1]
            d = self.layouts.find((*key, "flat"), lead, n=self.n, dims=range(min(len(lead), 2)))
            if d is not None:
                self._rule(path, layer, rule, x, output, d, tuple(lead))
                return None
        self.guessed = True
        copies = self.copies(output)
        self._rule(path, layer, rule, self.copies(x), copies)
        return self.spread(copies)

    def _rule(
        self,
        path: str,
        layer: nn.Module,
        rule: Rule,
        x: Tensor,
        output: Tensor,
        d: int = 0,
        lead: tuple[int, ...] | None = None,
    ) -> None:
        x = x.detach()

        def first(tensor: Tensor) -> Tensor:
            if lead is not None:
                tensor = tensor.reshape(*lead, *tensor.shape[1:])
            return tensor.movedim(d, 0) if d else tensor

        def take(g: Tensor) -> None:
            wide = torch.promote_types(g.dtype, torch.float32)
            inputs = x.to(g.dtype).to(wide) if x.is_floating_point() else x
            try:
                found = rule(layer, first(inputs), first(g.to(wide)))
            except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
                raise UntoldError(
                    f"the formula for {path} failed ({error})", "a gradient is missing"
                ) from error
            for name, rows in found.items():
                parameter = getattr(layer, name)
                if parameter is not None:
                    self.add(parameter, rows, borrowed=rows._is_view())

        self.watch(output, take, path)

    # -- what comes up ---

    def add(
        self, parameter: Tensor, rows: Tensor, part: slice | None = None, *, borrowed: bool = False
    ) -> None:
        """Add to the gradients of a parameter, or of some of its first dimension.

        Args:
            parameter: Whose.
            rows: ``(n, *shape)``.
            part: Which of the parameter's first dimension the rows are of; all of them by default.
            borrowed: Whether ``rows`` may be in use elsewhere.
        """
        if id(parameter) not in self.trained:
            return
        shape = (self.n, *parameter.shape)
        if part is not None:
            if id(parameter) not in self.of:
                self.of[id(parameter)] = rows.new_zeros(
                    shape, dtype=torch.promote_types(rows.dtype, torch.float32)
                )
            self.of[id(parameter)][:, part] += rows
            return
        if rows.shape != shape:
            raise UntoldError(
                f"gradients of shape {tuple(rows.shape)} for {shape}", "a record's gradient is missing"
            )
        have = self.of.get(id(parameter))
        if have is None:
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
            self.of[id(parameter)] = wide
            if borrowed and wide is rows:
                self.borrowed.add(id(parameter))
        elif id(parameter) in self.borrowed:
            self.of[id(parameter)] = have + rows
            self.borrowed.discard(id(parameter))
        else:
            have.add_(rows)
