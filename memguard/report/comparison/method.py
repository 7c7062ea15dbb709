"""How a comparison was made, in words: what a seed is, who attacks, what an interval stands for."""

from __future__ import annotations

from memguard.report.comparison.data import Comparison
from memguard.report.comparison.wording import FIXED_MEASURES, name_of_group, per, rate
from memguard.report.text import count

__all__ = ["does_not_show", "method", "methods_named"]


def method(comparison: Comparison) -> list[tuple[str, str]]:
    """Term and explanation, in the order in which a reader needs them.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> [term for term, _ in method(found)][:3]
        ['A seed', 'The attacks', 'The strongest']
    """
    hardest = name_of_group(comparison, "hardest")
    return [
        (
            "A seed",
            f"One division of the {count(comparison.patients)} patients into two halves, and a model trained on each. "
            "All arms train on the same halves from the same initial weights, so arms are compared in pairs. "
            f"{comparison.seeds} seeds make {comparison.models} models an arm; each is attacked.",
        ),
        (
            "The attacks",
            "They adapt to the arm: whoever attacks a model has the models of all other seeds, trained the same way, "
            "as references. For each patient they ask whether the loss is that of a model trained on the patient. "
            "They read the losses as deployed and, where that differs, as in training and through the baseline's own "
            "code: an arm that only hides its losses when it is evaluated hides nothing from them.",
        ),
        (
            "The strongest",
            "Every leakage number is the maximum over the attacks, taken anew in every replicate of the interval. A "
            "maximum is too high by chance, in all arms alike; that is fair to the difference, not to the level.",
        ),
        (
            "Found",
            f"Share of the members above the threshold that {rate(comparison.fpr)} of all non-members exceed. "
            "The threshold is one for all patients, so that groups can be compared.",
        ),
        (
            hardest[:1].upper() + hardest[1:],
            "For each seed, those patients whose losses differ most between models that trained on them and models "
            "that did not, in the OTHER seeds and on average over all arms, each with the same say. Chosen by the "
            "models that are attacked, or by one arm alone, they would favour an arm by chance. An average over all "
            "patients hides them, and conclusions are drawn on them.",
        ),
        (
            "Utility",
            f"Mean loss in {per(comparison.unit)} of held-out patients. One half of them chooses (it is what an arm "
            "sees as validation data, and what a level of matched utility is measured on); the other half judges, and "
            "every number here is of that half.",
        ),
        (
            "Matched utility",
            "The earliest stage of an arm's training at which it is as good as the level asks. The baseline is treated "
            "the same way: stopping early costs nothing and is granted to everybody.",
        ),
        (
            "Unseen patients",
            "Loss of the patients of a group whom the model did not train on, those of the judging half among them: "
            "what a rare patient who comes tomorrow would get. An arm that learns nothing rare leaks nothing rare, "
            "and this is where its price stands.",
        ),
        (
            "Untouched patients",
            "Patients whom a mitigation left alone in the runs of the other seeds. Taking out those who are easiest to "
            "find can expose the next ones; training again with new seeds moves patients too, and stands beside it.",
        ),
        (
            "An interval",
            f"{rate(comparison.confidence)}, from leaving out the models of one seed after another, "
            f"with {comparison.seeds - 1} degrees of freedom. It speaks of other seeds over the same patients, not of "
            "other patients. Each stands for itself: of a hundred that are "
            "right, some miss the truth by chance. Where it says “all arms”, it holds for all arms together.",
        ),
    ]


def methods_named(comparison: Comparison) -> list[tuple[str, str]]:
    """Measure and how its intervals were made, as the numbers themselves say.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> methods_named(found)
        []
    """
    spoken = {
        "tpr": "members found",
        "tpr_as_deployed": "members found, as deployed alone",
        "auc": "AUC",
        "held_out_loss": "held-out loss",
        "unseen_loss": "loss of unseen patients",
    }
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        name = spoken[row.measure] if row.measure in FIXED_MEASURES else row.measure
        ways = found.setdefault(name, [])
        ways += [row.value.method] if row.value.method and row.value.method not in ways else []
    return [(name, "; ".join(ways)) for name, ways in found.items() if ways]


def does_not_show() -> list[str]:
    """What no comparison of this kind can show.

    Example:
        >>> len(does_not_show())
        4
    """
    return [
        "That an arm leaks nothing else: attacks on losses were run, and better ones may come. A lower number is "
        "evidence against these attacks. Only an arm with a finite epsilon has a guarantee, and only the one written "
        "beside it.",
        "The risk of one patient. Rates are pooled over patients and models.",
        "What happens with other data, another model or more training. The division of the patients and the seeds were "
        "varied, the recipe was not.",
        "A legal conclusion. This is evidence for those who have to decide.",
    ]
