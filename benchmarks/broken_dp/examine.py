"""Everything that memguard can ask of a pipeline, asked in turn; what was found, by whom, with which number."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.broken_dp.gradients import ACROSS
from benchmarks.broken_dp.pipeline import ONE_RECORD, Pipeline
from benchmarks.broken_dp.world import World, canaries, cohort, record_losses, with_odd_patients
from memguard.attacks import epsilon_one_run
from memguard.privacy.guards.batch_statistics import batch_statistics, changed_buffers
from memguard.privacy.guards.coverage import coverage, optimizer_covers, weights_moved
from memguard.privacy.guards.denominator import denominator, frozen
from memguard.privacy.guards.inclusion import included_matrix, inclusion_variance
from memguard.privacy.guards.noise import noise_residual, noise_reuse, noise_scaling
from memguard.privacy.guards.ranks import rank_masks
from memguard.privacy.guards.reweighting import reweighting
from memguard.privacy.guards.scaling import scaling
from memguard.privacy.guards.sensitivity import sensitivity
from memguard.privacy.guards.steps import fresh_seeds, one_draw_each, steps_accounted

AUDIT_CONFIDENCE = 1 - 1e-6  # an audit at 95 % would be wrong in one correct run of twenty
AUDIT_DELTA = 1e-10  # far below what the audit may err by, divided among its canaries
DRAWS = 150
SHARED = Path("/dev/shm")
IN_MEMORY = SHARED if SHARED.is_dir() else None  # a ledger waits for the disk at each step


@dataclass
class Caught:
    guard: str
    finding: str
    number: str


def examine(bug=None, seed=0, *, audit=True, n_canaries=400):
    """Findings on the pipeline with this bug, in the order of the questions."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        found = [*contributions(bug, seed, folder), *run(bug, seed, folder)]
        if audit:
            found += audited(bug, seed, folder, n_canaries)
    return found


def caught(guard, verdict, number):
    return [] if verdict.ok else [Caught(guard, verdict.finding.id, number)]


def contributions(bug, seed, folder):
    """Before training: at fixed parameters, on a few patients, some of them odd."""
    records = 1 if bug in ONE_RECORD else 4
    base = cohort(40, seed, records)
    pipe = Pipeline(with_odd_patients(base), folder, bug, entropy=seed)
    pipe.expected = pipe.rate * base.n
    odd = [base.n] if bug in ACROSS or bug in ONE_RECORD else [base.n, base.n + 1]
    few = [*range(6), *odd]
    found = caught("layers", layers := batch_statistics(pipe.net), ", ".join(layers.names))
    x = pipe.world.x[:, 0]
    moved = changed_buffers(pipe.net, [lambda: pipe.net(x[:4]), lambda: pipe.net(x[4:8])])
    found += caught("buffers", moved, ", ".join(moved.names))
    named = list(pipe.net.named_parameters())
    covered = optimizer_covers(named, pipe.clipped_parameters())
    found += caught("parameters", covered, f"{len(covered.missing)} not clipped")
    # In a random order, so that a batch is not sorted by what a loss may depend on.
    order = np.random.default_rng(seed).permutation(few).tolist()
    for c in (pipe.c, pipe.c / 100):  # at the second, all are clipped
        felt = sensitivity(lambda o, c=c: pipe.clipped_sum(o, c), order, c)
        numbers = f"{felt.max_ratio:.3g} C, company {felt.company:.2g} C at C = {c:g}"
        found += caught("sensitivity", felt, numbers)
    clip = scaling(lambda c: pipe.clipped_sum(range(12), c), 12, pipe.c)
    found += caught("clipping", clip, f"{max(clip.norms):.3g} of what n owners can give")
    batches = [range(2), range(2, 9), range(9, 30)]
    sums = [pipe.clipped_sum(b) for b in batches]
    if all(torch.isfinite(t).all() for s in sums for t in s):
        by = denominator(sums, [pipe.update(b, noisy=False) for b in batches], pipe.expected)
        found += caught(
            "denominator", by, f"{min(by.values):.3g} to {max(by.values):.3g} for {by.expected:.3g}"
        )
    loose = pipe.clipped_sum(range(12), 1e9)
    pipe.net.zero_grad()
    who = torch.arange(12)
    x, y, mask = pipe.world.x[who], pipe.world.y[who], pipe.world.mask[who]
    shares = mask / mask.sum(1, keepdim=True)
    losses = record_losses(pipe.net, x[mask], y[mask], bug)
    whole = torch.autograd.grad((losses * shares[mask]).sum(), list(pipe.net.parameters()))
    names = [name for name, _ in named]
    same = coverage(dict(zip(names, loose, strict=True)), dict(zip(names, whole, strict=True)))
    found += caught("coverage", same, f"{same.errors[same.worst]:.2g} in {same.worst}")
    apart = reweighting(pipe.weights_of, range(40))
    found += caught("weights", apart, f"{100 * apart.change:.0f} %")
    pipe.ledger.close()
    return found


