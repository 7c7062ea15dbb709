"""What to do about memorization: policies, arrays in and weights out. None of them gives a guarantee."""

from memguard.mitigations.policies import drop_weights, floor_weights, reweight, worst

__all__ = ["drop_weights", "floor_weights", "reweight", "worst"]
