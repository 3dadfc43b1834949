import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.estimators import Family, leave_one_out, pathwise, score_function, summarize
from gradbook.reparameterization import exponential

F64 = torch.float64
ESTIMATORS = (score_function, leave_one_out, pathwise)


def sample_normal(theta, noise):
    return theta["loc"] + theta["log_scale"].exp() * noise


def log_normal(z, theta):
    standard = (z - theta["loc"]) / theta["log_scale"].exp()
    return (-(standard**2) / 2 - theta["log_scale"]).sum()


NORMAL = Family(sample_normal, log_normal)


def pick(values, z):
    """Index by a tensor that may be batched: under vmap, values[z] asks for z.item()."""
    return values.gather(0, z[None])[0]


# One categorical variable: the noise is uniform, the sample is an index.
CATEGORICAL = Family(
    lambda logits, u: (u > logits.softmax(0).cumsum(0)[:-1]).sum(),
    lambda z, logits: pick(logits.log_softmax(0), z),
)
LOGITS = torch.tensor([0.3, -0.7, 1.1], dtype=F64)
TABLE = torch.tensor([2.0, -1.0, 5.0], dtype=F64)


def normal_theta(*shape):
    generator = torch.Generator().manual_seed(4)
    return {
        "loc": torch.randn(shape, generator=generator, dtype=F64),
        "log_scale": 0.3 * torch.randn(shape, generator=generator, dtype=F64),
    }


def gauss_hermite(order):
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def table_objective(z, logits):
    """An objective that depends on theta too, so that its own gradient has to be there."""
    return pick(TABLE, z) * (1 + logits[0] ** 2) + logits[1] * logits[2]


def exact_categorical_gradient():
    logits = LOGITS.clone().requires_grad_()
    values = torch.stack([table_objective(torch.tensor(k), logits) for k in range(3)])
    return torch.autograd.grad(logits.softmax(0) @ values, logits)[0]


def noise_of_each_category():
    edges = torch.cat([torch.zeros(1, dtype=F64), LOGITS.softmax(0).cumsum(0)])
    return (edges[1:] + edges[:-1]) / 2


@pytest.mark.parametrize("estimator", [score_function, pathwise])
def test_quadrature_over_the_noise_gives_the_exact_normal_gradient(estimator):
    theta = {"loc": torch.tensor(0.7, dtype=F64), "log_scale": torch.tensor(-0.2, dtype=F64)}
    noise, weights = gauss_hermite(20)
    gradients = estimator(lambda z, t: z**3 + t["loc"] * z**2, NORMAL, theta, noise)
    # E[z^3 + m z^2] = 2 m^3 + 4 m s^2
    m, s2 = 0.7, np.exp(-0.4)
    assert weights @ gradients["loc"] == pytest.approx(6 * m**2 + 4 * s2, abs=1e-12)
    assert weights @ gradients["log_scale"] == pytest.approx(8 * m * s2, abs=1e-12)


def test_enumeration_gives_the_exact_categorical_gradient():
    noise = noise_of_each_category()
    gradients = score_function(table_objective, CATEGORICAL, LOGITS, noise)
    mean = LOGITS.softmax(0) @ gradients
    torch.testing.assert_close(mean, exact_categorical_gradient(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n", [2, 3])
def test_leave_one_out_is_unbiased_over_every_batch(n):
    noise, probs = noise_of_each_category(), LOGITS.softmax(0)
    total = torch.zeros(3, dtype=F64)
    for batch in itertools.product(range(3), repeat=n):
        rows = list(batch)
        gradients = leave_one_out(table_objective, CATEGORICAL, LOGITS, noise[rows])
        total += probs[rows].prod() * gradients.mean(0)
    torch.testing.assert_close(total, exact_categorical_gradient(), rtol=1e-13, atol=1e-13)


def test_samples_match_autograd_one_draw_at_a_time():
    theta, n = normal_theta(4), 5
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)

    def f(z, t):
        return (z.sin() * z**2).sum() + (z * t["loc"]).prod()

    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    values = [f(sample_normal(theta, eps), theta) for eps in noise]
    for i, eps in enumerate(noise):
        z = sample_normal(theta, eps)
        others = sum(values[j] for j in range(n) if j != i) / (n - 1)
        samples = {
            score_function: values[i] * log_normal(z, leaves) + f(z, leaves),
            leave_one_out: (values[i] - others) * log_normal(z, leaves) + f(z, leaves),
            pathwise: f(sample_normal(leaves, eps), leaves),
        }
        for estimator, sample in samples.items():
            want = torch.autograd.grad(sample, list(leaves.values()))
            have = estimator(f, NORMAL, theta, noise)
            for gradient, name in zip(want, theta, strict=True):
                torch.testing.assert_close(have[name][i], gradient, rtol=1e-12, atol=1e-12)


@given(st.floats(-100, 100), st.integers(2, 6))
def test_a_constant_in_f_moves_the_score_but_not_leave_one_out(constant, n):
    theta = normal_theta(2)
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=F64)

    def gradients(estimator, f):
        return estimator(f, NORMAL, theta, noise)["loc"]

    def f(z, t):
        return z.square().sum()

    def shifted(z, t):
        return f(z, t) + constant

    atol = 1e-12 * (1 + abs(constant))
    torch.testing.assert_close(
        gradients(leave_one_out, shifted), gradients(leave_one_out, f), rtol=1e-10, atol=atol
    )
    score = noise * (-theta["log_scale"]).exp()
    torch.testing.assert_close(
        gradients(score_function, shifted) - gradients(score_function, f),
        constant * score,
        rtol=1e-10,
        atol=1e-10,
    )


