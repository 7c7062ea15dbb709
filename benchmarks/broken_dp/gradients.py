"""Gradients of patients in four ways; three of them are right for a loss of single records."""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch.nn import functional as F

from benchmarks.broken_dp.world import record_losses

ACROSS = {"class_weighted_mean", "batch_standardized", "batch_norm", "cox", "contrastive"}


def linear_layers(net, run):
    """What ``run()`` returns, the linear layers in order, and what went in and came out of each."""
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    given, out = {}, {}

    def keep(layer, args, result):
        given[layer], out[layer] = args[0], result

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return result, [given[layer] for layer in layers], [out[layer] for layer in layers]


def by_hooks(net, x, y, mask, bug=None):
    """From inputs and output gradients of linear layers: one ``(P, *shape)`` a parameter, the mean over records."""
    losses, given, out = linear_layers(net, lambda: record_losses(net, x[mask], y[mask]))
    owner = torch.nonzero(mask)[:, 0]
    share = 1 / mask.sum(1)[owner]
    patients = []
    for inputs, g in zip(given, torch.autograd.grad((losses * share).sum(), out), strict=True):
        for rows in (g[:, :, None] * inputs.detach()[:, None, :], g):
            patients.append(torch.zeros(len(x), *rows.shape[1:]).index_add_(0, owner, rows))
    return patients


def by_share(net, x, y, mask, bug):
    """As hooks see a loss over the batch: the gradient of each record's share of it."""
    parameters = list(net.parameters())
    losses = record_losses(net, x[mask], y[mask], bug)
    owner = torch.nonzero(mask)[:, 0]
    rows = []
    for patient in range(len(x)):
        share = losses[owner == patient].mean()
        rows.append(torch.autograd.grad(share, parameters, retain_graph=True, allow_unused=True))
    return [
        torch.stack([torch.zeros_like(p) if row[i] is None else row[i] for row in rows])
        for i, p in enumerate(parameters)
    ]


def two_passes(net, x, y, max_grad_norm, bug=None):
    """Norms from inputs and output gradients of layers, then the gradient of the weighted loss. One record each."""
    losses, given, out = linear_layers(net, lambda: record_losses(net, x[:, 0], y[:, 0], bug))
    outs = torch.autograd.grad(losses.sum(), out, retain_graph=True)
    squares = sum(g.square().sum(1) * (i.square().sum(1) + 1) for i, g in zip(given, outs, strict=True))
    factor = (max_grad_norm / squares.sqrt()).clamp(max=1.0).detach()
    return list(torch.autograd.grad((factor * losses).sum(), list(net.parameters())))


def opacus_ghost(net, x, y, max_grad_norm, expected):
    """Opacus in ghost mode with the loss that any training step returns. One record each."""
    wrapped = GradSampleModuleFastGradientClipping(net, max_grad_norm=max_grad_norm, use_ghost_clipping=True)
    try:
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(wrapped.parameters(), lr=0.1),
            noise_multiplier=0.0, max_grad_norm=max_grad_norm, expected_batch_size=int(expected),
        )  # fmt: skip
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(x[:, 0]), y[:, 0], reduction="sum") / expected
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # no input requires a gradient
            loss.backward()
        optimizer.accumulate()
        optimizer.add_noise()
        return [p.grad.detach().clone() * expected for p in net.parameters()]
    finally:
        for p in net.parameters():
            p.grad = None
        wrapped.to_standard_module()
