from functools import partial

import pytest
import torch

from gradbook.estimators import (
    Family,
    antithetic,
    leave_one_out,
    moving_average,
    optimal_baseline,
    pathwise,
    score_function,
    with_baseline,
)
from gradbook.estimators.draws import (
    dot,
    fixed_baseline,
    mean_of_the_others,
    no_gradients,
    per_draw,
    require_draws,
    scalar,
    values,
)
from gradbook.reparameterization import exponential

F64 = torch.float64
NAN, INF = float("nan"), float("inf")


def constant_baseline(*arguments):
    return with_baseline(*arguments, baseline=0.5)


mirrored = partial(antithetic, pathwise, torch.neg)
EMPTY = (score_function, constant_baseline, moving_average, pathwise, mirrored)
GRADIENTS = (*EMPTY, leave_one_out)
ESTIMATORS = (*GRADIENTS, optimal_baseline)
NAMES = {constant_baseline: "baseline", mirrored: "antithetic"}


def name(estimator):
    return NAMES.get(estimator) or estimator.__name__


@pytest.mark.parametrize("estimator", GRADIENTS, ids=name)
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


@pytest.mark.parametrize("estimator", EMPTY, ids=name)
def test_no_draws_give_no_gradients(estimator, normal):
    theta, noise = normal.theta(3), torch.zeros(0, 3, dtype=F64)
    gradients = estimator(lambda z, t: z.sum(), normal.family, theta, noise)
    assert {name: (tuple(g.shape), g.dtype) for name, g in gradients.items()} == {
        "loc": ((0, 3), F64),
        "log_scale": ((0, 3), F64),
    }


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_bad_input_is_refused(estimator, normal):
    theta, noise = normal.theta(2), torch.zeros(3, 2, dtype=F64)

    def f(z, t):
        return z.sum()

    with pytest.raises(ValueError, match="theta: must be finite"):
        estimator(f, normal.family, theta | {"loc": torch.tensor([0.0, NAN])}, noise)
    for bad in (0.5, theta | {"loc": 0.5}, [theta, None, 1]):
        with pytest.raises(ValueError, match="theta: must be a tensor or a container of tensors"):
            estimator(f, normal.family, bad, noise)
    with pytest.raises(ValueError, match="noise: must be finite"):
        estimator(f, normal.family, theta, noise + NAN)
    with pytest.raises(ValueError, match="noise: needs a leading axis"):
        estimator(f, normal.family, theta, torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"f: must return a scalar for one draw, not \(2,\)"):
        estimator(lambda z, t: z, normal.family, theta, noise)


SCORES = (score_function, constant_baseline, moving_average, leave_one_out, optimal_baseline)


@pytest.mark.parametrize("estimator", SCORES, ids=name)
def test_a_log_prob_that_forgets_to_sum_is_refused(estimator, normal):
    family = Family(normal.family.sample, lambda z, t: -(z - t["loc"]).square())
    with pytest.raises(ValueError, match="log_prob: must return a scalar"):
        estimator(lambda z, t: z.sum(), family, normal.theta(2), torch.ones(3, 2, dtype=F64))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=name)
def test_a_sampler_can_refuse_its_noise(estimator):
    family = Family(exponential, lambda z, rate: rate.log() - rate * z)
    with pytest.raises(ValueError, match="uniform: must be in"):
        estimator(lambda z, t: z, family, torch.tensor(2.0), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    ("shape", "middle"), [((3,), ()), ((2, 3), ()), ((), (2,)), ((3,), (2,)), ((3,), (2, 4))]
)
def test_draws_have_the_shape_of_theta(shape, middle):
    theta, noise = torch.zeros(shape), torch.zeros(5, *middle, *shape)
    require_draws(theta, middle, noise=noise, other=noise)
    require_draws(theta, middle, noise=noise[:0])
    for bad in (noise[..., None], noise[0], torch.zeros(())):
        with pytest.raises(ValueError, match="other: must have shape"):
            require_draws(theta, middle, other=bad)


def test_draws_have_one_number_and_are_finite():
    theta = torch.zeros(3)
    with pytest.raises(ValueError, match=r"must have shape \(n, \*\(3,\)\), with one n"):
        require_draws(theta, noise=torch.zeros(5, 3), other=torch.zeros(4, 3))
    for bad in (NAN, INF):
        with pytest.raises(ValueError, match="other: must be finite"):
            require_draws(theta, noise=torch.zeros(1, 3), other=torch.tensor([[0.0, bad, 0.0]]))


def test_a_baseline_is_a_number_or_one_for_each_draw():
    assert fixed_baseline(0.1, 4) == 0.1
    for good in (torch.tensor(0.1), torch.arange(4.0)):
        good.requires_grad_()
        fixed = fixed_baseline(good, 4)
        assert torch.equal(fixed, good)
        assert not fixed.requires_grad
    for bad in (torch.ones(3), torch.ones(1), torch.ones(4, 1), torch.ones(1, 4)):
        with pytest.raises(ValueError, match=r"baseline: must be a scalar or \[4\], not"):
            fixed_baseline(bad, 4)
    for bad in (NAN, INF, torch.tensor(NAN), torch.tensor([0.0, -INF, 0.0, 0.0])):
        with pytest.raises(ValueError, match="baseline: must be finite"):
            fixed_baseline(bad, 4)


def test_the_mean_of_the_others_leaves_one_out():
    value = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 90.0]], dtype=F64)
    exact = torch.tensor([[4.0, 55.0], [3.5, 50.0], [1.5, 15.0]], dtype=F64)
    assert torch.equal(mean_of_the_others(value), exact)
    for lonely in (value[:1], value[:0]):
        with pytest.raises(ValueError, match="noise: leaving one out needs at least two draws"):
            mean_of_the_others(lonely)


def test_values_are_those_of_every_draw():
    z = torch.arange(6.0).reshape(3, 2)
    found = values(lambda z, theta: z.prod() + theta[0], z, [torch.tensor(2.0)])
    assert torch.equal(found, torch.tensor([2.0, 8.0, 22.0]))


def test_scalar_names_the_function():
    assert scalar("f", torch.tensor(2.0)) == 2
    with pytest.raises(ValueError, match=r"control: must return a scalar for one draw, not \(1,\)"):
        scalar("control", torch.ones(1))


def test_per_draw_multiplies_whole_gradients():
    gradients = torch.ones(2, 3, 4)
    scaled = per_draw(torch.tensor([5.0, 7.0]), gradients[0]) * gradients
    assert torch.equal(scaled.mean((1, 2)), torch.tensor([5.0, 7.0]))


def test_dot_runs_over_all_leaves():
    left = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    right = {"a": torch.tensor([4.0, 5.0]), "b": torch.tensor([[-6.0]])}
    assert dot(left, right) == 4 + 10 - 18


def test_no_gradients_follow_the_type():
    (empty,) = no_gradients([torch.zeros(2, 3, dtype=F64)])
    assert (empty.shape, empty.dtype) == ((0, 2, 3), F64)
