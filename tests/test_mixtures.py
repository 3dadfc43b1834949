"""Mixtures of normals: their noised laws, scores and denoisers, and the equation back to them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from gradbook import mixtures
from gradbook.mixtures import Mixture


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniforms(n, seed=10):
    return torch.rand(n, generator=generator(seed), dtype=torch.float64)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


PLANE = Mixture(
    tensor([0.2, 0.5, 0.3]),
    tensor([[-2.0, 1.0], [1.5, 0.0], [0.0, -2.5]]),
    tensor([0.3, 1.2, 0.05]),
)
LINE = Mixture(tensor([0.35, 0.65]), tensor([[-1.5], [1.0]]), tensor([0.4, 0.09]))
LEVELS = [(1.0, 0.5), (1.0, 3.0), (0.8, 0.6), (-0.3, 0.1), (0.0, 1.0)]


def torchs(mixture):
    components = distributions.Normal(mixture.means, mixture.variances.sqrt()[:, None])
    return distributions.MixtureSameFamily(
        distributions.Categorical(mixture.weights), distributions.Independent(components, 1)
    )


def moments(mixture):
    """Mean [d] and covariance [d, d]."""
    weights, means, variances = mixture
    mean = weights @ means
    spread = (weights[:, None] * (means - mean)).T @ (means - mean)
    return mean, spread + (weights @ variances) * torch.eye(len(mean), dtype=torch.float64)


def cdf(mixture, x):
    """Distribution function of a mixture on the line; x [n, 1]."""
    weights, means, variances = mixture
    return torch.special.ndtr((x - means[:, 0]) / variances.sqrt()) @ weights


def assert_moments(draws, mixture):
    mean, covariance = moments(mixture)
    centred = draws - mean
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    for values, exact in ((draws, mean), (products, covariance.flatten())):
        stderr = values.std(0) / math.sqrt(len(draws))
        assert ((values.mean(0) - exact).abs() <= 4.5 * stderr).all()


def flow(mixture):
    return lambda y, sigma: mixtures.denoiser(mixture, y, 1.0, sigma)


@pytest.mark.parametrize("mixture", [PLANE, LINE])
def test_log_prob_is_torchs(mixture):
    x = 3 * normals(50, 2, mixture.means.shape[1])
    ours = mixtures.log_prob(mixture, x)
    torch.testing.assert_close(ours, torchs(mixture).log_prob(x), rtol=1e-12, atol=1e-12)


def test_log_prob_is_differentiable_in_the_mixture():
    logits, means, raw = (normals(3, seed=1), normals(3, 2, seed=2), normals(3, seed=3))
    leaves = [t.requires_grad_() for t in (logits, means, raw)]

    def value(logits, means, raw):
        return mixtures.log_prob(Mixture(logits.softmax(0), means, raw.exp()), normals(4, 2))

    assert torch.autograd.gradcheck(value, leaves)


def test_responsibilities_are_bayes_rule():
    x = normals(20, 2)
    joint = torch.stack(
        [
            w * distributions.Normal(m, v.sqrt()).log_prob(x).sum(-1).exp()
            for w, m, v in zip(*PLANE, strict=True)
        ],
        -1,
    )
    exact = joint / joint.sum(-1, keepdim=True)
    ours = mixtures.responsibilities(PLANE, x)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-14)


def test_far_from_every_component_the_score_still_points_back():
    x = tensor([[1e4, -1e4]])
    assert mixtures.log_prob(PLANE, x).isfinite().all()
    widest = (PLANE.means[1] - x) / PLANE.variances[1]
    torch.testing.assert_close(mixtures.score(PLANE, x), widest, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mixture", [PLANE, LINE])
def test_score_is_the_gradient_of_log_prob(mixture):
    x = (2 * normals(40, mixture.means.shape[1])).requires_grad_()
    (exact,) = torch.autograd.grad(mixtures.log_prob(mixture, x).sum(), x)
    torch.testing.assert_close(mixtures.score(mixture, x), exact, rtol=1e-10, atol=1e-12)


def test_draws_take_the_component_that_the_uniform_falls_in():
    picked = mixtures.sample(
        PLANE, tensor([0.0, 0.199, 0.201, 0.699, 0.701, 1.0]), 0 * normals(6, 2)
    )
    torch.testing.assert_close(picked, PLANE.means[[0, 0, 1, 1, 2, 2]])


def test_a_uniform_on_the_edge_belongs_to_the_next_component():
    halves = Mixture(tensor([0.5, 0.5]), tensor([[-1.0], [1.0]]), tensor([1.0, 1.0]))
    assert mixtures.sample(halves, tensor([0.5]), tensor([[0.0]])).item() == 1


def test_noise_is_scaled_by_the_standard_deviation():
    noise = normals(3, 2)
    drawn = mixtures.sample(PLANE, tensor([0.1, 0.5, 0.9]), noise)
    exact = PLANE.means + PLANE.variances.sqrt()[:, None] * noise
    torch.testing.assert_close(drawn, exact, rtol=1e-14, atol=0)


def test_draws_have_the_moments_of_the_mixture():
    assert_moments(mixtures.sample(PLANE, uniforms(40_000), normals(40_000, 2)), PLANE)


def test_draws_follow_means_and_variances():
    leaves = [PLANE.means.clone().requires_grad_(), PLANE.variances.clone().requires_grad_()]
    noise = normals(3, 2)
    drawn = mixtures.sample(Mixture(PLANE.weights, *leaves), tensor([0.1, 0.1, 0.9]), noise)
    in_means, in_variances = torch.autograd.grad(drawn.sum(), leaves)
    torch.testing.assert_close(in_means, tensor([[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]))
    sums = torch.stack([noise[:2].sum(), 0 * noise.sum(), noise[2].sum()])
    torch.testing.assert_close(in_variances, sums / (2 * PLANE.variances.sqrt()))


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_noised_law_is_that_of_noised_draws(alpha, sigma):
    x = mixtures.sample(PLANE, uniforms(40_000), normals(40_000, 2))
    y = alpha * x + sigma * normals(40_000, 2, seed=1)
    assert_moments(y, mixtures.noised(PLANE, alpha, sigma))


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_noised_density_is_the_integral_over_draws(alpha, sigma):
    x, width = grid()
    y = tensor([[-2.0], [0.1], [1.3]])
    given_x = distributions.Normal(alpha * x, sigma).log_prob(y[:, 0, None]).exp()
    exact = given_x @ (mixtures.log_prob(LINE, x[:, None]).exp() * width)
    ours = mixtures.log_prob(mixtures.noised(LINE, alpha, sigma), y).exp()
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def grid():
    """Points that carry all of LINE, and their distance: sums over them are exact to rounding."""
    x = torch.linspace(-9, 9, 18_001, dtype=torch.float64)
    return x, 18 / 18_000


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoiser_is_the_mean_of_the_posterior(alpha, sigma):
    x, _ = grid()
    y = tensor([[-2.0], [0.1], [1.3]])
    log_joint = mixtures.log_prob(LINE, x[:, None])
    log_joint = log_joint + distributions.Normal(alpha * x, sigma).log_prob(y[:, 0, None])
    exact = log_joint.softmax(-1) @ x
    ours = mixtures.denoiser(LINE, y, alpha, sigma)[:, 0]
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS[:-1])
def test_denoiser_is_tweedies_formula(alpha, sigma):
    y = 2 * normals(5, 8, 2)
    score = mixtures.score(mixtures.noised(PLANE, alpha, sigma), y)
    exact = (y + sigma**2 * score) / alpha
    ours = mixtures.denoiser(PLANE, y, alpha, sigma)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-10)


def test_without_noise_nothing_is_denoised_and_without_signal_the_mean_is_the_guess():
    y = normals(4, 2)
    torch.testing.assert_close(mixtures.denoiser(PLANE, y, 0.5, 0.0), 2 * y, rtol=1e-10, atol=1e-12)
    mean, _ = moments(PLANE)
    ours = mixtures.denoiser(PLANE, y, 0.0, 1.0)
    torch.testing.assert_close(ours, mean.expand(4, 2), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2), st.floats(0.01, 0.99), st.floats(0.05, 5), st.floats(0.1, 3))
def test_a_component_in_two_parts_is_the_same_mixture(index, share, sigma, alpha):
    weights, means, variances = PLANE
    part = weights[index] * share
    left = weights.clone()
    left[index] -= part
    split = Mixture(
        torch.cat((left, part[None])),
        torch.cat((means, means[index : index + 1])),
        torch.cat((variances, variances[index : index + 1])),
    )
    y = 2 * normals(5, 2)
    for function in (mixtures.log_prob, mixtures.score):
        torch.testing.assert_close(function(split, y), function(PLANE, y), rtol=1e-9, atol=1e-10)
    one, other = (mixtures.denoiser(mixture, y, alpha, sigma) for mixture in (split, PLANE))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def levels(steps, largest, smallest=0.0, rho=7):
    """Levels whose rho-th roots are evenly spaced."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    return (ends[0] + ramp * (ends[1] - ends[0])) ** rho


