"""Bounds from importance weights, on weights whose mean is known."""

import itertools
import math

import pytest
import torch

from gradbook import importance


def log_weights(k, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, generator=generator, dtype=torch.float64)


def test_the_bound_is_the_log_of_the_mean_weight():
    log_w = log_weights(5, 3)
    found = importance.iwae_bound(log_w)
    torch.testing.assert_close(found, log_w.exp().mean(0).log(), rtol=1e-12, atol=1e-12)


def test_one_weight_is_its_own_bound():
    log_w = log_weights(1, 3)
    assert torch.equal(importance.iwae_bound(log_w), log_w[0])


def test_the_bound_neither_over_nor_underflows():
    log_w = log_weights(5, 3)
    for shift in (-2000.0, 2000.0):
        moved = importance.log_prob_estimate(log_w + shift)
        here = importance.log_prob_estimate(log_w)
        torch.testing.assert_close(moved.value, here.value + shift)
        torch.testing.assert_close(moved.stderr, here.stderr)


def test_the_mean_bound_grows_with_k_towards_the_log_of_the_mean_weight():
    """Three weights, equally likely: the mean over all draws of K of them is a finite sum."""
    support = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64).log()
    exact = math.log(4.2 / 3)
    means = []
    for k in range(1, 7):
        draws = torch.tensor(list(itertools.product(range(3), repeat=k)))
        means.append(importance.iwae_bound(support[draws].T).mean().item())
    assert means[0] == pytest.approx(support.mean().item(), rel=1e-12)
    assert all(a < b for a, b in itertools.pairwise([*means, exact]))


def test_the_standard_error_is_the_relative_error_of_the_mean_weight():
    log_w = log_weights(8, 3)
    w = log_w.exp()
    value, stderr = importance.log_prob_estimate(log_w)
    assert torch.equal(value, importance.iwae_bound(log_w))
    exact = w.std(0) / math.sqrt(8) / w.mean(0)
    torch.testing.assert_close(stderr, exact, rtol=1e-12, atol=0)


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    """Log-normal weights; by a quarter of a million draws the delta method is exact enough."""
    groups = log_weights(250, 1000).mul(0.5)
    value, stderr = importance.log_prob_estimate(groups)
    # The spread of 1000 estimates has a relative standard error of 1 / sqrt(2000).
    assert value.std().item() / stderr.mean().item() == pytest.approx(1, abs=4.5 / math.sqrt(2000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: importance.iwae_bound(log_weights(0, 3)), "^log_weights: must be .K, n., K at"),
        (lambda: importance.iwae_bound(log_weights(3, 3)[0]), "^log_weights: must be .K, n"),
        (lambda: importance.iwae_bound(log_weights(3, 3) / 0), "^log_weights: must be finite"),
        (lambda: importance.log_prob_estimate(log_weights(1, 3)), "^log_weights: .* at least 2"),
        (lambda: importance.log_prob_estimate(log_weights(2, 3) / 0), "^log_weights: .* finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
