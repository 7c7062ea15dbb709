"""The report of an audit: what people decide from, as data, JSON, page, text, model card and table."""

from __future__ import annotations

from memguard.findings import Gap
from memguard.report.audit.card import model_card
from memguard.report.audit.data import SCHEMA, AuditReport
from memguard.report.audit.files import load, save
from memguard.report.audit.gates import Gate, GateResult, evaluate
from memguard.report.audit.markdown import render_markdown
from memguard.report.audit.page import render_audit_page
from memguard.report.audit.parts import (
    Number,
    Provenance,
    References,
    Section,
    SideCounts,
    Stratum,
    Tail,
    Threat,
    Utility,
)
from memguard.report.audit.promises import EpsilonClaim, EpsilonShown, NoClaim
from memguard.report.audit.questions import QUESTIONS, read_answers, write_answers
from memguard.report.audit.records import records_frame
from memguard.report.audit.sections import epsilon_shown, from_probe
from memguard.report.audit.tail import side_of, tails_of
from memguard.report.audit.threats import threats_of

__all__ = [
    "QUESTIONS",
    "SCHEMA",
    "AuditReport",
    "EpsilonClaim",
    "EpsilonShown",
    "Gap",
    "Gate",
    "GateResult",
    "NoClaim",
    "Number",
    "Provenance",
    "References",
    "Section",
    "SideCounts",
    "Stratum",
    "Tail",
    "Threat",
    "Utility",
    "epsilon_shown",
    "evaluate",
    "from_probe",
    "load",
    "model_card",
    "read_answers",
    "records_frame",
    "render_audit_page",
    "render_markdown",
    "save",
    "side_of",
    "tails_of",
    "threats_of",
    "write_answers",
]
