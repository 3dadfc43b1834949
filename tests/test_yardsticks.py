import math

import pytest
import torch

from gradbook import logistic, yardsticks
from gradbook.normals import Normal


@pytest.fixture(scope="module")
def problem():
    """A two-parameter posterior, skewed by few data, with its exact moments by quadrature."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    design, labels = logistic.with_intercept(x), (x[:, 0] > -0.4).long()

    def target(b):
        return logistic.log_joint(b, design, labels)

    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    at = torch.cartesian_prod(axis, axis)
    height = target(at)
    weight = height.softmax(0)
    mean = weight @ at
    sd = (weight @ (at - mean).square()).sqrt()
    log_evidence = height.logsumexp(0) + 2 * math.log(18 / 600)
    return target, Normal(*logistic.laplace(design, labels)), mean, sd, log_evidence


@pytest.mark.slow
def test_nuts_finds_the_quadratures_moments(problem):
    target, laplace, mean, sd, _ = problem
    before = torch.get_rng_state()
    found = yardsticks.moments(yardsticks.nuts(target, laplace, chains=2, draws=800, warmup=150))
    assert torch.equal(before, torch.get_rng_state())
    for name, exact in (("mean", mean), ("sd", sd)):
        error = torch.tensor(found[name]) - exact
        assert (error.abs() <= 4.5 * torch.tensor(found[f"{name}_stderr"])).all()
    assert found["rhat_max"] < 1.02
    # Laplace is not this good, or the test would show nothing.
    gap = (laplace.mean - mean).abs()
    assert (gap > 4.5 * torch.tensor(found["mean_stderr"])).any()


def test_importance_finds_the_quadratures_moments_and_evidence(problem):
    target, laplace, mean, sd, log_evidence = problem
    found = yardsticks.importance(target, laplace, draws=40_000)
    error = torch.tensor(found["mean"]) - mean
    assert (error.abs() <= 4.5 * torch.tensor(found["mean_stderr"])).all()
    torch.testing.assert_close(torch.tensor(found["sd"]).double(), sd, rtol=0.02, atol=0)
    assert abs(found["log_evidence"] - log_evidence) <= 4.5 * found["log_evidence_stderr"]
    assert 0.5 * 40_000 < found["ess"] < 40_000


def test_importance_weights_are_constant_when_the_prior_is_the_posterior():
    """No data and the prior as proposal: every weight is 1, the evidence 1, all draws count."""
    prior = Normal(torch.zeros(2).double(), torch.eye(2).double())
    nothing = torch.empty(0, 2).double(), torch.empty(0).long()
    found = yardsticks.importance(lambda b: logistic.log_joint(b, *nothing), prior, draws=100)
    assert found["ess"] == pytest.approx(100, rel=1e-10)
    assert found["log_evidence"] == pytest.approx(0, abs=1e-12)


def test_moments_know_how_little_correlated_draws_say():
    """An AR(1) chain with coefficient 0.8 has (1 - 0.8) / (1 + 0.8) effective draws per draw."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 6_000, 1, generator=generator, dtype=torch.float64)
    x = [noise[:, 0]]
    for step in range(1, 6_000):
        x.append(0.8 * x[-1] + 0.6 * noise[:, step])
    found = yardsticks.moments(torch.stack(x, 1))
    assert found["ess_mean"][0] == pytest.approx(24_000 / 9, rel=0.15)
    assert found["ess_square"][0] == pytest.approx(24_000 * (1 - 0.64) / (1 + 0.64), rel=0.15)
    stderr = found["mean_stderr"][0]
    assert stderr == pytest.approx(1 / math.sqrt(24_000 / 9), rel=0.15)
    assert abs(found["mean"][0]) <= 4.5 * stderr
    assert abs(found["sd"][0] - 1) <= 4.5 * found["sd_stderr"][0]


def test_chains_that_disagree_show_in_rhat():
    generator = torch.Generator().manual_seed(0)
    chains = torch.randn(4, 500, 2, generator=generator, dtype=torch.float64)
    chains[0, :, 1] += 1
    assert yardsticks.moments(chains[..., :1])["rhat_max"] < 1.02
    assert yardsticks.moments(chains)["rhat_max"] > 1.05
