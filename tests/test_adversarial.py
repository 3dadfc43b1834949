"""The hinge losses, the weight that balances gradients, and the hinge game's optimum."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import adversarial
from gradbook.divergences import total_variation

SEEDS = st.integers(0, 1000)


def normals(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def law(*shape, seed=2):
    """Some of the outcomes are impossible."""
    kept = (normals(*shape, seed=seed + 1) > -0.5).double()
    kept[..., 0] = 1
    weights = normals(*shape, seed=seed).exp() * kept
    return weights / weights.sum(-1, keepdim=True)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def linear(n=6, hidden=3, pixels=4, seed=0):
    """A decoder's last layer, what comes into it, what should come out, and a linear critic."""
    weight = normals(pixels, hidden, seed=seed).requires_grad_()
    return (
        weight,
        normals(n, hidden, seed=seed + 1),
        normals(n, pixels, seed=seed + 2),
        normals(pixels, seed=seed + 3),
    )


def losses(weight, into, target, critic):
    images = into @ weight.T
    return (images - target).square().mean(), adversarial.generator_loss(images @ critic)


def slope(loss, weight):
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


def test_discriminator_loss_by_hand():
    """Scores 2, 0.5 and -1 of real ones are 0, 0.5 and 2 short; -3 and 1 of fakes, 0 and 2."""
    loss = adversarial.discriminator_hinge(tensor(2, 0.5, -1), tensor(-3, 1))
    assert loss.item() == pytest.approx(0.5 * (2.5 / 3 + 1), rel=1e-15)


def test_generator_loss_by_hand():
    assert adversarial.generator_loss(tensor(-3, 1, 0.5)).item() == pytest.approx(0.5, rel=1e-15)


def test_losses_average_over_images_and_patches():
    real, fake = normals(2, 1, 3, 3), normals(4, 1, 2, 3, seed=3)
    whole = adversarial.discriminator_hinge(real, fake)
    flat = adversarial.discriminator_hinge(real.flatten(), fake.flatten())
    assert whole.shape == ()
    torch.testing.assert_close(whole, flat, rtol=1e-14, atol=0)


def test_only_scores_short_of_the_margin_move_the_discriminator():
    scores = tensor(-2, -0.5, 0.5, 2).requires_grad_()
    loss = adversarial.discriminator_hinge(scores, scores.detach())
    assert torch.equal(slope(loss, scores), tensor(-1, -1, -1, 0) / 8)
    loss = adversarial.discriminator_hinge(scores.detach(), scores)
    assert torch.equal(slope(loss, scores), tensor(0, 1, 1, 1) / 8)
    assert torch.equal(slope(adversarial.generator_loss(scores), scores), -torch.ones(4) / 4)


@given(seed=SEEDS)
def test_weight_of_a_linear_decoder_in_closed_form(seed):
    weight, into, target, critic = linear(seed=seed)
    error = (into @ weight.T - target).detach()
    pull = (2 * error.T @ into / target.numel()).norm()
    push = critic.norm() * into.mean(0).norm()
    exact = 0.8 * pull / (push + 1e-4)
    ours = adversarial.adaptive_weight(*losses(weight, into, target, critic), weight)
    torch.testing.assert_close(ours, exact.clamp(max=8000), rtol=1e-12, atol=0)


@given(seed=SEEDS, share=st.floats(0, 3), size=st.floats(-6, 6))
def test_weighted_gradients_are_a_share_of_the_others(seed, share, size):
    """Up to delta: the ratio of what is had to what is wanted is push / (push + delta)."""
    weight, into, target, critic = linear(seed=seed)
    one, two = losses(weight, into, target, critic * 10**size)
    factor = adversarial.adaptive_weight(one, two, weight, share=share, most=1e12)
    pull, push = slope(one, weight).norm(), slope(two, weight).norm()
    short = push / (push + 1e-4)
    torch.testing.assert_close(factor * push, share * pull * short, rtol=1e-12, atol=1e-300)


def test_weight_is_bounded_before_the_share():
    weight, into, target, critic = linear()
    one, two = losses(weight, into, target, critic)
    factor = adversarial.adaptive_weight(one, 1e-12 * two, weight, delta=1e-9, most=50.0)
    assert factor.item() == pytest.approx(0.8 * 50, rel=1e-15)
    factor = adversarial.adaptive_weight(1e5 * one, 0 * two, weight)
    assert factor.item() == pytest.approx(0.8 * 1e4, rel=1e-15)


def test_a_reconstruction_at_its_optimum_has_no_pull():
    weight, into, _, critic = linear()
    one, two = losses(weight, into, (into @ weight.T).detach(), critic)
    assert adversarial.adaptive_weight(one, two, weight).item() == 0