def test_a_step_is_heuns_and_the_step_to_zero_is_eulers():
    def denoise(y, sigma):
        return y * torch.exp(-sigma) + 0.3

    y = normals(4, 2)
    slope = (y - denoise(y, tensor(2.0))) / 2.0
    ahead = y - 1.5 * slope
    after = (ahead - denoise(ahead, tensor(0.5))) / 0.5
    heun = y - 1.5 * (slope + after) / 2
    torch.testing.assert_close(mixtures.reverse_ode(denoise, y, [2.0, 0.5]), heun)
    # Euler's step to 0 is the denoiser's guess itself.
    ours = mixtures.reverse_ode(denoise, y, [2.0, 0.5, 0.0])
    torch.testing.assert_close(ours, denoise(heun, tensor(0.5)))


def test_the_flow_of_one_normal_is_linear():
    """The distance from the mean shrinks as the standard deviation of the noised law does."""
    mean, variance = tensor([1.0, -2.0]), 0.7
    normal = Mixture(tensor([1.0]), mean[None], tensor([variance]))
    y = 10 * normals(6, 2)
    ours = mixtures.reverse_ode(flow(normal), y, levels(400, 10.0, 0.1, rho=3))
    exact = mean + (y - mean) * math.sqrt((variance + 0.01) / (variance + 100))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)


