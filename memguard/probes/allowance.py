"""When a probe may be asked during training: it is paid for before, out of a share of the training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Allowance"]

_NEVER = -1


class Allowance:
    """Seconds saved and spent, what each probe costs, and whose turn it is.

    What is saved is ``share`` of the seconds trained less the seconds spent. A probe whose cost is known is asked
    when that is saved. One whose cost is not known is tried with what is saved as its limit; where it takes longer, its
    result is dropped and it is taken to cost at least twice the limit, so that all trials together stay inside the
    share, but for what a probe runs past its limit.

    The probe that has waited longest is saved for; another goes before it only out of half of what came in since the
    last look, so that a cheap one does not stand still for a dear one, nor keep it from ever being asked.

    Args:
        share: Of the training time, in (0, 1].

    Attributes:
        spent: Seconds spent on probes.
        cost: Probe -> seconds of its last complete answer.
        least: Probe -> seconds that it takes at least, where it never finished.

    Example:
        >>> allowance = Allowance(0.02)
        >>> allowance.look(trained=100.0)
        >>> allowance.next(["attribute"])  # never asked: tried with the 2 s that are saved
        ('attribute', 2.0)
        >>> allowance.paid("attribute", 2.1, limit=2.0)
        False
        >>> allowance.look(trained=300.0)  # 6 s saved, 2.1 s spent: less than the 4 s that it takes at least
        >>> allowance.next(["attribute"]) is None, allowance.price("attribute")
        (True, 'more than 4.0 s')
        >>> allowance.look(trained=400.0)
        >>> name, limit = allowance.next(["attribute"])
        >>> round(limit, 1), allowance.paid(name, 5.0, limit=limit), allowance.price("attribute")
        (5.9, True, '5.0 s')
        >>> allowance.look(trained=900.0)
        >>> allowance.next(["attribute"])  # its cost is known and saved: no limit
        ('attribute', None)
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = 0.0
        self.cost: dict[str, float] = {}
        self.least: dict[str, float] = {}
        self._trained, self._between = 0.0, 0.0
        self._turn: dict[str, int] = {}
        self._turns = 0

    @property
    def saved(self) -> float:
        """Seconds that may be spent now; below 0 where a probe ran past its limit."""
        return self.share * self._trained - self.spent

    def look(self, trained: float) -> None:
        """A look is due after so many seconds of training, those of the looks left out."""
        self._between = self.share * max(trained - self._trained, 0.0) / 2
        self._trained = trained

    def expect(self, name: str, seconds: float) -> None:
        """What a probe costs at least, as far as can be said before it was ever asked."""
        if name not in self.cost:
            self.least[name] = max(self.least.get(name, 0.0), seconds)

    def next(self, waiting: Sequence[str], *, last: bool = False) -> tuple[str, float | None] | None:
        """Whom to ask now.

        Args:
            waiting: Probes that were not asked at this look; of those that waited equally long the first comes first.
            last: Whether training is over, and there is nothing to save for.

        Returns:
            The probe and its limit in seconds, ``None`` for no limit; ``None`` where nobody can be paid for.
        """
        order = sorted(waiting, key=lambda name: self._turn.get(name, _NEVER))
        for place, name in enumerate(order):
            purse = self.saved if last or place == 0 else min(self.saved, self._between)
            if purse <= 0:
                continue
            if name in self.cost:
                if self.cost[name] <= purse:
                    return name, None
            elif self.least.get(name, 0.0) <= purse:
                return name, purse
        return None

    def paid(self, name: str, seconds: float, *, limit: float | None) -> bool:
        """A probe was asked.

        Args:
            name: Of the probe.
            seconds: What it took.
            limit: As `next` gave it.

        Returns:
            Whether the answer is complete; if not, it depends on the speed of the machine and has to be dropped.
        """
        self.spent += seconds
        self._between -= seconds
        self._turns += 1
        self._turn[name] = self._turns
        if limit is not None and seconds > limit:
            self.least[name] = max(2 * limit, seconds)
            return False
        self.cost[name] = seconds
        self.least.pop(name, None)
        return True

    def price(self, name: str) -> str:
        """What a probe costs, in words; empty where nothing is known of it."""
        if name in self.cost:
            return _seconds(self.cost[name])
        return f"more than {_seconds(self.least[name])}" if self.least.get(name, 0.0) > 0 else ""

    def state_dict(self) -> dict[str, Any]:
        """Numbers and words alone."""
        return {
            "spent": self.spent,
            "trained": self._trained,
            "cost": dict(self.cost),
            "least": dict(self.least),
            "turn": dict(self._turn),
            "turns": self._turns,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood.

        Example:
            >>> one, other = Allowance(0.1), Allowance(0.1)
            >>> one.look(10.0); one.paid("copies", 0.75, limit=None)
            True
            >>> other.load_state_dict(one.state_dict())
            >>> other.saved, other.cost
            (0.25, {'copies': 0.75})
        """
        self.spent, self._trained = float(state["spent"]), float(state["trained"])
        self.cost = {str(name): float(value) for name, value in state["cost"].items()}
        self.least = {str(name): float(value) for name, value in state["least"].items()}
        self._turn = {str(name): int(value) for name, value in state["turn"].items()}
        self._turns = int(state["turns"])


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 0.1 else f"{1e3 * value:.0f} ms"