def test_weight_is_a_constant_and_both_losses_can_still_be_differentiated():
    weight, into, target, critic = linear()
    hidden = normals(6, 3, seed=9).requires_grad_()
    one, two = losses(weight, into * hidden.tanh(), target, critic)
    factor = adversarial.adaptive_weight(one, two, weight)
    assert not factor.requires_grad
    assert weight.grad is None
    slopes = [slope(loss, weight) for loss in (one, two)]
    (one + factor * two).backward()
    torch.testing.assert_close(weight.grad, slopes[0] + factor * slopes[1], rtol=1e-12, atol=1e-14)
    assert (hidden.grad != 0).all()


def test_weight_keeps_the_type():
    weight, into, target, critic = (t.detach().float() for t in linear())
    weight.requires_grad_()
    one, two = losses(weight, into, target, critic)
    assert adversarial.adaptive_weight(one, two, weight).dtype == torch.float32


def test_norm_of_a_gradient():
    weight, into, target, critic = linear()
    one, _ = losses(weight, into, target, critic)
    norm = adversarial.gradient_norm(one, weight)
    assert norm.item() == pytest.approx(slope(one, weight).square().sum().sqrt().item(), rel=1e-14)
    assert not norm.requires_grad
    assert norm.shape == ()


def test_balance_of_norms():
    norms = tensor(3)[0], tensor(0.5)[0]
    assert adversarial.balance(*norms).item() == pytest.approx(0.8 * 3 / 0.5001, rel=1e-15)
    other = adversarial.balance(*norms, delta=0.25, most=3.0, share=0.5)
    assert other.item() == pytest.approx(1.5, rel=1e-15)


def test_a_critic_without_a_push_gets_the_published_bound():
    assert adversarial.balance(tensor(1e5)[0], tensor(0)[0]).item() == pytest.approx(8e3, rel=1e-15)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_best_scores_are_the_best_of_a_grid(seed):
    p, q = law(3, seed=seed), law(3, seed=seed + 500)
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64).tolist()
    scores = tensor(*itertools.product(grid, repeat=3))
    values = adversarial.expected_hinge(p.expand_as(scores), q.expand_as(scores), scores)
    best = adversarial.expected_hinge(p, q, adversarial.best_scores(p, q))
    torch.testing.assert_close(values.min(), best, rtol=1e-14, atol=1e-14)


def test_best_scores_are_unique_where_both_laws_are_possible_and_differ():
    p, q = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.35, 0.45)
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64).tolist()
    scores = tensor(*itertools.product(grid, repeat=3))
    values = adversarial.expected_hinge(p.expand_as(scores), q.expand_as(scores), scores)
    best = values <= values.min() + 1e-12
    assert torch.equal(scores[best], tensor(1, -1, -1)[None])
    assert torch.equal(adversarial.best_scores(p, q), tensor(1, -1, -1))


def test_where_the_laws_agree_all_scores_within_the_margin_are_as_good():
    p = tensor(0.5, 0.5)
    assert torch.equal(adversarial.best_scores(p, p), tensor(0, 0))
    for score in (-1, -0.3, 0, 1):
        value = adversarial.expected_hinge(p, p, tensor(score, -score)).item()
        assert value == pytest.approx(1, rel=1e-15)
    assert adversarial.expected_hinge(p, p, tensor(1.5, 0)).item() > 1.1