def test_halving_the_steps_divides_the_error_by_four():
    """Against the flow on the line, which keeps the distribution function of every draw."""
    y = 4 * normals(7, 1)
    target = cdf(mixtures.noised(LINE, 1.0, 4.0), y)
    end = mixtures.noised(LINE, 1.0, 0.2)
    errors = [
        (cdf(end, mixtures.reverse_ode(flow(LINE), y, levels(n, 4.0, 0.2))) - target).abs().max()
        for n in (100, 200, 400)
    ]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < 1e-5
    assert orders == pytest.approx([2, 2], abs=0.1)


def test_samples_have_the_moments_of_the_mixture():
    """From pure noise, so large that the mean of the noised law does not show."""
    y = 1000 * normals(4000, 2, seed=1)
    samples = mixtures.reverse_ode(flow(PLANE), y, levels(120, 1000.0))
    assert_moments(samples, PLANE)


def test_samples_fall_to_the_components_by_their_weights():
    y = 1000 * normals(4000, 2, seed=3)
    samples = mixtures.reverse_ode(flow(PLANE), y, levels(120, 1000.0))
    shares = mixtures.responsibilities(PLANE, samples)
    stderr = shares.std(0) / math.sqrt(len(y))
    assert ((shares.mean(0) - PLANE.weights).abs() <= 4.5 * stderr).all()


def test_levels_may_be_a_list_and_one_level_takes_no_step():
    y = 3 * normals(5, 2)
    asked = []

    def denoise(y, sigma):
        asked.append(sigma)
        return flow(PLANE)(y, sigma)

    ours = mixtures.reverse_ode(denoise, y, [3.0, 1.1, 0.0])
    assert torch.equal(ours, mixtures.reverse_ode(flow(PLANE), y, tensor([3.0, 1.1, 0.0])))
    assert [sigma.item() for sigma in asked] == [3.0, 1.1, 1.1]
    assert {(sigma.ndim, sigma.dtype) for sigma in asked} == {(0, torch.float64)}
    assert torch.equal(mixtures.reverse_ode(denoise, y, [3.0]), y)
    assert len(asked) == 3


def test_gradients_flow_through_the_steps():
    y = (3 * normals(3, 2)).requires_grad_()
    run = lambda y: mixtures.reverse_ode(flow(PLANE), y, [3.0, 1.5, 0.7, 0.0])  # noqa: E731
    assert torch.autograd.gradcheck(run, y)


