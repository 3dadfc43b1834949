"""Problems with an exact gradient, on which the estimators are tried."""

from typing import NamedTuple

import pytest
import torch

from gradbook.categorical import all_one_hots
from gradbook.estimators import Family, summarize
from gradbook.gumbel import gumbel_noise

F64 = torch.float64


class Problem(NamedTuple):
    f: object
    logits: torch.Tensor


class Normal(NamedTuple):
    family: Family
    theta: object


def four_classes():
    """One latent, a quadratic f."""
    target = torch.tensor([0.2, 0.1, 0.6, 0.1], dtype=F64)
    slope = torch.tensor([1, -2, 0.5, 3], dtype=F64)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64).log()
    return Problem(lambda y, _: (y - target).square().sum() + y @ slope, logits)


def coins():
    """Three binary latents, f a sum of squares over them."""
    probs = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    target = torch.linspace(0.2, 0.9, 3, dtype=F64)
    logits = torch.stack([torch.zeros(3, dtype=F64), probs.logit()], -1)
    return Problem(lambda y, _: (y[:, 1] - target).square().sum(), logits)


def mixed():
    """Two latents that f couples, and an f that depends on the logits too."""
    table = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [1.0, 1.0, -4.0]], dtype=F64)
    logits = torch.tensor([[0.3, -0.7, 1.1], [0.0, 0.5, -0.4]], dtype=F64)

    def f(y, logits):
        return (y[0] @ table @ y[1]) ** 2 / 2 + (y * logits).sum() * logits[0, 1]

    return Problem(f, logits)


PROBLEMS = {"four classes": four_classes, "coins": coins, "mixed": mixed}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


@pytest.fixture(name="four_classes")
def _four_classes():
    return four_classes()


@pytest.fixture(name="coins")
def _coins():
    return coins()


@pytest.fixture(name="mixed")
def _mixed():
    return mixed()


@pytest.fixture
def every_noise():
    """Give one noise for every configuration of the latents, and the probabilities of these."""

    def rows(logits):
        k = logits.shape[-1]
        z = all_one_hots(logits.numel() // k, k).to(F64).reshape(-1, *logits.shape)
        probs = (z * logits.softmax(-1)).sum(-1).reshape(len(z), -1).prod(-1)
        return 50 * z, probs

    return rows


@pytest.fixture
def gumbels():
    def draw(n, logits, seed):
        return gumbel_noise((n, *logits.shape), torch.Generator().manual_seed(seed), F64)

    return draw


@pytest.fixture
def z_scores():
    """How many standard errors a mean lies from the exact value, at worst."""

    def worst(gradients, exact):
        summary = summarize(gradients)
        return ((summary.mean - exact).abs() / summary.stderr).max()

    return worst


@pytest.fixture
def normal():
    """Four normals, by their means and the logarithms of their scales."""

    def sample(theta, noise):
        return theta["loc"] + theta["log_scale"].exp() * noise

    def log_prob(z, theta):
        standard = (z - theta["loc"]) / theta["log_scale"].exp()
        return (-(standard**2) / 2 - theta["log_scale"]).sum()

    def theta(*shape):
        generator = torch.Generator().manual_seed(4)
        return {
            "loc": torch.randn(shape, generator=generator, dtype=F64),
            "log_scale": 0.3 * torch.randn(shape, generator=generator, dtype=F64),
        }

    return Normal(Family(sample, log_prob), theta)
