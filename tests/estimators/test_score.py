import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.categorical import categorical, exact_gradient, exact_mean
from gradbook.estimators import (
    Family,
    leave_one_out,
    moving_average,
    optimal_baseline,
    score_function,
    summarize,
    with_baseline,
)

F64 = torch.float64


def constant_baseline(*arguments):
    return with_baseline(*arguments, baseline=1.5)


ESTIMATORS = (score_function, constant_baseline, moving_average, leave_one_out)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# One categorical variable that is an index: the noise is uniform.
def pick(values, z):
    """Index by a tensor that may be batched: under vmap, values[z] asks for z.item()."""
    return values.gather(0, z[None])[0]


INDEX = Family(
    lambda logits, u: (u > logits.softmax(0).cumsum(0)[:-1]).sum(),
    lambda z, logits: pick(logits.log_softmax(0), z),
)
LOGITS = torch.tensor([0.3, -0.7, 1.1], dtype=F64)
TABLE = torch.tensor([2.0, -1.0, 5.0], dtype=F64)


def table_objective(z, logits):
    """An objective that depends on theta too, so that its own gradient has to be there."""
    return pick(TABLE, z) * (1 + logits[0] ** 2) + logits[1] * logits[2]


def exact_index_gradient():
    logits = LOGITS.clone().requires_grad_()
    values = torch.stack([table_objective(torch.tensor(k), logits) for k in range(3)])
    return torch.autograd.grad(logits.softmax(0) @ values, logits)[0]


def noise_of_each_index():
    edges = torch.cat([torch.zeros(1, dtype=F64), LOGITS.softmax(0).cumsum(0)])
    return (edges[1:] + edges[:-1]) / 2


def over_every_batch(estimator, n):
    """Average the mean gradient of a batch over all batches of n draws, weighted exactly."""
    noise, probs = noise_of_each_index(), LOGITS.softmax(0)
    total = torch.zeros(n, 3, dtype=F64)
    for batch in itertools.product(range(3), repeat=n):
        rows = list(batch)
        gradients = estimator(table_objective, INDEX, LOGITS, noise[rows])
        total += probs[rows].prod() * gradients
    return total


# unbiased


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [2, 3])
def test_every_draw_of_a_batch_is_unbiased_over_all_batches(estimator, n):
    close(over_every_batch(estimator, n), exact_index_gradient().expand(n, 3), rtol=1e-13)


def test_enumeration_of_one_draw_gives_the_exact_gradient(problem, every_noise):
    noise, probs = every_noise(problem.logits)
    exact = exact_gradient(*problem)
    for baseline in (0.0, -3.0, float(exact_mean(*problem))):
        gradients = with_baseline(problem.f, categorical, problem.logits, noise, baseline)
        close(torch.tensordot(probs, gradients, 1), exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sampled_means_are_unbiased(estimator, problem, gumbels, z_scores):
    noise = gumbels(40_000, problem.logits, 11)
    gradients = estimator(problem.f, categorical, problem.logits, noise)
    assert z_scores(gradients, exact_gradient(*problem)) < 4.5


def test_a_baseline_from_the_same_draws_is_biased():
    """Why the optimal baseline must come from other draws."""

    def cheat(f, family, theta, noise):
        return with_baseline(f, family, theta, noise, optimal_baseline(f, family, theta, noise))

    bias = over_every_batch(cheat, 2).mean(0) - exact_index_gradient()
    assert bias.abs().max() > 0.1


@pytest.mark.parametrize("estimator", [score_function, moving_average, leave_one_out])
def test_quadrature_gives_the_exact_normal_gradient(estimator, normal):
    theta = {"loc": torch.tensor(0.7, dtype=F64), "log_scale": torch.tensor(-0.2, dtype=F64)}
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(12))
    weights = weights / weights.sum()
    pairs = torch.cartesian_prod(nodes, nodes)
    both = torch.cartesian_prod(weights, weights).prod(-1)
    # E[z^3 + m z^2] = 2 m^3 + 4 m s^2
    m, s2 = 0.7, np.exp(-0.4)
    exact = {"loc": 6 * m**2 + 4 * s2, "log_scale": 8 * m * s2}

    def f(z, t):
        return z**3 + t["loc"] * z**2

    found = [estimator(f, normal.family, theta, pair) for pair in pairs]
    for name, value in exact.items():
        means = both @ torch.stack([g[name] for g in found])
        close(means, torch.full((2,), value, dtype=F64), atol=1e-11)


# single samples


