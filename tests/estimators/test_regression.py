import math

import pytest
import torch

from gradbook.categorical import categorical, exact_gradient
from gradbook.estimators import (
    control_variate,
    regression_coefficient,
    score_function,
    with_baseline,
)

F64 = torch.float64


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_a_baseline_is_a_control_variate_of_mean_zero(mixed, gumbels):
    noise = gumbels(6, mixed.logits, 0)
    gradients = score_function(mixed.f, categorical, mixed.logits, noise)
    scores = score_function(
        lambda z, _: torch.ones((), dtype=F64), categorical, mixed.logits, noise
    )
    close(
        control_variate(gradients, scores, 0.0, 1.5),
        with_baseline(mixed.f, categorical, mixed.logits, noise, 1.5),
    )


def test_a_control_variate_may_have_a_mean_and_a_coefficient_per_coordinate():
    gradients, control = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    found = control_variate(gradients, control, torch.tensor([4.0, 9.0]), torch.tensor([2.0, 3.0]))
    assert found.tolist() == [[-1.0, 8.0]]


def test_the_coefficient_is_the_sum_of_covariances_over_that_of_variances():
    gradients = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    control = gradients.sin() + 4
    pairs = [(gradients[:, i, j], control[:, i, j]) for i in range(2) for j in range(3)]
    covariances = [torch.stack(pair).cov() for pair in pairs]
    want = sum(c[0, 1] for c in covariances) / sum(c[1, 1] for c in covariances)
    close(regression_coefficient(gradients, control), want)


def test_the_coefficient_is_the_minimum_on_its_own_draws():
    gradients = torch.randn(9, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    control = gradients.tanh() + gradients.flip(0)
    best = regression_coefficient(gradients, control)

    def variance(coefficient):
        return control_variate(gradients, control, 0.0, coefficient).var(0).sum()

    close(variance(best + 0.5), variance(best - 0.5))
    assert variance(best) < variance(best + 0.5)


def test_a_coefficient_from_fresh_draws_keeps_the_mean(four_classes, gumbels, z_scores):
    f, logits = four_classes

    def both(seed):
        noise = gumbels(20_000, logits, seed)
        cubes = score_function(lambda z, _: z[3], categorical, logits, noise)
        return score_function(f, categorical, logits, noise), cubes

    coefficient = regression_coefficient(*both(5))
    gradients, control = both(6)
    known = exact_gradient(lambda z, _: z[3], logits)
    found = control_variate(gradients, control, known, coefficient)
    assert z_scores(found, exact_gradient(f, logits)) < 4.5
    assert found.var(0).sum() < 0.7 * gradients.var(0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [2, 3, 7, 1000])
def test_a_constant_control_is_refused_though_its_mean_is_rounded(n, dtype):
    """The mean of seven times 0.1 is not 0.1."""
    gradients = torch.arange(2.0 * n, dtype=dtype).reshape(n, 2)
    for control in (torch.full((n, 2), 0.1), torch.tensor([0.1, 7.3]).expand(n, 2)):
        with pytest.raises(ValueError, match="control: must not be constant"):
            regression_coefficient(gradients, control.to(dtype))
    nearly = torch.zeros(n, 2, dtype=dtype)
    nearly[0, 0] = torch.finfo(dtype).tiny
    with pytest.raises(ValueError, match="control: must not be constant"):
        regression_coefficient(gradients, nearly)


def test_bad_input_is_refused():
    gradients = torch.arange(6.0).reshape(3, 2)
    for function in (regression_coefficient, lambda g, c: control_variate(g, c, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"control: must be \[n, ...\] as the gradients"):
            function(gradients, gradients[:, :1])
        with pytest.raises(ValueError, match="gradients: must be finite"):
            function(gradients / 0, gradients)
        with pytest.raises(ValueError, match="control: must be finite"):
            function(gradients, gradients + math.nan)
    with pytest.raises(ValueError, match="gradients: needs at least two"):
        regression_coefficient(gradients[:1], gradients[:1])
    for bad in (math.nan, math.inf, torch.tensor(math.nan), torch.tensor([0.0, math.inf])):
        with pytest.raises(ValueError, match="expectation: must be finite"):
            control_variate(gradients, gradients, bad, 1.0)
        with pytest.raises(ValueError, match="coefficient: must be finite"):
            control_variate(gradients, gradients, 0.0, bad)
    for bad in (torch.ones(3, 1), torch.ones(4, 3, 2), torch.ones(3), torch.ones(1, 2)):
        with pytest.raises(ValueError, match=r"expectation: must broadcast to \(2,\), has shape"):
            control_variate(gradients, gradients, bad, 1.0)
        with pytest.raises(ValueError, match=r"coefficient: must broadcast to \(2,\), has shape"):
            control_variate(gradients, gradients, 0.0, bad)
    assert control_variate(gradients[:0], gradients[:0], 0.0, 1.0).shape == (0, 2)