def test_leave_one_out_of_equal_values_is_zero():
    noise = torch.tensor([0.1, 0.1, 0.1], dtype=F64)
    gradients = leave_one_out(lambda z, t: pick(TABLE, z), CATEGORICAL, LOGITS, noise)
    assert torch.equal(gradients, torch.zeros(3, 3, dtype=F64))


def test_the_path_through_a_step_is_wrong_and_the_score_is_right():
    theta = {"loc": torch.tensor(0.4, dtype=F64), "log_scale": torch.tensor(0.0, dtype=F64)}
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(1), dtype=F64)

    def step(z, t):
        return (z > 0).to(F64)

    assert (pathwise(step, NORMAL, theta, noise)["loc"] == 0).all()
    score = summarize(score_function(step, NORMAL, theta, noise)["loc"])
    exact = np.exp(-(0.4**2) / 2) / np.sqrt(2 * np.pi)
    assert abs(score.mean - exact) < 4.5 * score.stderr


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("container", [list, tuple])
def test_theta_may_be_any_container_and_need_no_graph(estimator, container):
    theta = container([torch.ones(3, 2, requires_grad=True), torch.zeros(2, requires_grad=True)])
    family = Family(
        lambda t, eps: t[0] @ eps + t[1].sum(),
        lambda z, t: -((z - t[0].sum(1) - t[1].sum()) ** 2).sum(),
    )
    gradients = estimator(lambda z, t: z.sum(), family, theta, torch.ones(4, 2))
    assert type(gradients) is container
    assert [tuple(g.shape) for g in gradients] == [(4, 3, 2), (4, 2)]
    assert not any(g.requires_grad for g in gradients)


@pytest.mark.parametrize("estimator", [score_function, pathwise])
def test_no_draws_give_no_gradients(estimator):
    theta = normal_theta(3)
    gradients = estimator(lambda z, t: z.sum(), NORMAL, theta, torch.zeros(0, 3, dtype=F64))
    assert {name: (tuple(g.shape), g.dtype) for name, g in gradients.items()} == {
        "loc": ((0, 3), F64),
        "log_scale": ((0, 3), F64),
    }


@pytest.mark.parametrize("n", [0, 1])
def test_leave_one_out_needs_others(n):
    with pytest.raises(ValueError, match="noise: leaving one out needs"):
        leave_one_out(lambda z, t: z.sum(), NORMAL, normal_theta(3), torch.zeros(n, 3, dtype=F64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_input_is_refused(estimator):
    theta, noise = normal_theta(2), torch.zeros(3, 2, dtype=F64)

    def f(z, t):
        return z.sum()

    with pytest.raises(ValueError, match="theta: must be finite"):
        estimator(f, NORMAL, theta | {"loc": torch.tensor([0.0, float("nan")])}, noise)
    with pytest.raises(ValueError, match="noise: must be finite"):
        estimator(f, NORMAL, theta, noise + float("nan"))
    with pytest.raises(ValueError, match="noise: needs a leading axis"):
        estimator(f, NORMAL, theta, torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"f: must return a scalar for one draw, not \(2,\)"):
        estimator(lambda z, t: z, NORMAL, theta, noise)


@pytest.mark.parametrize("estimator", [score_function, leave_one_out])
def test_a_log_prob_that_forgets_to_sum_is_refused(estimator):
    family = Family(sample_normal, lambda z, t: -(z - t["loc"]).square())
    with pytest.raises(ValueError, match="log_prob: must return a scalar"):
        estimator(lambda z, t: z.sum(), family, normal_theta(2), torch.ones(3, 2, dtype=F64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_sampler_can_refuse_its_noise(estimator):
    family = Family(exponential, lambda z, rate: rate.log() - rate * z)
    with pytest.raises(ValueError, match="uniform: must be in"):
        estimator(lambda z, t: z, family, torch.tensor(2.0), torch.tensor([0.5, 1.0]))


def test_summary_is_mean_stderr_and_unbiased_variance():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    summary = summarize(x)
    np.testing.assert_allclose(summary.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(summary.variance, x.numpy().var(0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(summary.stderr, x.numpy().std(0, ddof=1) / np.sqrt(7), rtol=1e-13)


@pytest.mark.parametrize("bad", [torch.tensor(1.0), torch.ones(0), torch.ones(1, 3)])
def test_summary_needs_two_samples(bad):
    with pytest.raises(ValueError, match="gradients: needs at least two"):
        summarize(bad)


def test_summary_refuses_nan():
    with pytest.raises(ValueError, match="gradients: must be finite"):
        summarize(torch.tensor([1.0, float("nan")]))