def test_samples_match_autograd_one_draw_at_a_time(normal):
    theta, n = normal.theta(4), 5
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    given_baseline = torch.linspace(-1, 2, n, dtype=F64)

    def f(z, t):
        return (z.sin() * z**2).sum() + (z * t["loc"]).prod()

    def per_draw(*arguments):
        return with_baseline(*arguments, baseline=given_baseline)

    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    draws = [normal.family.sample(theta, eps) for eps in noise]
    values = [f(z, theta) for z in draws]
    for i, z in enumerate(draws):
        weights = {
            score_function: values[i],
            constant_baseline: values[i] - 1.5,
            per_draw: values[i] - given_baseline[i],
            leave_one_out: values[i] - sum(values[j] for j in range(n) if j != i) / (n - 1),
        }
        for estimator, weight in weights.items():
            sample = weight * normal.family.log_prob(z, leaves) + f(z, leaves)
            want = torch.autograd.grad(sample, list(leaves.values()))
            have = estimator(f, normal.family, theta, noise)
            for gradient, name in zip(want, theta, strict=True):
                close(have[name][i], gradient)


@given(st.floats(-100, 100), st.integers(2, 6))
def test_a_constant_in_f_moves_the_score_but_not_leave_one_out(constant, n):
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=F64)
    theta = torch.tensor([0.3, -1.2], dtype=F64)
    family = Family(torch.add, lambda z, loc: -(z - loc).square().sum() / 2)

    def gradients(estimator, constant):
        return estimator(lambda z, _: z.square().sum() + constant, family, theta, noise)

    atol = 1e-12 * (1 + abs(constant))
    close(gradients(leave_one_out, constant), gradients(leave_one_out, 0.0), 1e-10, atol)
    moved = gradients(score_function, constant) - gradients(score_function, 0.0)
    close(moved, constant * noise, 1e-10, 1e-10)


def test_leave_one_out_of_equal_values_is_zero():
    noise = torch.tensor([0.1, 0.1, 0.1], dtype=F64)
    gradients = leave_one_out(lambda z, t: pick(TABLE, z), INDEX, LOGITS, noise)
    assert torch.equal(gradients, torch.zeros(3, 3, dtype=F64))


@pytest.mark.parametrize("n", [0, 1])
def test_leave_one_out_needs_others(n, normal):
    with pytest.raises(ValueError, match="noise: leaving one out needs"):
        leave_one_out(
            lambda z, t: z.sum(), normal.family, normal.theta(3), torch.zeros(n, 3, dtype=F64)
        )


def test_the_score_through_a_step_is_right(normal):
    theta = {"loc": torch.tensor(0.4, dtype=F64), "log_scale": torch.tensor(0.0, dtype=F64)}
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    gradients = score_function(lambda z, t: (z > 0).to(F64), normal.family, theta, noise)
    score = summarize(gradients["loc"])
    exact = np.exp(-(0.4**2) / 2) / np.sqrt(2 * np.pi)
    assert abs(score.mean - exact) < 4.5 * score.stderr


# with_baseline


def test_a_number_is_not_rounded_to_the_default_type(four_classes, gumbels):
    f, logits = four_classes
    noise = gumbels(4, logits, 3)
    exact = torch.tensor(0.1, dtype=F64)
    close(
        with_baseline(f, categorical, logits, noise, 0.1),
        with_baseline(f, categorical, logits, noise, exact),
        rtol=0,
        atol=0,
    )


def test_the_type_is_that_of_the_logits(four_classes, gumbels):
    logits = four_classes.logits.float()
    noise = gumbels(4, logits, 3).float()
    gradients = with_baseline(lambda z, t: z[0], categorical, logits, noise, 0.1)
    assert gradients.dtype == torch.float32


def test_a_baseline_may_carry_a_graph_which_stays_its_own(four_classes, gumbels):
    f, logits = four_classes
    baseline = torch.ones(4, dtype=F64, requires_grad=True)
    gradients = with_baseline(f, categorical, logits, gumbels(4, logits, 3), baseline)
    assert not gradients.requires_grad


def test_baselines_are_scalars_or_one_per_draw(four_classes, gumbels):
    f, logits = four_classes
    for bad in (torch.ones(3), torch.ones(1), torch.ones(4, 1)):
        with pytest.raises(ValueError, match=r"baseline: must be a scalar or \[4\], not"):
            with_baseline(f, categorical, logits, gumbels(4, logits, 3), bad)
    for bad in (math.nan, math.inf, torch.tensor([0.0, math.nan, 0.0, 0.0])):
        with pytest.raises(ValueError, match="baseline: must be finite"):
            with_baseline(f, categorical, logits, gumbels(4, logits, 3), bad)


# optimal_baseline


def total_variance(problem, baseline, every_noise):
    noise, probs = every_noise(problem.logits)
    gradients = with_baseline(problem.f, categorical, problem.logits, noise, baseline)
    mean = torch.tensordot(probs, gradients, 1)
    return float((probs @ (gradients - mean).reshape(len(probs), -1).square()).sum())


