import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import normals

FAMILIES = {normals.mean_field: 1, normals.full_covariance: 2}


def parameters(family, seed=0, d=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = [d], [d] * FAMILIES[family]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def theirs(q):
    return torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_density_and_entropy_are_torchs(family, seed):
    q = family(parameters(family, seed))
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(
        normals.log_prob(q, z), theirs(q).log_prob(z), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(normals.entropy(q), theirs(q).entropy(), rtol=1e-12, atol=1e-12)


def test_mean_field_reads_logarithms_of_deviations():
    mean, raw = parameters(normals.mean_field)
    q = normals.mean_field((mean, raw))
    torch.testing.assert_close(theirs(q).stddev, raw.exp(), rtol=1e-12, atol=0)


def test_full_covariance_ignores_what_lies_above_the_diagonal():
    mean, raw = parameters(normals.full_covariance)
    q = normals.full_covariance((mean, raw))
    other = normals.full_covariance((mean, raw + torch.ones(3, 3).double().triu(1)))
    assert torch.equal(q.factor, other.factor)
    assert torch.equal(q.factor.tril(-1), raw.tril(-1))
    assert (q.factor.diagonal() > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_have_the_stated_moments_exactly(family):
    """Noise with mean 0 and covariance 1 in the sample itself: the moments come out exact."""
    q = family(parameters(family))
    noise = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    z = normals.sample(q, noise)
    torch.testing.assert_close(z.mean(0), q.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z.T.cov(correction=0), theirs(q).covariance_matrix)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_noise_gives_no_samples(family):
    q = family(parameters(family))
    z = normals.sample(q, torch.empty(0, 3).double())
    assert z.shape == (0, 3)
    assert normals.log_prob(q, z).shape == (0,)


def test_bad_input_is_named():
    q = normals.mean_field(parameters(normals.mean_field))
    with pytest.raises(ValueError, match="^noise: "):
        normals.sample(q, torch.zeros(5, 2).double())
    with pytest.raises(ValueError, match="^z: "):
        normals.log_prob(q, torch.zeros(3).double())
    with pytest.raises(ValueError, match="^theta: shapes"):
        normals.mean_field((torch.zeros(3), torch.zeros(3, 3)))
    with pytest.raises(ValueError, match="^theta: shapes"):
        normals.full_covariance((torch.zeros(3), torch.zeros(3)))
    with pytest.raises(ValueError, match="^theta: must be finite"):
        normals.mean_field((torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])))
