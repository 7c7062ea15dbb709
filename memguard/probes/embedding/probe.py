"""T3, embeddings: do the model's frozen embeddings tell more of patients in the training data than of strangers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.adapters.base import ModelAdapter
from memguard.errors import DataError, MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.attacked.units import drawn_rows
from memguard.probes.clock import Clock
from memguard.probes.embedding.guessed import Attacker, out_of_fold, patient_folds
from memguard.probes.embedding.hidden import first_tokens, holders, without_codes
from memguard.probes.embedding.judged import Readings, of_patients
from memguard.probes.embedding.told import answer_of, evidence_of, numbers_of, table_of
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.subject import Subject
from memguard.records.content import Ragged
from memguard.records.sensitivity import SensitivityTable
from memguard.records.small_cells import MIN_CELL, patients_shown

__all__ = ["EmbeddingProbe"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FOLDS = 5
_QUESTION = (
    "Do the model's embeddings of records tell more about a sensitive code that was removed from them when the "
    "patient was in the training data?"
)


@dataclass(frozen=True, kw_only=True)
class EmbeddingProbe:
    """Can a sensitive attribute be read from frozen embeddings better for members than for held-out patients?

    All sensitive codes are taken out of the records before the model embeds them, otherwise the classifier would read
    off a copy; the static tokens stay. The same classifiers, cross-validated by patient over folds in which both sides
    are mixed, then guess for either side who held a code of the category, in probabilities. What both sides share,
    such as what the other codes imply, cancels in members minus held-out patients.

    Attributes:
        categories: Name -> tokens: their numbers, or ``(V,)`` truth values. ``None``: the categories of memguard's
            table of sensitive codes, by the names of the tokens.
        attackers: Logistic regression, and a network with one hidden layer; a light budget takes the first alone.
        min_holders: Patients of each side who hold the attribute, and who do not; with fewer it is not tested.
        references: At most so many references are asked as a second null: neither side is known to them.
        flag_rate: False-discovery rate of the flags.
        confidence: Of all intervals.

    Raises:
        MemguardError: If ``min_holders`` is below 5: the numbers would be about few people.

    Guarantees:
        A difference above zero, with that of the references covering zero, is what training on these patients did to
        their embeddings. No difference shows only that these classifiers found none with so many holders. An AUC of
        members alone, however high, is no memorization: the other codes may imply the attribute.

    References:
        Tonekaboni et al., arXiv 2510.12950 (probing of embeddings; theirs of training patients alone, and on hard
        labels, with which an AUC is near .5 whatever the embedding holds).

    Example:
        >>> EmbeddingProbe().needs, EmbeddingProbe().name
        (('embed',), 'embedding')
    """

    categories: Mapping[str, ArrayLike] | None = None
    attackers: Sequence[Attacker] = ("linear", "mlp")
    min_holders: int = 10
    references: int = 2
    flag_rate: float = 0.1
    confidence: float = 0.95
    name: str = field(default="embedding", init=False)
    needs: Sequence[str] = field(default=("embed",), init=False)

    def __post_init__(self) -> None:
        if self.min_holders < MIN_CELL:
            raise MemguardError(
                f"min_holders = {self.min_holders}",
                "numbers would be about so few people that they tell who they are",
                f"pass at least {MIN_CELL}",
            )

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Embed, guess, compare. What cannot be asked is in ``not_tested``."""
        clock = Clock(budget.seconds)
        gaps: list[NotTested] = []

        def done(**found: object) -> ProbeResult:
            return ProbeResult(
                probe=self.name,
                question=_QUESTION,
                not_tested=gaps,
                **found,  # type: ignore[arg-type]
            )

        if asked.target is None or "embed" not in asked.target.abilities or subject.content.codes is None:
            gaps.append(
                NotTested(what="Embeddings", why="the model gives none", fix="pass an adapter with embed")
            )
            return done()
        names, groups, notes = self._groups(subject, asked.target.vocabulary)
        if not names:
            gaps.append(
                NotTested(what="Embeddings", why="no token is known to be sensitive", fix="pass categories=")
            )
            return done(notes=notes)
        rows = drawn_rows(subject, budget.patients, budget.seed)
        read = first_tokens(subject.sequences.take(rows), asked.target.longest)
        held = holders(read, subject.static[rows], groups)
        hidden = without_codes(read, subject.static[rows], np.asarray(groups.any(axis=0)))
        some = hidden.lengths > 0
        if not some.all():
            gaps.append(
                NotTested(
                    what=f"{int((~some).sum()):,} records",
                    why="nothing is left without their sensitive codes",
                )
            )
        rows, held, hidden = rows[some], held[some], hidden.take(np.flatnonzero(some))
        enough = np.array(
            [self._enough(subject, rows, held[:, c], names[c], gaps) for c in range(len(names))]
        )
        names = [name for name, kept in zip(names, enough, strict=True) if kept]
        if not names:
            return done(notes=notes)
        held = held[:, enough]
        try:
            found = self._read(asked.target, subject, rows, hidden, held, budget, gaps)
            nulls = self._of_references(asked, subject, rows, hidden, held, budget, gaps, clock)
        except MemguardError as error:
            gaps.append(NotTested(what="Embeddings", why=f"{error.seen}: {error.why}", fix=error.fix))
            return done(notes=notes)
        numbers, best = numbers_of(names, found, nulls, self.confidence)
        evidence, flagged, flag_note = evidence_of(subject, rows, held, names, found, self.flag_rate)
        return done(
            answer=answer_of(names, numbers, best),
            numbers=numbers,
            evidence=evidence,
            tables={"attributes": table_of(names, found, numbers, _FOLDS, self.confidence)},
            flagged=flagged,
            settings={
                "attackers": ", ".join(found),
                "min_holders": self.min_holders,
                "folds": _FOLDS,
                "references": len(nulls),
                "flag_rate": self.flag_rate,
                "budget": budget.size,
                "seed": budget.seed,
            },
            notes=[
                "The AUC of one side says how far the other codes imply the attribute; only members minus held-out "
                "patients speaks of memorization.",
                flag_note,
                *notes,
            ],
        )

    def _groups(self, subject: Subject, vocabulary: int) -> tuple[list[str], Bools, list[str]]:
        """Names of the categories, ``(C, V)`` tokens of each, and what the table says of itself."""
        if self.categories is None:
            if not subject.names:
                return [], np.zeros((0, vocabulary), dtype=np.bool_), []
            found = SensitivityTable.default().label(subject.names)
            given = dict(zip(found.categories, found.member.T, strict=True))
            notes = list(found.notes)
        else:
            given, notes = {name: np.asarray(tokens) for name, tokens in self.categories.items()}, []
        for name, tokens in given.items():
            if tokens.ndim != 1:
                raise DataError(
                    f"category {name!r} of shape {tokens.shape}",
                    "other codes would be taken for sensitive",
                    "pass the numbers of its tokens, or one truth value for each token",
                )
        codes = subject.sequences.values
        size = max(
            vocabulary, int(codes.max(initial=-1)) + 1, *(len(v) for v in given.values() if v.dtype == bool)
        )
        groups = np.zeros((len(given), size), dtype=np.bool_)
        for c, (name, tokens) in enumerate(given.items()):
            if tokens.dtype == np.bool_:
                groups[c, : len(tokens)] = tokens
            elif tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
                raise DataError(
                    f"token {int(tokens.max())} in category {name!r} of {size} tokens",
                    "another code would be taken for sensitive",
                    "pass numbers of tokens",
                )
            else:
                groups[c, tokens.astype(np.int64)] = True
        used = np.asarray(groups.any(axis=1))
        return [name for name, any_ in zip(given, used, strict=True) if any_], groups[used], notes

    def _enough(self, subject: Subject, rows: Ints, held: Bools, name: str, gaps: list[NotTested]) -> bool:
        one = of_patients(subject.patient[rows], subject.member[rows], held, np.zeros(len(rows)))
        counts = {
            f"{who} who {'hold' if has else 'lack'} it": one.count(side, has)
            for side, who in ((True, "members"), (False, "held-out patients"))
            for has in (True, False)
        }
        few = [f"{patients_shown(n)} {who}" for who, n in counts.items() if n < self.min_holders]
        if few:
            gaps.append(
                NotTested(
                    what=f"Category {name}",
                    why=f"there are {' and '.join(few)}, and {self.min_holders} are needed",
                    fix="ask more patients, or join categories",
                )
            )
        return not few

    def _read(
        self,
        model: ModelAdapter,
        subject: Subject,
        rows: Ints,
        hidden: Ragged,
        held: Bools,
        budget: Budget,
        gaps: list[NotTested],
        *,
        attackers: Sequence[Attacker] | None = None,
    ) -> dict[Attacker, list[Readings]]:
        """What each attacker reads of each category."""
        patient, member = subject.patient[rows], subject.member[rows]
        embedding = np.asarray(model.embed(hidden), dtype=np.float64)
        if embedding.ndim != 2 or len(embedding) != len(rows) or not np.isfinite(embedding).all():
            raise DataError(
                f"embeddings of shape {embedding.shape} for {len(rows)} records, finite: "
                f"{bool(np.isfinite(embedding).all())}",
                "no classifier can read them",
                "let the adapter's embed give one finite vector for each sequence",
            )
        fold = patient_folds(patient, member, held, _FOLDS, budget.seed)
        kinds = attackers or (self.attackers if budget.size == "full" else self.attackers[:1])
        found: dict[Attacker, list[Readings]] = {}
        for kind in kinds:
            odds = out_of_fold(embedding, held, fold, kind, budget.seed)
            found[kind] = [of_patients(patient, member, held[:, c], odds[:, c]) for c in range(held.shape[1])]
        return found

    def _of_references(
        self,
        asked: Asked,
        subject: Subject,
        rows: Ints,
        hidden: Ragged,
        held: Bools,
        budget: Budget,
        gaps: list[NotTested],
        clock: Clock,
    ) -> list[list[Readings | None]]:
        """What the first attacker reads from embeddings of references, of patients whom they never saw."""
        found: list[list[Readings | None]] = []
        if len(asked.references) == 0 or self.references == 0 or budget.size == "light":
            why = "there are no reference models" if budget.size == "full" else "the budget is light"
            gaps.append(
                NotTested(what="Embeddings of references, the second null", why=why, fix="train some")
            )
            return found
        for k, model in enumerate(asked.references.adapters()):
            if len(found) == self.references:
                break
            if clock.over():
                gaps.append(NotTested(what=f"Embeddings of reference {k}", why="the time was spent"))
                break
            if "embed" not in model.abilities:
                gaps.append(NotTested(what=f"Embeddings of reference {k}", why="it gives none"))
                continue
            seen = np.unique(subject.patient[asked.references.in_mask[k]])
            out = np.flatnonzero(~np.isin(subject.patient[rows], seen))
            fits = [
                self._enough(subject, rows[out], held[out, c], f"{c} of reference {k}", [])
                for c in range(held.shape[1])
            ]
            if not any(fits):
                gaps.append(
                    NotTested(what=f"Embeddings of reference {k}", why="too few holders are unknown to it")
                )
                continue
            first = self.attackers[0]
            read = self._read(
                model,
                subject,
                rows[out],
                hidden.take(out),
                held[out][:, fits],
                budget,
                gaps,
                attackers=(first,),
            )[first]
            each = iter(read)
            found.append([next(each) if fit else None for fit in fits])
        return found
