"""Noise is Gaussian, new every time, and nobody else's."""

from __future__ import annotations

import copy
import os
import pickle
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from scipy.stats import chi2, kstest, norm, poisson

from memguard.errors import PrivacyError
from memguard.privacy.noise import NoiseSource, entropy, fingerprint, generator

SEED = bytes(range(32))
FALSE_ALARM = 1e-7


def source():
    return NoiseSource(_seed=SEED)


def states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_noise_is_gaussian():
    noise = source().normal_like(torch.empty(500, 1000), std=2.5)
    z = noise.double().numpy().ravel() / 2.5
    n = len(z)
    assert abs(z.sum()) < norm.isf(FALSE_ALARM / 2) * np.sqrt(n)
    assert chi2.ppf(FALSE_ALARM / 2, n) < (z**2).sum() < chi2.isf(FALSE_ALARM / 2, n)
    assert kstest(z, "norm").pvalue > FALSE_ALARM
    for lag in (1, 7, 1000):
        assert abs((z[lag:] * z[:-lag]).sum()) < norm.isf(FALSE_ALARM / 2) * np.sqrt(n)


def test_the_tail_is_all_there():
    noise = source()
    blocks = [noise.normal_like(torch.empty(1 << 22), 1.0).abs() for _ in range(8)]
    for beyond in (3.0, 4.0, 4.5, 5.0):
        found = sum(int((block > beyond).sum()) for block in blocks)
        expected = (1 << 25) * 2 * norm.sf(beyond)
        assert poisson.ppf(FALSE_ALARM / 2, expected) <= found <= poisson.isf(FALSE_ALARM / 2, expected)


def test_blocks_are_one_stream():
    whole = source().normal_like(torch.empty((1 << 22) + 5), 1.0)
    rng = generator(SEED, "noise", 0)
    expected = np.concatenate([rng.standard_normal(1 << 22), rng.standard_normal(5)]).astype(np.float32)
    assert np.array_equal(whole.numpy(), expected)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_shape_and_type(shape, dtype):
    like = torch.zeros(shape, dtype=dtype)
    noise = source().normal_like(like, 1.0)
    assert noise.shape == like.shape and noise.dtype == torch.float32 and noise.device == like.device
    assert not noise.requires_grad


def test_views_that_are_not_contiguous():
    assert source().normal_like(torch.zeros(6, 4).t()[1:], 1.0).shape == (3, 6)


def test_noise_scales_with_std():
    one, three = source().normal_like(torch.empty(100), 1.0), source().normal_like(torch.empty(100), 3.0)
    assert torch.allclose(3 * one, three)
    assert (source().normal_like(torch.empty(9), 0.0) == 0).all()


def test_noise_is_new_at_every_call_and_in_every_source():
    one = NoiseSource()
    draws = [one.normal_like(torch.empty(50), 1.0) for _ in range(3)]
    draws += [NoiseSource().normal_like(torch.empty(50), 1.0) for _ in range(3)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 6
    assert NoiseSource().fingerprint != NoiseSource().fingerprint


def test_seeding_the_run_does_not_repeat_the_noise():
    draws = []
    for _ in range(2):
        seed_everything(0, verbose=False)
        draws.append(NoiseSource().normal_like(torch.empty(50), 1.0))
    assert not torch.equal(*draws)
    noise = source()
    seed_everything(0, verbose=False)
    first = noise.normal_like(torch.empty(50), 1.0)
    seed_everything(0, verbose=False)
    assert not torch.equal(first, noise.normal_like(torch.empty(50), 1.0))


def test_the_generators_of_the_run_are_left_alone():
    before = states()
    noise = NoiseSource()
    noise.normal_like(torch.empty(1000), 1.0)
    entropy(), generator(SEED, "sampling", 3).random()
    assert states() == before


def test_seeds_that_differ_by_high_bits_differ():
    """torch's generator on the CPU reads 32 bits of its seed; these streams must not."""
    plain = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(1 + 2**32)]
    assert torch.equal(*(torch.randn(5, generator=one) for one in plain)), "then manual_seed would do"
    ours = [NoiseSource(_seed=bytes(31 - at) + b"\1" + bytes(at)) for at in range(32)]
    assert len({tuple(one.normal_like(torch.empty(5), 1.0).tolist()) for one in ours}) == 32


def test_streams_of_one_seed_are_unrelated():
    z = np.array(
        [generator(SEED, what, k).standard_normal(4000) for what in ("noise", "sampling") for k in range(10)]
    )
    correlation = z @ z.T / np.sqrt(4000)
    assert np.abs(correlation[np.triu_indices(20, 1)]).max() < norm.isf(FALSE_ALARM / 2 / 190)


def test_fingerprints_tell_seeds_apart_and_nothing_else():
    assert source().fingerprint == source().fingerprint == fingerprint(SEED, "noise")
    assert fingerprint(SEED, "noise") != fingerprint(SEED, "sampling")
    assert len(source().fingerprint) == 64
    assert SEED.hex() not in repr(vars(source())["fingerprint"])
    first = generator(SEED, "noise", 0).bit_generator.seed_seq.entropy
    assert b"".join(int(word).to_bytes(4, "little") for word in first).hex() != source().fingerprint


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_source_has_no_twin(twin):
    with pytest.raises(PrivacyError, match="NoiseSource in each process"):
        twin(NoiseSource())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused():
    noise = source()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            noise.normal_like(torch.empty(3), 1.0)
            os._exit(1)
        except PrivacyError:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    noise.normal_like(torch.empty(3), 1.0)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_noise_of_no_size_is_refused(std):
    with pytest.raises(PrivacyError, match="standard deviation"):
        source().normal_like(torch.empty(3), std)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_on_a_gpu():
    like = torch.empty(1000, 1000, device="cuda")
    before = torch.cuda.get_rng_state()
    noise = source().normal_like(like, 2.0)
    z = noise.double().cpu().numpy().ravel() / 2
    assert noise.device == like.device and noise.dtype == torch.float32
    assert kstest(z, "norm").pvalue > FALSE_ALARM
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert not torch.equal(noise.cpu(), source().normal_like(torch.empty(1000, 1000), 2.0))
    assert torch.equal(noise, source().normal_like(like, 2.0))
