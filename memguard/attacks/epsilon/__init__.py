"""Lower bounds on epsilon from canaries: what an audit can show, with its assumption and its limit."""

from __future__ import annotations

from memguard.attacks.epsilon.bound import EpsilonBound
from memguard.attacks.epsilon.clopper_pearson import epsilon_clopper_pearson
from memguard.attacks.epsilon.curves import gaussian_delta, gaussian_epsilon
from memguard.attacks.epsilon.f_dp import epsilon_f_dp
from memguard.attacks.epsilon.gdp import epsilon_gdp
from memguard.attacks.epsilon.one_run import epsilon_one_run, one_run_p_value
from memguard.attacks.epsilon.sequential import SequentialEpsilon, epsilon_sequential
from memguard.attacks.epsilon.thresholds import Bonferroni, Explicit, Split
from memguard.attacks.epsilon.weighted import Weighted

__all__ = [
    "Bonferroni",
    "EpsilonBound",
    "Explicit",
    "SequentialEpsilon",
    "Split",
    "Weighted",
    "epsilon_clopper_pearson",
    "epsilon_f_dp",
    "epsilon_gdp",
    "epsilon_one_run",
    "epsilon_sequential",
    "gaussian_delta",
    "gaussian_epsilon",
    "one_run_p_value",
]
