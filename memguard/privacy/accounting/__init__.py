"""What a run of DP-SGD spends: epsilon from its steps, and the noise that keeps a target."""

from memguard.privacy.accounting.calibration import noise_multiplier_for
from memguard.privacy.accounting.libraries import pld_epsilon, prv_epsilon
from memguard.privacy.accounting.mixture import mixture_epsilon
from memguard.privacy.accounting.phases import Phase, resolve_delta
from memguard.privacy.accounting.rdp import rdp_epsilon
from memguard.privacy.accounting.reported import Epsilon, epsilon, patient_epsilon

__all__ = [
    "Epsilon",
    "Phase",
    "epsilon",
    "mixture_epsilon",
    "noise_multiplier_for",
    "patient_epsilon",
    "pld_epsilon",
    "prv_epsilon",
    "rdp_epsilon",
    "resolve_delta",
]
