import itertools
import math

import pytest
import torch

from gradbook.categorical import categorical, exact_gradient
from gradbook.estimators import local_expectation, score_function

F64 = torch.float64
NAN, INF = math.nan, math.inf


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def test_enumeration_gives_the_exact_gradient(problem, every_noise):
    noise, probs = every_noise(problem.logits)
    gradients = local_expectation(problem.f, problem.logits, noise)
    close(torch.tensordot(probs, gradients, 1), exact_gradient(*problem))


def test_one_latent_is_exact_in_every_draw(four_classes, gumbels):
    gradients = local_expectation(*four_classes, gumbels(5, four_classes.logits, 0))
    close(gradients, exact_gradient(*four_classes).expand(5, 4))


def test_latents_that_f_adds_up_are_exact_in_every_draw(coins, gumbels):
    gradients = local_expectation(*coins, gumbels(5, coins.logits, 0))
    close(gradients, exact_gradient(*coins).expand(5, 3, 2))


def test_it_is_the_score_averaged_over_the_latent_of_the_score(mixed):
    """One latent at a time, the other held where the noise puts it."""

    def f(y, _):
        return mixed.f(y, mixed.logits)

    probs = mixed.logits.softmax(-1)
    eye = 50 * torch.eye(3, dtype=F64)
    for a, b in itertools.product(range(3), repeat=2):
        (found,) = local_expectation(f, mixed.logits, torch.stack([eye[a], eye[b]])[None])
        for latent, noise in enumerate(
            [torch.stack([eye, eye[b].expand(3, 3)], 1), torch.stack([eye[a].expand(3, 3), eye], 1)]
        ):
            scores = score_function(f, categorical, mixed.logits, noise)
            close(found[latent], probs[latent] @ scores[:, latent])


def test_sampled_means_are_unbiased(mixed, gumbels, z_scores):
    gradients = local_expectation(*mixed, gumbels(40_000, mixed.logits, 21))
    assert z_scores(gradients, exact_gradient(*mixed)) < 4.5


def test_where_f_is_free_of_the_logits_no_coordinate_varies_more(mixed, every_noise):
    def f(y, _):
        return mixed.f(y, mixed.logits)

    noise, probs = every_noise(mixed.logits)
    exact = exact_gradient(f, mixed.logits)
    found = [
        local_expectation(f, mixed.logits, noise),
        score_function(f, categorical, mixed.logits, noise),
    ]
    ours, score = (torch.tensordot(probs, (g - exact).square(), 1) for g in found)
    assert (ours < score).all()


def test_latents_may_have_several_axes(gumbels):
    logits = torch.linspace(-1, 1, 12, dtype=F64).reshape(2, 2, 3)

    def f(y, logits):
        return (y * torch.arange(12.0, dtype=F64).reshape(2, 2, 3)).sum().square() / 50

    def flat(y, logits):
        return f(y.reshape(2, 2, 3), logits)

    noise = gumbels(4, logits, 1)
    found = local_expectation(f, logits, noise)
    want = local_expectation(flat, logits.reshape(4, 3), noise.reshape(4, 4, 3))
    close(found, want.reshape(4, 2, 2, 3))


def test_an_impossible_class_changes_nothing_even_where_f_is_infinite(gumbels):
    values = torch.tensor([1.0, INF, -2.0], dtype=F64)
    logits = torch.tensor([0.3, -INF, 0.8], dtype=F64)
    noise = gumbels(4, logits, 2)
    found = local_expectation(lambda y, _: values[y.argmax()[None]][0], logits, noise)
    kept = [0, 2]
    want = exact_gradient(lambda y, _: y @ values[kept], logits[kept])
    close(found[:, kept], want.expand(4, 2))
    assert (found[:, 1] == 0).all()


def test_no_draws_give_no_gradients(mixed):
    empty = local_expectation(*mixed, torch.zeros(0, 2, 3, dtype=F64))
    assert (empty.shape, empty.dtype) == ((0, 2, 3), F64)


def test_bad_input_is_refused(mixed, gumbels):
    f, logits = mixed
    noise = gumbels(3, logits, 0)
    with pytest.raises(ValueError, match="noise: must have shape"):
        local_expectation(f, logits, noise[..., :2])
    with pytest.raises(ValueError, match="noise: must be finite"):
        local_expectation(f, logits, noise + NAN)
    with pytest.raises(ValueError, match="logits: must"):
        local_expectation(f, logits + NAN, noise)
    with pytest.raises(ValueError, match="f: must return a scalar"):
        local_expectation(lambda y, _: y[0], logits, noise)


def test_the_result_has_no_graph(mixed, gumbels):
    logits = mixed.logits.clone().requires_grad_()
    assert not local_expectation(mixed.f, logits, gumbels(3, logits, 0)).requires_grad
