"""Continuations have the distribution that was asked for, and do not depend on how they are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _sequence_models import Plain, Recurrent, V, made, naive_next, sequences
from scipy import stats

from memguard.adapters import CausalAdapter
from memguard.adapters.sampling import draw
from memguard.errors import MemguardError
from memguard.records.content import Ragged


def naive(model, prompt, n_new, temperature, top_p, stream):
    """One token after the other, from the whole sequence each time, with a sort in plain Python."""
    tokens = list(prompt)
    for u in stream.random(n_new):
        p = np.exp(naive_next(model, np.array(tokens)))
        if temperature == 0:
            tokens.append(int(p.argmax()))
            continue
        p = p ** (1 / temperature)
        p /= p.sum()
        allowed, total = [], 0.0
        for token in sorted(range(len(p)), key=lambda v: (-p[v], v)):
            if total >= top_p:
                break
            allowed.append(token)
            total += p[token]
        order = sorted(allowed) if top_p >= 1 else allowed
        below = 0.0
        for token in order:
            below += p[token] / p[order].sum()
            if u < below:
                break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("build", [Plain, Recurrent])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.5, 0.3), (0.0, 1.0)])
def test_continuations_equal_the_naive_loop(build, temperature, top_p):
    model = made(build)
    prompts = sequences(1, 6, 9, shortest=1)
    found = CausalAdapter(model, batch=4).generate(
        prompts, 5, samples=3, temperature=temperature, top_p=top_p, seed=8
    )
    assert len(found) == 18
    for i in range(6):
        for j in range(3):
            stream = np.random.default_rng([8, 3 * i + j])
            expected = naive(model, prompts[i], 5, temperature, top_p, stream)
            assert found[3 * i + j].tolist() == expected


def test_batches_do_not_matter_and_more_tokens_prolong():
    model = made(Plain)
    prompts = sequences(2, 23, 20, shortest=1)
    one = CausalAdapter(model, batch=1).generate(prompts, 8, samples=4, seed=3)
    many = CausalAdapter(model, batch=64).generate(prompts, 8, samples=4, seed=3)
    assert one.values.tolist() == many.values.tolist() and one.offsets.tolist() == many.offsets.tolist()
    more = CausalAdapter(model).generate(prompts, 11, samples=4, seed=3)
    assert all(more[i][:8].tolist() == one[i].tolist() for i in range(len(one)))
    other = CausalAdapter(model).generate(prompts, 8, samples=4, seed=4)
    assert np.mean([other[i].tolist() == one[i].tolist() for i in range(len(one))]) < 0.1
    assert len({tuple(one[i].tolist()) for i in range(4)}) > 1  # samples of one prompt have their own streams


def test_prompt_and_continuation_share_the_longest():
    prompts = Ragged.from_lists([[1] * 30, [1] * 32, [1] * 5, [1] * 31])
    found = CausalAdapter(made(Plain)).generate(prompts, 4)
    assert found.lengths.tolist() == [2, 0, 4, 1]


def test_an_end_token_ends():
    model = made(Plain)
    prompts = sequences(3, 40, 9, shortest=1)
    free = CausalAdapter(model).generate(prompts, 12, seed=1)
    ended = CausalAdapter(model, stop=5).generate(prompts, 12, seed=1)
    hit = 0
    for i in range(40):
        tokens = free[i].tolist()
        if 5 in tokens:
            hit += 1
            tokens = tokens[: tokens.index(5) + 1]
        assert ended[i].tolist() == tokens
    assert 5 < hit < 40


def test_frequencies_are_those_of_the_model():
    model = made(Recurrent)
    prompt = Ragged.from_lists([[3, 4, 5]])
    adapter = CausalAdapter(model, batch=4096)
    p = np.exp(adapter.next_log_probs(prompt)[0])
    drawn = adapter.generate(prompt, 1, samples=20_000, seed=0).values
    counts = np.bincount(drawn, minlength=V)
    assert stats.chisquare(counts, p * len(drawn)).pvalue > 1e-3
    keep = np.argsort(-p, kind="stable")
    keep = keep[: np.searchsorted(np.cumsum(p[keep]), 0.6) + 1]
    drawn = adapter.generate(prompt, 1, samples=20_000, top_p=0.6, seed=0).values
    counts = np.bincount(drawn, minlength=V)
    assert counts.sum() == counts[keep].sum()
    assert stats.chisquare(counts[keep], p[keep] / p[keep].sum() * len(drawn)).pvalue > 1e-3


def test_the_nucleus_is_that_of_transformers():
    warper = pytest.importorskip("transformers").TopPLogitsWarper
    torch.manual_seed(0)
    logits = 3 * torch.randn(200, V, dtype=torch.float64)
    for top_p in (0.05, 0.5, 0.95):
        allowed = torch.isfinite(warper(top_p)(None, logits))
        seen = torch.zeros_like(allowed)
        for u in np.linspace(0, 1, 400, endpoint=False):
            seen[torch.arange(200), draw(logits, torch.full((200,), u), top_p=top_p)] = True
        assert not (seen & ~allowed).any()
        assert (seen == allowed).float().mean() > 0.98  # tokens of little probability fall between the points


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    edges = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, edges).tolist() == [1, 3, 3]
    assert draw(logits, edges, top_p=0.5).tolist() == [1, 1, 1]
    one = torch.tensor([[5.0, 800.0]]).expand(2, 2)
    assert draw(one, edges[:2], temperature=1e-3).tolist() == [1, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"n_new": -1}, {"samples": 0}, {"temperature": -0.1}, {"temperature": np.nan}, {"top_p": 0.0}, {"top_p": 1.1},
     {"seed": -1}],
)  # fmt: skip
def test_settings_without_a_distribution_are_refused(wrong):
    settings = {"n_new": 2, **wrong}
    with pytest.raises(MemguardError, match="no continuation can be drawn so"):
        CausalAdapter(made(Plain)).generate(Ragged.from_lists([[1]]), **settings)
