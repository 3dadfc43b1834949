"""Tools for priors: networks with strong weights, every grid of a tiny size, and a test of a sampler."""

import itertools
import math

import pytest
import torch
from scipy import stats

from gradbook.noise import gumbel_noise


@pytest.fixture(name="stirred")
def stirred_networks():
    """Puts strong float64 weights into a network, so that no logit is near its start."""

    def stir(model, seed=0, std=0.7):
        generator = torch.Generator().manual_seed(seed)
        model = model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, std, generator=generator)
        return model

    return stir


@pytest.fixture(name="all_grids")
def every_grid():
    """Lists every grid of a size."""

    def listed(height, width, count):
        rows = list(itertools.product(range(count), repeat=height * width))
        return torch.tensor(rows).unflatten(1, (height, width))

    return listed


@pytest.fixture(name="require_law")
def test_of_a_law(all_grids):
    """Compares 60 000 drawn grids with the probabilities of all grids by chi-squared."""

    def check(sample, log_prob, height, width, count, draws=60_000):
        generator = torch.Generator().manual_seed(3)
        noise = gumbel_noise((draws, height, width, count), generator, torch.float64, "cpu")
        drawn = sample(draws, noise).flatten(1)
        weights = count ** torch.arange(height * width - 1, -1, -1)
        seen = (drawn * weights).sum(1).bincount(minlength=count ** (height * width)).double()
        expected = draws * log_prob(all_grids(height, width, count)).detach().exp()
        rare = expected < 5
        seen, expected = (torch.cat([a[~rare], a[rare].sum()[None]]) for a in (seen, expected))
        seen, expected = seen[expected > 0], expected[expected > 0]
        assert len(seen) >= 12
        statistic = ((seen - expected).square() / expected).sum().item()
        assert math.isfinite(statistic)
        assert stats.chi2.sf(statistic, len(seen) - 1) > stats.norm.sf(4.5)

    return check