def run(bug, seed, folder):
    """A training that is killed and resumed with a patient less; noise, draws and books."""
    world = cohort(80, seed, 1 if bug in ONE_RECORD else 4)
    pipe = Pipeline(world, folder, bug, entropy=seed)
    taken = [0]
    pipe.optimizer.register_step_post_hook(lambda *_: taken.__setitem__(0, taken[0] + 1))
    pipe.tune()
    pairs = [(pipe.update(range(6)), pipe.update(range(6)))]
    before = {n: p.detach().clone() for n, p in pipe.net.named_parameters()}
    pipe.train(1)
    moved = weights_moved(before, dict(pipe.net.named_parameters()))
    pipe.train(19)
    pairs += [(pipe.update(range(k)), pipe.update(range(k))) for k in (3, 12)]
    draws = [pipe.draw() for _ in range(DRAWS)]
    pipe.resume(World(world.x[:-1], world.y[:-1], world.mask[:-1]))
    again = [pipe.draw() for _ in range(DRAWS)]
    pipe.train(20)
    found = caught("weights moved", moved, f"{len(moved.missing)} still")
    noise = noise_residual(pairs, pipe.sigma, pipe.c, pipe.rate * world.n)
    found += caught("noise", noise, f"scale {noise.scale:.2f}, {noise.silent} silent")
    grows = noise_scaling(lambda c: pipe.update(range(5), c), pipe.sigma, pipe.c, pipe.expected)
    found += caught("noise at other C", grows, f"scale {grows.scale:.2f}")
    reuse = noise_reuse(pipe.noises)
    found += caught("noise of starts", reuse, f"correlation {reuse.correlation:.2f}")
    inclusion = inclusion_variance(included_matrix([*draws, *again], world.n)[:, :-1], pipe.rate)
    numbers = f"rate {inclusion.rate:.3f}, sizes {inclusion.size_variance:.2f}, counts {inclusion.count_variance:.2f}"
    found += caught("inclusion", inclusion, f"{numbers}, {inclusion.repeated} repeated")
    spread = Pipeline(world, folder, bug, entropy=seed, ranks=2)
    parts = [spread.draw_ranks() for _ in range(60)]
    ranks = rank_masks(
        np.stack([included_matrix([p[r] for p in parts], world.n) for r in range(2)]), spread.rate
    )
    found += caught("ranks", ranks, f"{ranks.twice} drawn twice")
    spread.ledger.close()
    torn = one_draw_each(pipe.drawn, pipe.used)
    found += caught("draws", torn, f"{torn.dropped} dropped, {torn.skipped} skipped")
    steps = steps_accounted(sum(p.steps for p in pipe.ledger.history()), taken[0])
    found += caught("steps", steps, f"{steps.accounted} of {steps.taken} accounted")
    seeds = fresh_seeds(pipe.seeds)
    found += caught("seeds", seeds, f"{len(seeds.repeated)} repeated")
    found += [Caught("ledger", "refused a start", str(each.seen)) for each in pipe.refused]
    constants = frozen(pipe.constants)
    found += caught("constants", constants, ", ".join(f"{k} {v}" for k, v in constants.changed.items()))
    pipe.ledger.close()
    sparse = Pipeline(world, folder, bug, rate=0.02, entropy=seed)  # one draw in five is empty
    sparse.train(60)
    skipped = steps_accounted(sparse.ledger.n_steps, sparse.t, scheduled=len(sparse.drawn))
    found += caught("empty draws", skipped, f"{skipped.taken} of {skipped.scheduled} steps")
    sparse.ledger.close()
    return found


def audited(bug, seed, folder, m):
    """One training with canaries, each in by a fair coin: what does the final model show?"""
    if bug in ACROSS or bug in ONE_RECORD:
        return []  # another model
    coins = np.random.default_rng([seed, 77]).random(m) < 0.5
    planted = canaries(m, seed)
    who = torch.tensor(np.flatnonzero(coins))
    world = World(planted.x[who], planted.y[who], planted.mask[who])
    pipe = Pipeline(world, folder, bug, rate=0.1, sigma=6.0, c=2.0, lr=0.02, chunks=1, linear=True)
    pipe.expected = pipe.rate * m / 2
    pipe.train(300)
    weight = pipe.net[0].weight.detach()
    own = weight[planted.y[:, 0], torch.arange(m)]
    scores = (own - weight.mean(0)).numpy()
    claimed = pipe.epsilon(AUDIT_DELTA)
    pipe.ledger.close()
    if not np.isfinite(scores).all():
        return [Caught("audit", "audit/nonfinite", "weights are NaN")]
    bound = epsilon_one_run(scores, coins, delta=AUDIT_DELTA, confidence=AUDIT_CONFIDENCE)
    if bound.epsilon <= claimed:
        return []
    return [Caught("audit", "audit/above", f"at least {bound.epsilon:.2f} where {claimed:.2f} is claimed")]
