"""What only people can say: the questions that an audit leaves open, and who answers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memguard.errors import DataError

__all__ = ["QUESTIONS", "Question", "check_answers", "read_answers", "write_answers"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Something that no measurement answers.

    Attributes:
        key: In ``AuditReport.answers`` and in ``answers.json``.
        chapter: Number of the chapter that it stands in.
        label: Short name.
        asks: What to write.
        who: Who has to answer.
    """

    key: str
    chapter: int
    label: str
    asks: str
    who: str


def _ask(key: str, chapter: int, label: str, asks: str, who: str = "the model owner") -> Question:
    return Question(key=key, chapter=chapter, label=label, asks=asks, who=who)


_REVIEWER, _STEWARD = "the reviewer", "the data steward"
QUESTIONS: tuple[Question, ...] = (
    _ask("reviewer", 1, "Reviewer", "Who read this report and checked it.", _REVIEWER),
    _ask("reviewed_on", 1, "Reviewed on", "The date of the review.", _REVIEWER),
    _ask("training_code", 1, "Training code", "Which version of the code trained it: a commit, a tag."),
    _ask("intended_use", 2, "Intended use", "What the model is for, and for which patients."),
    _ask("users", 2, "Users", "Who works with it, and with which training."),
    _ask("out_of_scope", 2, "Out of scope", "Uses that were considered and ruled out."),
    _ask("exposure", 2, "Exposure", "What an outsider gets: weights, logits, labels, embeddings or text."),
    _ask("query_limits", 2, "Who may query", "Who can query it, how often, and what is logged."),
    _ask("data_source", 3, "Source", "Where the records come from, and on which legal ground."),
    _ask("data_dates", 3, "Dates", "First and last date of the records."),
    _ask("inclusion", 3, "Inclusion and exclusion", "Which patients were taken in, which were left out."),
    _ask("de_identification", 3, "De-identification", "What was removed or changed, by which method."),
    _ask("representativeness", 3, "Representativeness", "How the patients differ from those it will be used for."),
    _ask("unit_reason", 4, "Why this unit", "Why the patient (or the record) is the unit of privacy."),
    _ask("mitigations", 10, "Done about it", "Which mitigations were used, with which settings."),
    _ask("ablation", 10, "With and without", "Leakage and utility with each mitigation and without it."),
    _ask("external_validation", 13, "External validation", "Where the model was tested on other patients."),
    _ask("threshold", 14, "Threshold", "Which numbers would have been too high, written before the audit.", _STEWARD),
    _ask("decision", 14, "Decision", "What was decided, and on which of the numbers above.", _STEWARD),
    _ask("accepted_by", 14, "Accepted by", "Who accepts the remaining risk, with the role.", _STEWARD),
    _ask("release_route", 14, "Release route", "API, enclave, weights to named parties, or open weights.", _STEWARD),
    _ask("review_trigger", 14, "Review trigger", "What ends it: a date, a retraining, a new attack.", _STEWARD),
    _ask("maintenance", 14, "Maintenance", "When the model is retrained, audited again, and withdrawn.", _STEWARD),
    _ask("access_class", 15, "Who may read this report", "The access class of these files.", _STEWARD),
)  # fmt: skip
_KEYS = {question.key: question for question in QUESTIONS}


def check_answers(answers: Mapping[str, str]) -> None:
    """Refuse an answer that would stand nowhere.

    Args:
        answers: Key -> answer.

    Raises:
        DataError: If a key is of no question, or an answer is no text.

    Example:
        >>> check_answers({"reviever": "A. B."})
        Traceback (most recent call last):
        ...
        memguard.errors.DataError: an answer to 'reviever', which is no question. ...
    """
    for key, text in answers.items():
        if key not in _KEYS:
            raise DataError(
                f"an answer to {key!r}, which is no question",
                "nobody would read it",
                f"use one of {', '.join(_KEYS)}",
            )
        if not isinstance(text, str):
            raise DataError(
                f"an answer to {key!r} that is no text", "it cannot be printed", "write a sentence"
            )


def write_answers(path: str | Path, answers: Mapping[str, str] | None = None) -> Path:
    """A JSON file with every question and an empty place for its answer.

    Args:
        path: Where.
        answers: What is known already.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_answers(write_answers(f"{folder}/answers.json", {"users": "Two cardiologists."}))
        {'users': 'Two cardiologists.'}
    """
    answers = answers or {}
    check_answers(answers)
    body = {q.key: {"asks": q.asks, "who": q.who, "answer": answers.get(q.key, "")} for q in QUESTIONS}
    path = Path(path)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_answers(path: str | Path) -> dict[str, str]:
    """The answers of a file that `write_answers` wrote, or of plain ``{key: answer}``; empty ones are left out.

    Args:
        path: Where.

    Raises:
        DataError: If the file is no such JSON, or answers what was not asked.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        answers = {key: one["answer"] if isinstance(one, dict) else one for key, one in body.items()}
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DataError(
            f"a file of answers that cannot be read ({error!r})",
            "what people said would be missing from the report",
            "begin with write_answers, which asks every question",
        ) from error
    check_answers(answers)
    return {key: text for key, text in answers.items() if text.strip()}
