"""The aggregate posterior and the split of the mean divergence, against sums over a grid."""

import math

import pytest
import torch
from torch import distributions

from gradbook import aggregate


def normals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def posteriors(n=5, d=2, seed=1):
    return 1.5 * normals(n, d, seed=seed), normals(n, d, seed=seed + 1) - 0.5


def mixture(mean, log_variance):
    parts = distributions.Normal(mean, (log_variance / 2).exp())
    even = distributions.Categorical(torch.ones(len(mean)).double())
    return distributions.MixtureSameFamily(even, distributions.Independent(parts, 1))


def by_grid(mean, log_variance):
    """Information and marginal divergence in one dimension, by sums over a fine grid."""
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    each = distributions.Normal(mean, (log_variance / 2).exp()).log_prob(z)
    log_q = each.logsumexp(0) - math.log(len(mean))
    prior = distributions.Normal(0.0, 1.0).log_prob(z)
    step = z[1] - z[0]
    information = (each.exp() * (each - log_q)).sum(1).mean() * step
    return information, (log_q.exp() * (log_q - prior)).sum() * step


@pytest.mark.parametrize("d", [1, 2, 20])
def test_the_density_is_torchs_mixture(d):
    mean, log_variance = posteriors(d=d)
    z = 2 * normals(9, d, seed=5)
    ours = aggregate.log_aggregate(z, mean, log_variance)
    exact = mixture(mean, log_variance).log_prob(z)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 10, 25, 40])
def test_chunks_change_nothing_and_stay_small(monkeypatch, chunk):
    mean, log_variance = posteriors()
    z = 2 * normals(9, 2, seed=5)
    exact = aggregate.log_aggregate(z, mean, log_variance)
    sizes = []
    plain = aggregate._log_normal

    def spied(points, *rest):
        sizes.append(len(points) * mean.numel())
        return plain(points, *rest)

    monkeypatch.setattr(aggregate, "CHUNK", chunk)
    monkeypatch.setattr(aggregate, "_log_normal", spied)
    torch.testing.assert_close(aggregate.log_aggregate(z, mean, log_variance), exact)
    assert max(sizes) <= max(chunk, mean.numel())
    assert sum(sizes) == 9 * mean.numel()


def test_one_image_is_its_own_aggregate():
    mean, log_variance = posteriors(n=1)
    z = normals(4, 2)
    exact = distributions.Normal(mean, (log_variance / 2).exp()).log_prob(z).sum(1)
    torch.testing.assert_close(aggregate.log_aggregate(z, mean, log_variance), exact)


def test_far_points_keep_their_density():
    mean, log_variance = posteriors()
    found = aggregate.log_aggregate(torch.full((1, 2), 500.0).double(), mean, log_variance)
    assert math.isfinite(found.item())
    assert found.item() < -1e4


def test_no_points_have_no_density():
    assert aggregate.log_aggregate(normals(0, 2), *posteriors()).shape == (0,)


def test_the_mean_divergence_is_torchs():
    mean, log_variance = posteriors()
    q = distributions.Normal(mean, (log_variance / 2).exp())
    exact = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1).mean()
    found = aggregate.split(mean, log_variance, normals(4, 5, 2)).mean_kl
    torch.testing.assert_close(found, exact)


def test_in_one_dimension_the_parts_are_those_of_the_grid():
    mean, log_variance = posteriors(d=1)
    information, marginal = by_grid(mean, log_variance)
    found = aggregate.split(mean, log_variance, normals(20_000, 5, 1))
    torch.testing.assert_close(information + marginal, found.mean_kl, rtol=1e-9, atol=1e-9)
    assert 0.1 < information < math.log(5) - 0.1
    assert marginal > 0.05
    assert found.information_stderr < 0.01
    assert found.marginal_kl_stderr < 0.01
    assert abs(found.information - information) <= 4.5 * found.information_stderr
    assert abs(found.marginal_kl - marginal) <= 4.5 * found.marginal_kl_stderr


def test_the_parts_add_up_to_the_mean_divergence():
    mean, log_variance = posteriors(n=30, d=3)
    found = aggregate.split(mean, log_variance, normals(200, 30, 3))
    spread = math.hypot(found.information_stderr, found.marginal_kl_stderr)
    difference = found.information + found.marginal_kl - found.mean_kl
    assert 0 < abs(difference) <= 4.5 * spread
    assert spread < 0.05


