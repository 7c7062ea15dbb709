"""Train the arms of a study on the same halves of the patients, attack them alike, and say what may be concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memguard.capture.stillness import forked_rng
from memguard.comparing.compute import compute
from memguard.comparing.gathered import gathered, whole
from memguard.comparing.kept import Kept, Measured, arm_recipe, function_recipe, recipe_of
from memguard.comparing.loaded import Loaded
from memguard.comparing.measuring import measure
from memguard.comparing.outcomes import Outcomes
from memguard.comparing.population import Population, read_population
from memguard.comparing.spread import Backend, each
from memguard.comparing.study import Arm, Study
from memguard.comparing.training import Run, fit, of_arm
from memguard.errors import MemguardError
from memguard.references.progress import say
from memguard.references.recipe import content_hash, fingerprint
from memguard.report.comparison import Comparison

__all__ = ["compare", "run_study"]


def compare(
    study: Study,
    *,
    folder: str | Path = "memguard-compare",
    arms: Sequence[str] | None = None,
    backend: Backend = "sequential",
    ray_options: Mapping[str, Any] | None = None,
    ray_workers: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare ways to train: what each leaks of whom, and what each costs.

    For every seed the training patients are divided into two halves, and each arm trains a model on each. Every model
    is then attacked with the models of all other seeds of its own arm as references, so that each arm faces an
    attacker who knows it. What counts is the strongest attack, among the hardest patients as well as all, and the
    difference from the baseline over the seeds.

    Args:
        study: Arms and settings.
        folder: Finished trainings are kept in ``folder/runs``, for the owner alone: a study that was killed goes on
            where it stood, and one with another arm trains that arm alone.
        arms: Names of the arms to train and compare; all when not given. The baseline is always among them.
        backend: ``"sequential"``, or ``"ray"`` for several trainings at a time on this machine or on a cluster.
        ray_options: Of a Ray task (``num_cpus``, ``num_gpus``, ``resources``).
        ray_workers: Start a Ray of this process alone, with so many tasks at a time.
        progress: Say how far it is.

    Returns:
        Numbers with intervals, what may be concluded and what may not; ``save`` it to a folder.

    Raises:
        MemguardError: If an arm cannot be trained or compared; what was finished before is kept.

    Guarantees:
        It compares; it proves nothing of an arm. A stronger attack than those that were run may find more, and an arm
        without differential privacy has no bound. Intervals are over seeds on these patients, not over other patients.

    References:
        Aerni, Zhang and Tramer 2024, "Evaluations of machine learning privacy defenses are misleading",
        arXiv:2404.17399 (the most vulnerable records, adaptive attacks, DP-SGD as the baseline at equal utility);
        Carlini et al. 2022, "The privacy onion effect", arXiv:2206.10469; "Membership inference attacks from first
        principles", arXiv:2112.03570.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
        >>> study = Study(data=BoringDataModule, arms={"plain": Arm(model=BoringModel)}, baseline="plain")
        >>> study.seeds, study.control_name  # compare(study, folder="runs/study") trains 2 arms x 8 seeds x 2 halves
        (8, 'plain, trained again')
    """
    outcomes = run_study(
        study, folder=folder, arms=arms, backend=backend, ray_options=ray_options, ray_workers=ray_workers,
        progress=progress,
    )  # fmt: skip
    if progress:
        say("attacking every model with the others of its arm ...")
    return compute(outcomes, fpr=study.fpr, hardest=study.hardest, tolerance=study.tolerance)


def run_study(
    study: Study,
    *,
    folder: str | Path = "memguard-compare",
    arms: Sequence[str] | None = None,
    backend: Backend = "sequential",
    ray_options: Mapping[str, Any] | None = None,
    ray_workers: int | None = None,
    progress: bool = True,
) -> Outcomes:
    """The trainings of a study, without the arithmetic; arguments as `compare` takes them."""
    chosen = _chosen(study, arms)
    baseline = study.arms[study.baseline]
    loaded = Loaded(study.data())
    with forked_rng(study.seed):
        module = baseline.model()
    if progress:
        say("reading the records of both sides ...")
    population = read_population(study, loaded, module)
    halves = population.halves(study.seeds, study.seed)
    runs = [
        Run(
            arm=name,
            seed=k // 2,
            half=k % 2,
            again=name == study.control_name,
            patients=halves[k],
            study_seed=study.seed,
        )
        for k in range(2 * study.seeds)  # seed by seed: an arm that cannot be trained is found early
        for name in chosen
    ]
    kept, data = Kept(Path(folder)), fingerprint(loaded.training_data(population.patient))
    settings: dict[str, Any] = {"stages": study.stages, "seed": study.seed}
    if study.per_record_loss is not None:
        settings["per_record_loss"] = function_recipe(study.per_record_loss)
    told = {name: arm_recipe(arm) for name, arm in chosen.items()}
    asked_by = content_hash(told[study.baseline])
    recipes = [recipe_of(run, told[run.arm], data=data, study=settings) for run in runs]
    found: dict[int, Measured] = {}
    for at, recipe in enumerate(recipes):
        one = kept.get(recipe, baseline=asked_by)
        if one is not None:
            found[at] = whole(runs[at], one, population)
    missing = [at for at in range(len(runs)) if at not in found]
    if progress:
        say(f"{len(runs)} trainings, {len(found)} of them kept from before")
    work = _Work(study, loaded, population, chosen, runs)
    done = each(work, missing, backend, ray_options=ray_options, ray_workers=ray_workers)
    for count, (at, one) in enumerate(done, 1):
        kept.put(recipes[at], one, baseline=asked_by)
        found[at] = whole(runs[at], one, population)
        if progress:
            say(f"{count} of {len(missing)}: {runs[at]}, {one.seconds:.0f} s")
    return gathered(study, population, chosen, runs, [found[at] for at in range(len(runs))])


def _chosen(study: Study, arms: Sequence[str] | None) -> dict[str, Arm]:
    unknown = sorted(set(arms or ()) - set(study.arms))
    if unknown:
        raise MemguardError(
            f"arms {', '.join(map(repr, unknown))}",
            "the study has no such arms",
            f"choose among {', '.join(map(repr, study.arms))}",
        )
    always = {study.baseline, study.control_name}
    return {
        name: arm for name, arm in study.trained.items() if arms is None or name in arms or name in always
    }


@dataclass(frozen=True)
class _Work:
    """Trains and measures one run; sent to other processes as it is."""

    study: Study
    loaded: Loaded
    population: Population
    arms: Mapping[str, Arm]
    runs: Sequence[Run]

    def __call__(self, at: int) -> Measured:
        run, study = self.runs[at], self.study
        trained = fit(run, self.arms[run.arm], self.loaded, self.population, stages=study.stages)
        with of_arm(run.arm, "measured"):
            loss, same = measure(
                trained.module,
                trained.states,
                self.loaded.whole(),
                self.population.sides,
                plain=study.arms[study.baseline].model,
                record_to_patient=study.record_to_patient,
                per_record_loss=study.per_record_loss,
            )
        return Measured(
            loss=loss,
            same=same,
            epochs=np.asarray(trained.epochs, np.float64),
            touched=trained.touched,
            steps=trained.steps,
            epsilon=trained.epsilon,
            metrics=trained.metrics,
            seconds=trained.seconds,
        )