def test_the_optimal_baseline_is_the_minimum(problem, every_noise):
    noise, probs = every_noise(problem.logits)
    counts = (1000 * probs).round().long()
    draws = noise.repeat_interleave(counts, 0)
    best = optimal_baseline(problem.f, categorical, problem.logits, draws)

    def mean_square(baseline):
        gradients = with_baseline(problem.f, categorical, problem.logits, draws, baseline)
        return gradients.square().mean()

    # A parabola has the same value at equal distances from its minimum, and only there.
    close(mean_square(best + 1), mean_square(best - 1))
    assert mean_square(best) < mean_square(best + 1)
    # The counts are the probabilities to one in a thousand, and the mean has no baseline in it.
    best = float(best)
    near, far = (total_variance(problem, best + d, every_noise) for d in (0.0, 0.1))
    assert near < far
    assert near < total_variance(problem, best - 0.1, every_noise)


def test_the_optimal_baseline_is_the_formula(four_classes, every_noise):
    noise, probs = every_noise(four_classes.logits)
    size = (torch.eye(4, dtype=F64) - probs).square().sum(-1)
    values = torch.stack([four_classes.f(row, None) for row in torch.eye(4, dtype=F64)])
    weights = probs * size
    ten = noise.repeat_interleave(torch.arange(1, 5), 0)  # the law .1, .2, .3, .4 is ten draws
    best = optimal_baseline(four_classes.f, categorical, four_classes.logits, ten)
    close(best, weights @ values / weights.sum())
    # With the law exact, the mean square has its minimum where the variance has.
    above, below = (
        total_variance(four_classes, float(best) + step, every_noise) for step in (1, -1)
    )
    assert above == pytest.approx(below, rel=1e-12)
    assert total_variance(four_classes, float(best), every_noise) < above


def test_the_enumerated_variance_of_the_coins(coins, every_noise):
    """The known value of this toy, in one logit per coin: half of that in two."""
    assert total_variance(coins, 0.0, every_noise) / 2 == pytest.approx(0.47398, abs=5e-6)


def test_the_optimal_baseline_needs_draws_and_scores(normal):
    theta, noise = normal.theta(2), torch.zeros(0, 2, dtype=F64)
    with pytest.raises(ValueError, match="noise: an optimal baseline needs draws"):
        optimal_baseline(lambda z, t: z.sum(), normal.family, theta, noise)
    flat = Family(normal.family.sample, lambda z, t: 0 * t["loc"].sum())
    with pytest.raises(ValueError, match="family: every score is zero"):
        optimal_baseline(lambda z, t: z.sum(), flat, theta, torch.ones(3, 2, dtype=F64))


# moving_average


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
def test_the_moving_average_is_the_weighted_mean_of_what_came_before(decay, n, mixed, gumbels):
    f, logits = mixed
    noise = gumbels(n, logits, 5)
    draws = [categorical.sample(logits, row) for row in noise]
    values = [float(f(z, logits)) for z in draws]
    averages = [0.0]
    for i in range(1, n):
        weights = [decay ** (i - 1 - j) for j in range(i)]
        average = sum(w * v for w, v in zip(weights, values[:i], strict=True)) / sum(weights)
        averages.append(average)
    close(
        moving_average(f, categorical, logits, noise, decay),
        with_baseline(f, categorical, logits, noise, torch.tensor(averages, dtype=F64)),
    )


def test_the_decay_by_default(four_classes, gumbels):
    f, logits = four_classes
    noise = gumbels(6, logits, 5)
    assert torch.equal(
        moving_average(f, categorical, logits, noise),
        moving_average(f, categorical, logits, noise, 0.9),
    )


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_out_of_range_is_refused(decay, four_classes, gumbels):
    f, logits = four_classes
    with pytest.raises(ValueError, match="decay: must be from 0 to 1"):
        moving_average(f, categorical, logits, gumbels(3, logits, 5), decay)


# the table of the four classes


def test_every_baseline_lowers_the_variance_of_the_four_classes(four_classes, gumbels, every_noise):
    f, logits = four_classes
    noise = gumbels(40_000, logits, 7)
    best = float(optimal_baseline(f, categorical, logits, gumbels(40_000, logits, 8)))
    variances = {
        estimator.__name__: float(estimator(f, categorical, logits, noise).var(0).sum())
        for estimator in (score_function, moving_average, leave_one_out)
    }
    plain = total_variance(four_classes, 0.0, every_noise)
    assert plain == pytest.approx(2.97, abs=0.005)
    # A variance of bounded terms over 40,000 draws is known to a few per cent.
    assert variances["score_function"] == pytest.approx(plain, rel=0.03)
    at_best = total_variance(four_classes, best, every_noise)
    at_mean = total_variance(four_classes, float(exact_mean(f, logits)), every_noise)
    assert at_best < at_mean < plain / 2
    assert variances["leave_one_out"] == pytest.approx(at_mean, rel=0.03)
    assert at_mean < variances["moving_average"] < plain
