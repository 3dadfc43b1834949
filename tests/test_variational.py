import math

import pytest
import torch
from torch.func import grad, vmap

from gradbook import estimators, logistic, normals, variational

AXES = {normals.mean_field: 1, normals.full_covariance: 2}
ZERO = torch.zeros(3, dtype=torch.float64)
PRECISION = torch.tensor([[2.0, 0.6, 0], [0.6, 1.0, -0.3], [0, -0.3, 0.5]], dtype=torch.float64)
CENTRE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def target(z):
    """An unnormalized normal: every expectation under a normal q has a closed form."""
    shift = z - CENTRE
    return -0.5 * ((shift @ PRECISION) * shift).sum(-1)


def exact_elbo(family, theta):
    q = family(theta)
    covariance = q.factor @ q.factor.T
    spread = -0.5 * (PRECISION * covariance).sum()
    return target(q.mean[None])[0] + spread + normals.entropy(q)


def parameters(family, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [3], [3] * AXES[family]
    return tuple(0.5 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SURROGATES = (variational.elbo, variational.score, variational.score_leave_one_out)


@pytest.mark.parametrize("family", AXES)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_each_gradient_is_unbiased(surrogate, family):
    """4000 gradients of four draws each, against the closed form: 4.5 standard errors."""
    theta = parameters(family)
    exact = grad(lambda theta: exact_elbo(family, theta))(theta)
    gradient = variational.gradient_of(surrogate, target, family)
    estimates = vmap(gradient, (None, 0))(theta, noise(4000, 4, 3))
    for estimate, truth in zip(estimates, exact, strict=True):
        stderr = estimate.std(0) / math.sqrt(len(estimate))
        assert ((estimate.mean(0) - truth).abs() <= 4.5 * stderr + 1e-12).all()


def test_elbo_on_symmetric_noise_is_exact_for_a_quadratic_target():
    design = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    for family in AXES:
        theta = parameters(family)
        ours = variational.elbo(target, family, theta, design)
        torch.testing.assert_close(ours, exact_elbo(family, theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", AXES)
@pytest.mark.parametrize(
    ("surrogate", "estimator"),
    [
        (variational.elbo, estimators.pathwise),
        (variational.score, estimators.score_function),
        (variational.score_leave_one_out, estimators.leave_one_out),
    ],
)
def test_each_gradient_is_the_mean_of_the_estimators_module(surrogate, estimator, family):
    theta, draws = parameters(family), noise(6, 3)
    one_draw = estimators.Family(
        sample=lambda theta, e: normals.sample(family(theta), e[None])[0],
        log_prob=lambda z, theta: normals.log_prob(family(theta), z[None])[0],
    )
    rows = estimator(lambda z, _: target(z), one_draw, theta, draws)
    slopes = grad(lambda theta: normals.entropy(family(theta)))(theta)
    ours = variational.gradient_of(surrogate, target, family)(theta, draws)
    for part, row, slope in zip(ours, rows, slopes, strict=True):
        torch.testing.assert_close(part, row.mean(0) + slope, rtol=1e-10, atol=1e-10)


def test_score_gradients_need_no_derivative_of_the_target():
    def steps(z):
        return (z > 0).double().sum(-1)

    theta = parameters(normals.mean_field)
    for surrogate in (variational.score, variational.score_leave_one_out):
        gradient = variational.gradient_of(surrogate, steps, normals.mean_field)
        mean = vmap(gradient, (None, 0))(theta, noise(4000, 4, 3))[0]
        density = normals.Normal(*theta)
        exact = torch.exp(-0.5 * (density.mean / theta[1].exp()).square())
        exact = exact / (math.sqrt(2 * math.pi) * theta[1].exp())
        stderr = mean.std(0) / math.sqrt(4000)
        assert ((mean.mean(0) - exact).abs() <= 4.5 * stderr).all()


def test_leave_one_out_does_not_see_a_constant_in_the_target():
    theta, draws = parameters(normals.mean_field), noise(5, 3)
    shifted = variational.gradient_of(
        variational.score_leave_one_out, lambda z: target(z) + 1e6, normals.mean_field
    )
    plain = variational.gradient_of(variational.score_leave_one_out, target, normals.mean_field)
    for a, b in zip(shifted(theta, draws), plain(theta, draws), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_adam_is_torchs():
    theta = parameters(normals.full_covariance)
    leaves = [part.clone().requires_grad_() for part in theta]
    optimizer = torch.optim.Adam(leaves, lr=0.02, maximize=True)
    state = variational.AdamState(theta, *[(ZERO, torch.zeros(3, 3).double())] * 2, 0)
    for step in range(20):
        gradient = (noise(3, seed=step), noise(3, 3, seed=step))
        for leaf, part in zip(leaves, gradient, strict=True):
            leaf.grad = part
        optimizer.step()
        state = variational.adam_step(state, gradient, 0.02)
    assert state.steps == 20
    for ours, leaf in zip(state.theta, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.detach(), rtol=1e-10, atol=1e-12)


def climbed(family, keep, steps=1500):
    start = (ZERO, torch.zeros([3] * AXES[family], dtype=torch.float64))
    design = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    gradient = variational.gradient_of(variational.elbo, target, family)
    rates = [0.05 * (1 - step / steps) for step in range(steps)]
    return start, variational.fit(gradient, start, [design] * steps, rates, keep)


def test_full_covariance_finds_a_normal_posterior():
    _, kept = climbed(normals.full_covariance, {1500})
    q = normals.full_covariance(kept[1500])
    torch.testing.assert_close(q.mean, CENTRE, rtol=0, atol=1e-5)
    torch.testing.assert_close(q.factor @ q.factor.T, PRECISION.inverse(), rtol=0, atol=1e-5)


def test_mean_field_finds_the_diagonal_of_the_precision():
    """The closed form of its best fit: variances 1/Lambda_ii, smaller than the true ones."""
    _, kept = climbed(normals.mean_field, {1500})
    mean, log_scale = kept[1500]
    torch.testing.assert_close(mean, CENTRE, rtol=0, atol=1e-5)
    best = PRECISION.diagonal().rsqrt()
    torch.testing.assert_close(log_scale.exp(), best, rtol=0, atol=1e-5)
    assert (best < PRECISION.inverse().diagonal().sqrt()).all()


def test_fit_keeps_the_start_and_the_steps_asked_for():
    start, kept = climbed(normals.mean_field, {0, 1, 5}, steps=5)
    assert list(kept) == [0, 1, 5]
    assert all(torch.equal(a, b) for a, b in zip(kept[0], start, strict=True))
    step = 0.05 * (1 - 1 / 5)  # Adam's first steps have the size of the rate
    assert ((kept[1][0] - ZERO).abs() <= 0.05 + step).all()
    assert not torch.equal(kept[1][0], kept[5][0])


def test_elbo_stays_below_the_evidence_of_a_quadrature():
    """On a two-parameter logistic regression: log evidence = ELBO + KL, and the gap is small."""
    features = noise(30, 1, seed=4)
    design = logistic.with_intercept(features)
    labels = (features[:, 0] + noise(30, seed=5) > 0).long()

    def joint(b):
        return logistic.log_joint(b, design, labels)

    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    height = joint(torch.cartesian_prod(axis, axis))
    evidence = height.logsumexp(0) + 2 * math.log(16 / 400)
    mode, factor = logistic.laplace(design, labels)
    raw = factor.tril(-1) + torch.diag(factor.diagonal().log())
    gradient = variational.gradient_of(variational.elbo, joint, normals.full_covariance)
    batches = [noise(20, 2, seed=100 + step) for step in range(400)]
    rates = [0.02 * (1 - step / 400) for step in range(400)]
    theta = variational.fit(gradient, (mode, raw), batches, rates, {400})[400]
    q = normals.full_covariance(theta)
    values = joint(normals.sample(q, noise(20_000, 2, seed=6)))
    elbo, stderr = values.mean() + normals.entropy(q), values.std() / math.sqrt(20_000)
    assert elbo + 4.5 * stderr >= evidence - 0.05
    assert elbo - 4.5 * stderr <= evidence


def test_bad_input_is_named():
    theta = parameters(normals.mean_field)
    with pytest.raises(ValueError, match="^noise: "):
        variational.score_leave_one_out(target, normals.mean_field, theta, noise(1, 3))
    with pytest.raises(ValueError, match="^noise: "):
        variational.elbo(target, normals.mean_field, theta, noise(4, 2))
    state = variational.AdamState(theta, (ZERO, ZERO), (ZERO, ZERO), 0)
    for rate in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="^rate: "):
            variational.adam_step(state, theta, rate)
    gradient = variational.gradient_of(variational.elbo, target, normals.mean_field)
    for count in (1, 3):
        batches = [noise(4, 3)] * count
        with pytest.raises(ValueError, match="^noises: must be one batch for each rate"):
            variational.fit(gradient, theta, iter(batches), [0.1, 0.1], {2})
        # A list is counted before the first step.
        with pytest.raises(ValueError, match="^noises: must be one batch for each rate"):
            variational.fit(pytest.fail, theta, batches, [0.1, 0.1], {2})