def test_standard_errors_are_the_spread_of_repeated_splits():
    """Means far apart: spread between images, which is no error of theirs, would count much."""
    mean, log_variance = 2 * normals(6, 1), 0.3 * normals(6, 1, seed=1)
    repeats = 2000
    noise = normals(repeats, 8, 6, 1, seed=2)
    splits = [aggregate.split(mean, log_variance, draws) for draws in noise]
    for part in ("information", "marginal_kl"):
        values = torch.stack([getattr(s, part) for s in splits])
        claimed = torch.stack([getattr(s, f"{part}_stderr").square() for s in splits])
        ratio = (values.var() / claimed.mean()).item()
        # The fourth moment sets the error of a variance; that of the claims is added to it.
        fourth = ((values - values.mean()) ** 4).mean() / values.var() ** 2
        spread = math.sqrt((fourth - 1) / repeats + claimed.var() / claimed.mean() ** 2 / repeats)
        assert abs(ratio - 1) <= 4.5 * spread
        assert spread < 0.06


def test_the_two_parts_have_draws_of_their_own():
    mean, log_variance = posteriors()
    noise = normals(4, 5, 2)
    found = aggregate.split(mean, log_variance, noise)
    moved = noise.clone()
    moved[2:] *= 2
    other = aggregate.split(mean, log_variance, moved)
    assert torch.equal(found.information, other.information)
    assert not torch.equal(found.marginal_kl, other.marginal_kl)
    moved = noise.clone()
    moved[:2] *= 2
    other = aggregate.split(mean, log_variance, moved)
    assert torch.equal(found.marginal_kl, other.marginal_kl)
    assert not torch.equal(found.information, other.information)


def test_equal_posteriors_carry_no_information():
    mean, log_variance = (part[:1].expand(5, 2) for part in posteriors())
    found = aggregate.split(mean, log_variance, normals(4000, 5, 2))
    assert found.information.item() == pytest.approx(0, abs=1e-12)
    assert abs(found.marginal_kl - found.mean_kl) <= 4.5 * found.marginal_kl_stderr


def test_posteriors_at_the_prior_have_neither():
    zeros = torch.zeros(5, 2).double()
    found = aggregate.split(zeros, zeros, normals(4, 5, 2))
    for value in found:
        assert value.item() == pytest.approx(0, abs=1e-12)


def test_posteriors_far_apart_tell_every_image():
    mean = 100 * torch.arange(5.0).double()[:, None]
    found = aggregate.split(mean, torch.zeros_like(mean), normals(4, 5, 1))
    assert found.information.item() == pytest.approx(math.log(5), rel=1e-12)
    assert found.information_stderr.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate.log_aggregate(normals(3, 3), *posteriors()), "^z: must be .S, 2"),
        (lambda: aggregate.log_aggregate(normals(3), *posteriors()), "^z: must be .S, 2"),
        (lambda: aggregate.log_aggregate(normals(3, 2) / 0, *posteriors()), "^z: must be finite"),
        (lambda: aggregate.log_aggregate(normals(3, 2), *posteriors(n=0)), "^mean: must be .N, d"),
        (
            lambda: aggregate.log_aggregate(normals(3, 2), normals(5, 2), normals(1, 2)),
            "^log_variance: must be .N, d",
        ),
        (
            lambda: aggregate.split(normals(5, 2) / 0, normals(5, 2), normals(4, 5, 2)),
            "^mean: must be finite",
        ),
        (
            lambda: aggregate.split(normals(5, 2), normals(5, 2) / 0, normals(4, 5, 2)),
            "^log_variance: must be finite",
        ),
        (lambda: aggregate.split(*posteriors(), normals(2, 5, 2)), "^noise: must be .K, N, d"),
        (lambda: aggregate.split(*posteriors(), normals(5, 5, 2)), "^noise: must be .K, N, d"),
        (lambda: aggregate.split(*posteriors(), normals(5, 2)), "^noise: must be .K, N, d"),
        (lambda: aggregate.split(*posteriors(), normals(4, 1, 2)), "^noise: must be"),
        (lambda: aggregate.split(*posteriors(), normals(4, 5, 2) / 0), "^noise: must be finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