@given(seed=SEEDS)
def test_least_hinge_is_one_minus_total_variation(seed):
    p, q = law(4, 6, seed=seed), law(4, 6, seed=seed + 500)
    least = adversarial.expected_hinge(p, q, adversarial.best_scores(p, q))
    torch.testing.assert_close(least, torch.minimum(p, q).sum(-1), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(least, 1 - total_variation(p, q), rtol=1e-13, atol=1e-13)


@given(seed=SEEDS)
def test_generators_loss_is_total_variation_up_to_what_it_cannot_move(seed):
    p, q = law(6, seed=seed), law(6, seed=seed + 500).requires_grad_()
    scores = adversarial.best_scores(p, q).detach()
    loss = adversarial.expected_generator_loss(q, scores)
    twice = 2 * total_variation(p, q)
    torch.testing.assert_close(loss, twice - (p * scores).sum(), rtol=1e-12, atol=1e-13)
    differ = p != q
    ours, exact = (slope(value, q)[differ] for value in (loss, twice))
    assert torch.equal(ours, exact)


def test_expectations_are_those_of_the_estimators():
    """A sample with the frequencies of the laws."""
    scores = tensor(1.5, -0.2, 0.4)
    real, fake = torch.tensor([3, 1, 4]), torch.tensor([1, 2, 2])
    p, q = (count.double() / count.sum() for count in (real, fake))
    seen = scores.repeat_interleave(real), scores.repeat_interleave(fake)
    loss = adversarial.discriminator_hinge(*seen)
    torch.testing.assert_close(adversarial.expected_hinge(p, q, scores), loss)
    loss = adversarial.generator_loss(seen[1])
    torch.testing.assert_close(adversarial.expected_generator_loss(q, scores), loss)


def test_no_laws_have_no_values():
    none = torch.empty(0, 3).double()
    assert adversarial.best_scores(none, none).shape == (0, 3)
    assert adversarial.expected_hinge(none, none, none).shape == (0,)
    assert adversarial.expected_generator_loss(none, none).shape == (0,)


def weighed(change):
    """The call with one of its four parts changed."""

    def call():
        weight, into, target, critic = linear()
        one, two = losses(weight, into, target, critic)
        parts = {"reconstruction": one, "adversarial": two, "last_weight": weight}
        adversarial.adaptive_weight(**{**parts, **change(one, two, weight)})

    return call


def without_graph():
    with torch.no_grad():
        weighed(lambda *_: {})()


HALF = tensor(0.5, 0.5)
NAN = float("nan")
BAD = [
    (weighed(lambda a, b, w: {"adversarial": b.detach()}), "adversarial: has no gradient"),
    (weighed(lambda a, b, w: {"reconstruction": a.detach()}), "reconstruction: has no gradient"),
    (weighed(lambda a, b, w: {"last_weight": w.detach()}), "reconstruction: has no gradient"),
    (
        weighed(lambda a, b, w: {"last_weight": w.clone()}),
        "reconstruction: has no gradient",
    ),
    (
        weighed(lambda a, b, w: {"adversarial": normals(2).requires_grad_().sum()}),
        "adversarial: has no gradient",
    ),
    (without_graph, "reconstruction: has no gradient"),
    (weighed(lambda a, b, w: {"reconstruction": a[None]}), "reconstruction: must be a scalar"),
    (weighed(lambda a, b, w: {"adversarial": b[None]}), "adversarial: must be a scalar"),
    (weighed(lambda a, b, w: {"reconstruction": a * NAN}), "reconstruction: must be finite"),
    (weighed(lambda a, b, w: {"adversarial": b / 0}), "adversarial: must be finite"),
    (weighed(lambda a, b, w: {"adversarial": (b - b).sqrt()}), "adversarial: its gradient"),
    (weighed(lambda *_: {"share": -0.1}), "share: "),
    (weighed(lambda *_: {"share": NAN}), "share: "),
    (weighed(lambda *_: {"delta": 0.0}), "delta: "),
    (weighed(lambda *_: {"most": 0.0}), "most: "),
    (weighed(lambda *_: {"most": math.inf}), "most: "),
    (lambda: adversarial.gradient_norm(tensor(1)[0], tensor(1)), "loss: has no gradient"),
    (lambda: adversarial.balance(tensor(-1)[0], tensor(1)[0]), "reconstruction: must not be neg"),
    (lambda: adversarial.balance(tensor(1)[0], tensor(-1)[0]), "adversarial: must not be neg"),
    (lambda: adversarial.balance(tensor(NAN)[0], tensor(1)[0]), "reconstruction: must be finite"),
    (lambda: adversarial.discriminator_hinge(tensor(), HALF), "real: must not be empty"),
    (lambda: adversarial.discriminator_hinge(HALF, tensor()), "fake: must not be empty"),
    (lambda: adversarial.discriminator_hinge(HALF * NAN, HALF), "real: must be finite"),
    (lambda: adversarial.generator_loss(torch.empty(2, 0)), "fake: must not be empty"),
    (lambda: adversarial.generator_loss(HALF / 0), "fake: must be finite"),
    (lambda: adversarial.best_scores(2 * HALF, HALF), "p: must sum to 1"),
    (lambda: adversarial.best_scores(HALF, tensor(1.5, -0.5)), "q: must not be negative"),
    (lambda: adversarial.best_scores(HALF, tensor(1)), "q: must have one shape"),
    (lambda: adversarial.best_scores(torch.tensor([1, 0]), HALF), "p: must be probabilities"),
    (lambda: adversarial.best_scores(HALF * NAN, HALF), "p: "),
    (lambda: adversarial.expected_hinge(HALF, HALF, tensor(1)), "scores: must have the shape"),
    (lambda: adversarial.expected_hinge(HALF, HALF, HALF / 0), "scores: must be finite"),
    (lambda: adversarial.expected_generator_loss(HALF, tensor(1)), "scores: must have the shape"),
    (lambda: adversarial.expected_generator_loss(2 * HALF, HALF), "q: must sum to 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
