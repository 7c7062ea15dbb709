"""Words and sources that the report uses, and what it never shows."""

from __future__ import annotations

__all__ = ["DOES_NOT_SHOW", "GLOSSARY", "REFERENCES"]

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("member", "a patient whose records the model was trained on"),
    ("held-out, never-trained", "a patient whose records the model never saw"),
    ("null", "what a number would be if the model knew nothing of its training patients"),
    (
        "interval",
        "the range that would hold the true value in 95 of 100 repetitions, with the patient as the unit",
    ),
    ("n", "patients behind a number, both sides together"),
    ("AUC", "how often a member looks more familiar to the model than a held-out patient: .50 is chance"),
    ("TPR at FPR", "share of members found while so few held-out patients are wrongly called members"),
    (
        "minus held-out",
        "a number among members less the same number among held-out patients: 0 without a leak",
    ),
    ("reference model", "a model that was not trained on the patient in question; tells memorized from easy"),
    ("memorization evidence", "how much more the model says than a model that never saw the patient"),
    ("inference evidence", "how much the prompt alone gives away, to any model"),
    ("flagged", "stands out from never-trained patients by a conformal p-value, at a false-discovery rate"),
    ("false-discovery rate", "on average at most this share of the flagged are flagged wrongly"),
    ("stratum", "some of the patients, such as those with a rare code"),
    ("epsilon, delta", "the promise of differential privacy: the smaller, the less one patient can change"),
    ("canary", "a made-up patient planted by the toss of a coin, to measure what is memorized"),
    ("light, full", "a test as it runs during training, and after it"),
)

REFERENCES: tuple[str, ...] = (
    "Carlini et al., Membership inference attacks from first principles, 2022 (arXiv 2112.03570)",
    "Steinke, Nasr, Jagielski, Privacy auditing with one (1) training run, 2023 (arXiv 2305.08846)",
    "Tonekaboni et al., memorization tests for models of health records, NeurIPS 2025 (arXiv 2510.12950)",
    "Jalko et al., on false-positive rates pooled over individuals, 2026 (arXiv 2605.25819)",
    "Benjamini, Hochberg, Controlling the false discovery rate, J. R. Stat. Soc. B 57, 1995",
    "Near et al., Guidelines for evaluating differential privacy guarantees, NIST SP 800-226, 2025",
    "European Data Protection Board, Opinion 28/2024 on AI models and personal data",
)

DOES_NOT_SHOW: tuple[str, ...] = (
    "That nothing else leaks. Only the attacks of chapter 5 were tried, and a stronger attacker may find more. A "
    "number near its null is missing evidence of leakage, not evidence that there is none.",
    "That a patient who is not flagged was not memorized. Error rates bound false flags, not misses.",
    "That a rate holds for each patient. True-positive rates are pooled over patients: for some the risk is higher.",
    "That what can be inferred was memorized, or that what can be inferred does no harm. Both axes are given.",
    "How another training run would look. One run was audited; another seed memorizes partly other patients.",
    "That a code list has a legal meaning. Which codes count as sensitive needs clinical and legal review.",
    "That this report is covered by an epsilon. It was computed from private data.",
    "A legal conclusion. This is evidence for those who have to decide.",
)
