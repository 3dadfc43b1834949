import numpy as np
import pytest
import torch

from gradbook.categorical import relaxed
from gradbook.estimators import pathwise

F64 = torch.float64


def test_quadrature_over_the_noise_gives_the_exact_normal_gradient(normal):
    theta = {"loc": torch.tensor(0.7, dtype=F64), "log_scale": torch.tensor(-0.2, dtype=F64)}
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(20))
    weights = weights / weights.sum()
    gradients = pathwise(lambda z, t: z**3 + t["loc"] * z**2, normal.family, theta, nodes)
    # E[z^3 + m z^2] = 2 m^3 + 4 m s^2
    m, s2 = 0.7, np.exp(-0.4)
    assert weights @ gradients["loc"] == pytest.approx(6 * m**2 + 4 * s2, abs=1e-12)
    assert weights @ gradients["log_scale"] == pytest.approx(8 * m * s2, abs=1e-12)


def test_samples_match_autograd_one_draw_at_a_time(normal):
    theta = normal.theta(4)
    noise = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)

    def f(z, t):
        return (z.sin() * z**2).sum() + (z * t["loc"]).prod()

    have = pathwise(f, normal.family, theta, noise)
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    for i, eps in enumerate(noise):
        value = f(normal.family.sample(leaves, eps), leaves)
        want = torch.autograd.grad(value, list(leaves.values()))
        for gradient, name in zip(want, theta, strict=True):
            torch.testing.assert_close(have[name][i], gradient, rtol=1e-12, atol=1e-12)


def test_the_path_through_a_step_is_wrong(normal):
    theta, noise = normal.theta(), torch.linspace(-3, 3, 7, dtype=F64)
    gradients = pathwise(lambda z, t: (z > 0).to(F64), normal.family, theta, noise)
    assert (gradients["loc"] == 0).all()


def test_the_family_need_not_have_a_density(four_classes, gumbels):
    f, logits = four_classes
    noise = gumbels(3, logits, 0)
    family = relaxed(0.5)._replace(log_prob=None)
    assert torch.equal(pathwise(f, family, logits, noise), pathwise(f, relaxed(0.5), logits, noise))
