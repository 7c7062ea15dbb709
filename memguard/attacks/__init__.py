"""Pure arithmetic: arrays in, numbers with intervals out. No torch, no Lightning, no files."""

from __future__ import annotations

from memguard.attacks.advantage import membership_advantage
from memguard.attacks.aggregate import PatientTotals, by_patient
from memguard.attacks.canary_exposure import ExposureResult, exposure
from memguard.attacks.conformal import (
    adjusted_p,
    benjamini_hochberg,
    conformal_p_values,
    storey_share,
)
from memguard.attacks.difference import mean_difference
from memguard.attacks.epsilon import (
    Bonferroni,
    EpsilonBound,
    Explicit,
    SequentialEpsilon,
    Split,
    Weighted,
    epsilon_clopper_pearson,
    epsilon_f_dp,
    epsilon_gdp,
    epsilon_one_run,
    epsilon_sequential,
    gaussian_delta,
    gaussian_epsilon,
)
from memguard.attacks.estimate import Estimate
from memguard.attacks.left_out import jackknife
from memguard.attacks.likelihood_ratio import lira
from memguard.attacks.membership import (
    Roc,
    auc,
    loss_gap,
    required_held_out,
    roc,
    supported_fprs,
    tpr_at_fpr,
)
from memguard.attacks.reference import ReferenceScores
from memguard.attacks.relative_ratio import rmia
from memguard.attacks.risk import tnr_at_fnr
from memguard.attacks.scores import attack_r, logit_scale, loss_score, min_k_percent
from memguard.attacks.tail import TailPValues, tail_p_values
from memguard.attacks.traces import best_minus_final, last_seen, lt_iqr
from memguard.attacks.variance_inference import bavaria

__all__ = [
    "Bonferroni",
    "EpsilonBound",
    "Estimate",
    "Explicit",
    "ExposureResult",
    "PatientTotals",
    "ReferenceScores",
    "Roc",
    "SequentialEpsilon",
    "Split",
    "TailPValues",
    "Weighted",
    "adjusted_p",
    "attack_r",
    "auc",
    "bavaria",
    "benjamini_hochberg",
    "best_minus_final",
    "by_patient",
    "conformal_p_values",
    "epsilon_clopper_pearson",
    "epsilon_f_dp",
    "epsilon_gdp",
    "epsilon_one_run",
    "epsilon_sequential",
    "exposure",
    "gaussian_delta",
    "gaussian_epsilon",
    "jackknife",
    "last_seen",
    "lira",
    "logit_scale",
    "loss_gap",
    "loss_score",
    "lt_iqr",
    "mean_difference",
    "membership_advantage",
    "min_k_percent",
    "required_held_out",
    "rmia",
    "roc",
    "storey_share",
    "supported_fprs",
    "tail_p_values",
    "tnr_at_fnr",
    "tpr_at_fpr",
]
