"""A short DP-SGD with the patient as the unit: right as it stands, wrong where ``bug`` says so."""

from __future__ import annotations

import copy
import hashlib
import os

import torch

from benchmarks.broken_dp.gradients import ACROSS, by_hooks, by_share, opacus_ghost, two_passes
from benchmarks.broken_dp.world import World, model, record_losses
from memguard.errors import PrivacyError
from memguard.privacy.accounting import rdp_epsilon
from memguard.privacy.ledger import Ledger

DELTA = 1e-3
ONE_RECORD = {"tied_weight", "ghost_misuse"}


class Pipeline:
    """Training of one model, with a ledger.

    Args:
        world: The patients.
        folder: For the ledger.
        bug: One of ``bugs.BUGS``, or none.
        rate: At which a patient is drawn.
        ranks: Processes, simulated; each takes its part of a draw.
        entropy: Seed of the model alone.
    """

    def __init__(
        self, world: World, folder, bug=None, *, rate=0.15, sigma=1.2, c=2.0, lr=0.2, chunks=3, ranks=1,
        entropy=0, linear=False,
    ):  # fmt: skip
        self.world, self.bug, self.rate, self.sigma, self.c = world, bug, rate, sigma, c
        self.chunks, self.ranks, self.linear = chunks, ranks, linear
        torch.manual_seed(entropy)
        self.net = model(bug, world.x.shape[2], linear)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr)
        self.n, self.expected = world.n, rate * world.n
        self.t, self.drawn, self.used, self.noises, self.seeds, self.constants = 0, [], [], [], [], []
        self.refused: list[PrivacyError] = []
        self.folder, self.ledger, self._queue = folder, None, []
        self._first = os.urandom(16)  # what a bug uses again
        if bug == "warm_start":
            self._train_without_privacy()
        self._start()

    # -- starts ------------------------------------------------------------------------------------------

    def _start(self):
        resumed = self.ledger is not None
        seeds = {use: os.urandom(16) for use in ("noise", "draws")}
        if self.bug in ("noise_reused_on_resume", "draws_reused_on_resume"):
            seeds[self.bug.split("_")[0]] = self._first
        self._noise, self._coins = (
            torch.Generator().manual_seed(int.from_bytes(seeds[use][:7], "big")) for use in ("noise", "draws")
        )
        if resumed and self.bug == "expected_from_data":
            self.expected = self.rate * self.world.n
        self.constants.append(
            {"C": self.c, "rate": self.rate, "sigma": self.sigma, "expected": self.expected}
        )
        if not resumed or self.bug == "accountant_reset":
            if resumed:
                self.ledger.close()
            self.ledger = Ledger.create(
                self.folder, fingerprint="cohort", facts={"unit": "patient", "n_owners": self.n}
            )
            self.ledger.phase(
                self.sigma, {"everybody": self.rate}, expected_patients=self.expected, max_grad_norm=self.c, delta=DELTA
            )  # fmt: skip
        self._write_seeds("resumed" if resumed and self.bug != "accountant_reset" else "started", seeds)
        self._kept = 3

    def _write_seeds(self, kind, seeds):
        prints = {use: hashlib.sha256(seed).hexdigest() for use, seed in seeds.items()}
        self.seeds += prints.values()
        try:
            self.ledger.append(kind, seeds=prints)
        except PrivacyError as refused:  # a pipeline that does not listen
            self.refused.append(refused)
            self.ledger.append(kind, seeds={use: os.urandom(16).hex() for use in seeds})

    def resume(self, world=None):
        """Killed and started again from a checkpoint, perhaps with a patient less."""
        state = copy.deepcopy([self.net.state_dict(), self.optimizer.state_dict()])
        self.world = world or self.world
        self._queue = []
        self._start()
        self.net.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])

    # -- draws -------------------------------------------------------------------------------------------

    def draw(self):
        """Patients of the next step, over all ranks."""
        return sorted({p for part in self.draw_ranks() for p in part})

    def draw_ranks(self):
        """The same, for each rank; a patient is on one of them."""
        n = self.world.n
        if self.bug == "rank_seeds" and self.ranks > 1:  # each rank draws from all patients, same seed
            state = self._coins.get_state()
            parts = []
            for _ in range(self.ranks):
                self._coins.set_state(state)
                parts.append(self._coin(self.rate / self.ranks))
            return parts
        if self.bug == "shuffled":
            size = round(self.expected)
            if len(self._queue) < size:
                self._queue = torch.randperm(n, generator=self._coins).tolist()
            chosen, self._queue = self._queue[:size], self._queue[size:]
        elif self.bug == "fixed_size":
            chosen = torch.randperm(n, generator=self._coins)[: round(self.expected)].tolist()
        else:
            chosen = self._coin(2 * self.rate if self.bug == "wrong_rate" else self.rate)
        return [chosen[rank :: self.ranks] for rank in range(self.ranks)]

    def _coin(self, rate):
        return torch.nonzero(torch.rand(self.world.n, generator=self._coins) < rate)[:, 0].tolist()

    # -- the update --------------------------------------------------------------------------------------

    def clipped_sum(self, owners, c=None):
        """Sum of the contributions of these patients, without noise; one tensor for each parameter."""
        c = self.c if c is None else c
        total, self.in_sum = self._zeros(), []
        owners = list(owners)
        chunks = [owners[i :: self.chunks] for i in range(self.chunks)]
        if self.bug in ACROSS:
            chunks = [owners]
        for chunk in chunks:
            if not chunk:
                continue
            if self.bug == "dropped_micro_batches":
                total, self.in_sum = self._zeros(), []
            self.in_sum += chunk
            for to, part in zip(total, self._clipped_chunk(chunk, c), strict=True):
                to += part
        if self.bug == "clip_after_averaging":
            norm = torch.cat([t.reshape(-1) for t in total]).norm()
            total = [t * (c / norm).clamp(max=1.0) for t in total]
        return total

    def _clipped_chunk(self, owners, c):
        x, y, mask = (a[owners] for a in (self.world.x, self.world.y, self.world.mask))
        if self.bug == "ghost_misuse":
            return opacus_ghost(self.net, x, y, c, self.expected)
        if self.bug == "tied_weight":
            return two_passes(self.net, x, y, c, self.bug)
        if self.bug == "row_level":  # records become units of their own
            x, y = x[mask][:, None], y[mask][:, None]
            mask = torch.ones(len(x), 1, dtype=torch.bool)
        gradients = (by_share if self.bug in ACROSS else by_hooks)(self.net, x, y, mask, self.bug)
        flat = [g.reshape(len(g), -1) for g in gradients]
        norm = torch.cat(flat, dim=1).norm(dim=1)
        if self.bug == "clip_per_layer":
            factors = [(c / f.norm(dim=1)).clamp(max=1.0) for f in flat]
        elif self.bug in ("no_clipping", "clip_after_averaging", "clip_per_micro_batch"):
            factors = [torch.ones(len(norm))] * len(flat)
        else:
            factors = [(c / norm).clamp(max=1.0)] * len(flat)
        if self.bug != "nan_record":
            factors = [torch.where(torch.isfinite(norm), f, torch.zeros(())) for f in factors]
            flat = [torch.nan_to_num(f, nan=0.0, posinf=0.0, neginf=0.0) for f in flat]
        summed = [
            (k @ f).reshape(p.shape) for k, f, p in zip(factors, flat, self.net.parameters(), strict=True)
        ]
        if self.bug == "clip_per_micro_batch":
            norm = torch.cat([s.reshape(-1) for s in summed]).norm()
            summed = [s * (c / norm).clamp(max=1.0) for s in summed]
        return summed

    def update(self, owners, c=None, *, noisy=True):
        """What the optimizer gets."""
        c = self.c if c is None else c
        total = self.clipped_sum(owners, c)
        if noisy:
            total = [t + z for t, z in zip(total, self.noise(c, len(owners)), strict=True)]
        if self.bug == "uncovered_parameter":
            x, y, mask = (a[list(owners)] for a in (self.world.x, self.world.y, self.world.mask))
            last = list(self.net.parameters())[-1]
            if len(x):
                total[-1] = torch.autograd.grad(record_losses(self.net, x[mask], y[mask]).sum(), last)[0]
        by = max(1, len(owners)) if self.bug == "actual_batch" else self.expected
        return [t / by for t in total]

    def clipped_parameters(self):
        """Those whose gradients are clipped and noised."""
        named = list(self.net.named_parameters())
        return named[:-1] if self.bug == "uncovered_parameter" else named

    def noise(self, c, n_drawn):
        """Of the sum."""
        scale = self.sigma * c
        if self.bug == "noise_once" and self.t > 0:
            scale = 0.0
        if self.bug == "noise_without_c":
            scale = self.sigma
        if self.bug == "noise_on_actual":
            scale *= min(1.0, n_drawn / self.expected)
        if self.bug == "noise_alike":
            seed = int(torch.randint(2**31, (1,), generator=self._noise))
            drawn = [
                torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
                for p in self.net.parameters()
            ]
        else:
            drawn = [torch.randn(p.shape, generator=self._noise) for p in self.net.parameters()]
        if self._kept:
            self._kept -= 1
            self.noises.append(torch.cat([z.reshape(-1) for z in drawn]))
        return [scale * z for z in drawn]

    def step(self):
        owners = self.draw()
        self.drawn.append(owners)
        if not owners and self.bug == "empty_skipped":
            return
        self.ledger.step(self.t)
        for p, g in zip(self.net.parameters(), self.update(owners), strict=True):
            p.grad = g
        self.used.append(self.in_sum)
        self.optimizer.step()
        self.t += 1

    def train(self, steps):
        for _ in range(steps):
            self.step()

    def tune(self):
        """A learning-rate finder: a few steps on the patients, then all is as before."""
        if self.bug != "unaccounted_tuner":
            return
        kept = copy.deepcopy(self.net.state_dict())
        for _ in range(4):
            for p, g in zip(self.net.parameters(), self.update(self.draw()), strict=True):
                p.grad = g
            self.optimizer.step()
        self.net.load_state_dict(kept)

    def weights_of(self, owners):
        """Weight of each patient's loss in the next epoch, given who is in the data."""
        if self.bug != "reweighting":
            return torch.ones(len(owners)).numpy()
        x, y, mask = self.world.x, self.world.y, self.world.mask
        with torch.no_grad():
            each = [record_losses(self.net, x[o][mask[o]], y[o][mask[o]]).mean() for o in owners]
        losses = torch.stack(each)
        return torch.where(losses > losses.quantile(0.9), 0.2, 1.0).numpy()

    def epsilon(self, delta=DELTA):
        return rdp_epsilon(self.ledger.history(), delta)

    def _train_without_privacy(self):
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        usable = self.world.mask & self.world.x.isfinite().all(2)
        for _ in range(100):
            optimizer.zero_grad()
            record_losses(self.net, self.world.x[usable], self.world.y[usable]).mean().backward()
            optimizer.step()

    def _zeros(self):
        return [torch.zeros_like(p) for p in self.net.parameters()]