def test_numbers_keep_the_precision_of_the_mixture():
    """0.1 is not the same number in single and in double precision."""
    as_number, as_tensor = (mixtures.noised(LINE, a, a) for a in (0.1, tensor(0.1)))
    for one, other in zip(as_number, as_tensor, strict=True):
        assert torch.equal(one, other)
    single = mixtures.noised(Mixture(*(part.float() for part in LINE)), 0.1, 0.1)
    assert {part.dtype for part in single} == {torch.float32}


def test_an_empty_batch_has_empty_results():
    none = normals(0, 2)
    assert mixtures.log_prob(PLANE, none).shape == (0,)
    assert mixtures.score(PLANE, none).shape == (0, 2)
    assert mixtures.denoiser(PLANE, none, 1.0, 1.0).shape == (0, 2)
    assert mixtures.sample(PLANE, uniforms(0), none).shape == (0, 2)
    assert mixtures.reverse_ode(flow(PLANE), none, [3.0, 1.0, 0.0]).shape == (0, 2)


def test_weights_are_checked_to_a_millionth():
    mixtures.log_prob(PLANE._replace(weights=PLANE.weights * (1 + 0.9e-6)), normals(1, 2))
    for factor in (1 + 1.1e-6, 1 - 1.1e-6):
        with pytest.raises(ValueError, match="weights: must sum to 1"):
            mixtures.log_prob(PLANE._replace(weights=PLANE.weights * factor), normals(1, 2))


X = normals(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixtures.log_prob(PLANE._replace(means=PLANE.means[0]), X), "mixture: must be"),
        (lambda: mixtures.log_prob(PLANE._replace(weights=tensor([0.5, 0.5])), X), "mixture: "),
        (lambda: mixtures.log_prob(PLANE._replace(variances=PLANE.means), X), "mixture: "),
        (
            lambda: mixtures.log_prob(PLANE._replace(weights=tensor([0.0, 0.5, 0.5])), X),
            "weights: must be positive",
        ),
        (lambda: mixtures.score(PLANE._replace(variances=0 * PLANE.variances), X), "variances: "),
        (lambda: mixtures.score(PLANE._replace(means=PLANE.means / 0), X), "means: must be fin"),
        (lambda: mixtures.log_prob(PLANE, X[:, :1]), "x: must be"),
        (lambda: mixtures.responsibilities(PLANE, X * math.nan), "x: must be finite"),
        (lambda: mixtures.sample(PLANE, uniforms(3), X), "uniforms: must be \\[n\\]"),
        (lambda: mixtures.sample(PLANE, uniforms(4), X[None]), "uniforms: must be \\[n\\]"),
        (lambda: mixtures.sample(PLANE, 2 + uniforms(4), X), "uniforms: must be from 0"),
        (lambda: mixtures.sample(PLANE, -uniforms(4), X), "uniforms: must be from 0"),
        (lambda: mixtures.sample(PLANE, uniforms(4) * math.nan, X), "uniforms: must be from 0"),
        (lambda: mixtures.sample(PLANE, uniforms(4), X[:, :1]), "noise: must be"),
        (lambda: mixtures.noised(PLANE, math.nan, 1.0), "alpha: must be finite"),
        (lambda: mixtures.noised(PLANE, 1.0, math.inf), "sigma: must be finite"),
        (lambda: mixtures.noised(PLANE, 1.0, -0.1), "sigma: must not be negative"),
        (lambda: mixtures.noised(PLANE, 0.0, 0.0), "sigma: must be positive where alpha is 0"),
        (lambda: mixtures.noised(PLANE, 1.0, torch.ones(3)), "sigma: must be a scalar"),
        (lambda: mixtures.noised(PLANE, torch.ones(1), 1.0), "alpha: must be a scalar"),
        (lambda: mixtures.denoiser(PLANE, X, 1.0, -0.1), "sigma: must not be negative"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X * math.nan, [1.0, 0.0]), "y: must be finite"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, []), "sigmas: must be a list"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, tensor(1.0)), "sigmas: must be a list"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, [math.inf, 0.0]), "sigmas: must be finite"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, [1.0, 2.0]), "sigmas: must decrease"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, [1.0, 1.0]), "sigmas: must decrease"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, [1.0, -1.0]), "sigmas: must not be neg"),
        (lambda: mixtures.reverse_ode(flow(PLANE), X, [1.0, 0.0, -1.0]), "sigmas: must be pos"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
