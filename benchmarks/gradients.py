"""Cases of part I: gradients of expectations.

Where a peer draws its own noise, our side draws the same noise and both are timed with the drawing.
"""

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Gamma, Normal

from benchmarks.timing import Case, Side
from gradbook.estimators import Family, pathwise, score_function
from gradbook.implicit import attach, gamma_cdf, gamma_log_prob
from gradbook.reparameterization import truncated_normal

SEED = 20


def _sample(theta: dict[str, Tensor], noise: Tensor) -> Tensor:
    return theta["loc"] + theta["log_scale"].exp() * noise


def _log_prob(z: Tensor, theta: dict[str, Tensor]) -> Tensor:
    law = Normal(theta["loc"], theta["log_scale"].exp(), validate_args=False)
    return law.log_prob(z).sum()


def _cost(z: Tensor, _: dict[str, Tensor]) -> Tensor:
    return (z**2).sum() + torch.cos(3 * z).sum()


NORMAL = Family(_sample, _log_prob)


def _normal(d: int) -> dict[str, Tensor]:
    return {
        "loc": torch.linspace(-1, 1, d, dtype=torch.float64),
        "log_scale": torch.linspace(-0.5, 0.5, d, dtype=torch.float64),
    }


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients["loc"], gradients["log_scale"]], dim=-1)


def score_function_case(n: int = 500, d: int = 10) -> tuple[Side, Side]:
    """Per-sample score-function gradients, against one backward pass for each draw."""
    theta = _normal(d)
    noise = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))

    def ours() -> Tensor:
        return _flat(score_function(_cost, NORMAL, theta, noise))

    def peer() -> Tensor:
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        rows = []
        for one in noise:
            z = _sample(theta, one)
            value = _cost(z, theta) * _log_prob(z, leaves)
            rows.append(torch.cat(torch.autograd.grad(value, tuple(leaves.values()))))
        return torch.stack(rows)

    return ours, peer


def pathwise_case(n: int = 10_000, d: int = 10) -> tuple[Side, Side]:
    """The mean of per-sample pathwise gradients, against backward through the mean.

    We keep every draw's gradient, which tells the standard error; the peer keeps their mean alone.
    """
    theta = _normal(d)

    def ours() -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(n, d, dtype=torch.float64, generator=generator)
        return _flat(pathwise(_cost, NORMAL, theta, noise)).mean(0)

    def peer() -> Tensor:
        # torch.distributions draws from the global generator alone.
        torch.manual_seed(SEED)
        loc, log_scale = (value.clone().requires_grad_() for value in theta.values())
        z = Normal(loc, log_scale.exp()).rsample((n,))
        _cost(z, theta).div(n).backward()
        return torch.cat([loc.grad, log_scale.grad])

    return ours, peer


def gamma_case(n: int = 10_000) -> tuple[Side, Side]:
    """Draw from a gamma and differentiate each draw in the concentration."""
    start = torch.linspace(0.5, 8, n, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def ours() -> Tensor:
        torch.manual_seed(SEED)
        concentration = start.clone().requires_grad_()
        z = Gamma(start, one).sample()
        attach(z, gamma_cdf, gamma_log_prob, concentration).sum().backward()
        return concentration.grad

    def peer() -> Tensor:
        torch.manual_seed(SEED)
        concentration = start.clone().requires_grad_()
        Gamma(concentration, one).rsample().sum().backward()
        return concentration.grad

    return ours, peer


def truncated_normal_case(n: int = 100_000) -> tuple[Side, Side]:
    """Invert the CDF of a truncated normal."""
    generator = torch.Generator().manual_seed(SEED)
    uniform = torch.rand(n, dtype=torch.float64, generator=generator).clamp(1e-12)
    loc, scale, low, high = torch.tensor([0.5, 2.0, -1.0, 3.0], dtype=torch.float64)
    a, b = ((low - loc) / scale).item(), ((high - loc) / scale).item()

    def ours() -> Tensor:
        return truncated_normal(loc, scale, low, high, uniform)

    def peer() -> Tensor:
        values = stats.truncnorm.ppf(uniform.numpy(), a, b, loc=loc.item(), scale=scale.item())
        return torch.from_numpy(values)

    return ours, peer


CASES = (
    Case(
        "score function, 500 draws of 10 normals, each draw's gradient",
        "loop of torch.autograd.grad",
        1e-12,
        score_function_case,
    ),
    Case(
        "pathwise, 10 000 draws of 10 normals (ours: each draw's gradient)",
        "torch.distributions.Normal.rsample, backward of the mean",
        1e-12,
        pathwise_case,
    ),
    Case(
        "implicit gamma, 10 000 draws and their gradients",
        "torch.distributions.Gamma.rsample, backward",
        # torch approximates this gradient; ours is the one that agrees with finite differences.
        2e-3,
        gamma_case,
    ),
    Case(
        "truncated normal, 100 000 draws from uniforms",
        "scipy.stats.truncnorm.ppf",
        1e-9,
        truncated_normal_case,
    ),
)
