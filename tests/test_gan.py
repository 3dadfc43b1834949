"""The adversarial game: its networks, its losses, its penalty, and its value on a finite set."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradbook import gan


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def law(k=5, seed=2):
    return normals(k, seed=seed).softmax(-1)


def players(dimensions=6, latents=3, hidden=4):
    """In float64, with all weights and biases moved."""
    built = gan.build(dimensions, latents, hidden, generator())
    with torch.no_grad():
        for player in built:
            for i, parameter in enumerate(player.double().parameters()):
                parameter += 0.5 * normals(*parameter.shape, seed=10 + i)
    return built


def jensen_shannon(p, q):
    mean = (p + q) / 2
    return sum((torch.xlogy(a, a) - torch.xlogy(a, mean)).sum(-1) for a in (p, q)) / 2


def test_number_of_parameters():
    painter, critic = gan.build(64, 16, 50, generator())
    hidden = 50 * 50 + 50
    assert sum(p.numel() for p in painter.parameters()) == 16 * 50 + 50 + hidden + 50 * 64 + 64
    assert sum(p.numel() for p in critic.parameters()) == 64 * 50 + 50 + hidden + 50 + 1
    for player in (painter, critic):
        assert {p.dtype for p in player.parameters()} == {torch.float32}


def test_initial_weights_are_glorots_and_biases_zero():
    built = gan.build(100, 40, 80, generator())
    for layer, fans in (
        (built.generator.first, 40 + 80),
        (built.generator.out, 80 + 100),
        (built.discriminator.first, 100 + 80),
        (built.discriminator.second, 80 + 80),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.98 * bound < layer.weight.abs().max().item() <= bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    built, again, other = (gan.build(4, 3, 2, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for player in ("generator", "discriminator"):
        weights = [getattr(pair, player).second.weight for pair in (built, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_weights_do_not_depend_on_the_default_type():
    plain = gan.build(4, 3, 2, generator())
    torch.set_default_dtype(torch.float64)
    try:
        other = gan.build(4, 3, 2, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(plain, other, strict=True):
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b)


def layer(weights, x, slope=0.2):
    x = x @ weights.weight.T + weights.bias
    return torch.maximum(x, slope * x)


def test_the_networks_are_two_leaking_hidden_layers():
    painter, critic = players()
    noise, x = normals(7, 3), normals(7, 6, seed=3).sign().add(1).div(2)
    out = layer(painter.out, layer(painter.second, layer(painter.first, noise)), slope=1.0)
    torch.testing.assert_close(painter(noise), out, rtol=1e-12, atol=1e-12)
    said = layer(critic.second, layer(critic.first, torch.where(x == 1, 1.0, -1.0).double()))
    torch.testing.assert_close(gan.features(critic, x), said, rtol=1e-12, atol=1e-12)
    logit = layer(critic.out, said, slope=1.0)[:, 0]
    torch.testing.assert_close(critic(x), logit, rtol=1e-12, atol=1e-12)


def test_the_generators_loss_reaches_all_its_weights_through_hard_bits():
    painter, critic = players()
    noise = torch.rand(20, 6, generator=generator(), dtype=torch.float64)
    fake = gan.hard_bits(painter(normals(20, 3)), 0.5, noise)
    assert torch.equal(fake.detach(), fake.detach().round())
    gan.generator_loss(critic(fake)).backward()
    for parameter in painter.parameters():
        assert (parameter.grad != 0).any()


def test_losses_are_cross_entropies():
    real, fake = normals(7), normals(5, seed=3)
    entropy = functional.binary_cross_entropy_with_logits
    one, zero = torch.ones(7).double(), torch.zeros(5).double()
    exact = entropy(real, one) + entropy(fake, zero)
    torch.testing.assert_close(gan.discriminator_loss(real, fake), exact)
    torch.testing.assert_close(gan.generator_loss(fake), entropy(fake, zero + 1))
    torch.testing.assert_close(gan.saturating_loss(fake), -entropy(fake, zero))


def test_only_the_saturating_loss_is_flat_where_the_discriminator_is_sure():
    for loss, slope in ((gan.generator_loss, -1.0), (gan.saturating_loss, 0.0)):
        logits = torch.full((3,), -40.0).double().requires_grad_()
        (grad,) = torch.autograd.grad(loss(logits), logits)
        torch.testing.assert_close(grad.sum().item(), slope, rtol=0, atol=1e-15)


def test_both_losses_of_the_generator_have_the_same_slope_for_an_undecided_discriminator():
    logits = torch.zeros(3).double().requires_grad_()
    one, other = (
        torch.autograd.grad(loss(logits), logits)[0]
        for loss in (gan.generator_loss, gan.saturating_loss)
    )
    torch.testing.assert_close(one, torch.full((3,), -1 / 6, dtype=torch.float64))
    torch.testing.assert_close(one, other)


def test_losses_of_huge_logits_are_finite():
    huge = torch.tensor([1000.0, -1000.0])
    assert gan.discriminator_loss(huge, huge).item() == pytest.approx(1000)
    assert gan.generator_loss(huge).item() == pytest.approx(500)
    assert gan.saturating_loss(huge).item() == pytest.approx(-500)


def test_penalty_of_a_quadratic_logit():
    a, x = normals(4, 4, seed=3).requires_grad_(), normals(6, 4)
    a = a + a.T
    penalty = gan.gradient_penalty(lambda v: 0.5 * ((v @ a) * v).sum(-1), x)
    torch.testing.assert_close(penalty, (x @ a).square().sum(-1).mean())


def test_penalty_is_that_of_the_slopes_row_by_row_and_so_is_its_gradient():
    _, critic = players()
    x = normals(5, 6)

    def steps(hidden):
        return 0.2 + 0.8 * (hidden > 0).double()

    def by_hand():
        total = 0.0
        for row in x:
            before = critic.first(2 * row - 1)
            after = critic.second(functional.leaky_relu(before, 0.2))
            slope = critic.out.weight[0] * steps(after)
            slope = (slope @ critic.second.weight) * steps(before)
            total = total + (2 * slope @ critic.first.weight).square().sum()
        return total / len(x)

    weights = [critic.first.weight, critic.second.weight, critic.out.weight]
    ours, exact = gan.gradient_penalty(critic, x), by_hand()
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(ours, weights)
    for one, other in zip(grads, torch.autograd.grad(exact, weights), strict=True):
        assert (one != 0).any()
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_penalty_leaves_its_data_alone():
    _, critic = players()
    x = normals(5, 6).requires_grad_()
    penalty = gan.gradient_penalty(critic, x)
    assert torch.autograd.grad(penalty, x, allow_unused=True) == (None,)
    x = normals(5, 6)
    gan.gradient_penalty(critic, x)
    assert not x.requires_grad


counts = st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))


def shares(columns):
    """Two laws from counts; a law without one is uniform."""
    given = torch.tensor(columns, dtype=torch.float64).T
    given = torch.where(given.sum(-1, keepdim=True) > 0, given, 1.0)
    return given[:2] / given[:2].sum(-1, keepdim=True), given[2] / 100


@settings(max_examples=60)
@given(st.lists(counts, min_size=1, max_size=6))
def test_value_of_the_best_discriminator_is_twice_jensen_shannon_less_log_four(columns):
    (p, q), other = shares(columns)
    best = gan.best_discriminator(p, q)
    assert ((best >= 0) & (best <= 1)).all()
    highest = gan.value(p, q, best)
    exact = 2 * jensen_shannon(p, q) - math.log(4)
    torch.testing.assert_close(highest, exact, rtol=0, atol=1e-12)
    assert gan.value(p, q, other) <= highest + 1e-12


def test_best_discriminator_has_no_slope():
    p, q = law(), law(seed=3)
    d = gan.best_discriminator(p, q).requires_grad_()
    torch.testing.assert_close(d.detach(), p / (p + q))
    (slope,) = torch.autograd.grad(gan.value(p, q, d), d)
    torch.testing.assert_close(slope, torch.zeros(5).double(), rtol=0, atol=1e-12)


def test_a_perfect_generator_leaves_one_half():
    p = law()
    best = gan.best_discriminator(p, p)
    assert torch.equal(best, torch.full((5,), 0.5).double())
    assert gan.value(p, p, best).item() == pytest.approx(-math.log(4), abs=1e-14)


def test_value_of_laws_with_zeros():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0]).double()
    q = torch.tensor([0.0, 0.5, 0.5, 0.0]).double()
    best = gan.best_discriminator(p, q)
    assert torch.equal(best, torch.tensor([1.0, 0.5, 0.0, 0.5]).double())
    assert gan.value(p, q, best).item() == pytest.approx(math.log(0.5), abs=1e-14)
    assert gan.value(p, q, 1 - best).item() == -math.inf


def test_value_is_minus_the_mean_of_the_discriminators_loss():
    p, q = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    logits = normals(2)
    loss = gan.discriminator_loss(logits[[0, 1, 1, 1]], logits)
    torch.testing.assert_close(gan.value(p, q, logits.sigmoid()), -loss)


def test_value_of_a_batch_of_laws():
    p, q = torch.stack([law(), law(seed=3)]), torch.stack([law(seed=4), law(seed=5)])
    d = gan.best_discriminator(p, q)
    exact = torch.stack([gan.value(p[i], q[i], d[i]) for i in range(2)])
    torch.testing.assert_close(gan.value(p, q, d), exact)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gan.build(0, 3, 2, generator()), "dimensions: "),
        (lambda: gan.build(4, 0, 2, generator()), "latents: "),
        (lambda: gan.build(4, 3, 0, generator()), "hidden: "),
        (lambda: gan.discriminator_loss(normals(0), normals(2)), "real_logits: "),
        (lambda: gan.discriminator_loss(normals(2), normals(0)), "fake_logits: "),
        (lambda: gan.generator_loss(normals(0)), "fake_logits: "),
        (lambda: gan.saturating_loss(normals(0)), "fake_logits: "),
        (lambda: gan.gradient_penalty(players().discriminator, normals(0, 6)), "x: "),
        (lambda: gan.best_discriminator(law(4), law(5)), "q: must have"),
        (lambda: gan.best_discriminator(law() * 2, law()), "p: must sum"),
        (lambda: gan.best_discriminator(law(), law() / 2), "q: must sum"),
        (lambda: gan.value(torch.tensor([1.5, -0.5]), law(2).float(), law(2)), "p: must not"),
        (lambda: gan.value(law() * math.nan, law(), law()), "p: must not"),
        (lambda: gan.value(law(), law(), law(4)), "d: must have"),
        (lambda: gan.value(law(), law(), 1 + law()), "d: must be from"),
        (lambda: gan.value(law(), law(), law() - 1), "d: must be from"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_losses_keep_their_digits_where_the_discriminator_is_sure():
    """torch's softplus is the identity above 20, which is off by 2e-9 there."""
    logit = torch.tensor([21.0], dtype=torch.float64)
    exact = math.log1p(math.exp(-21.0))
    assert gan.generator_loss(logit).item() == pytest.approx(exact, rel=1e-12, abs=0)
    assert gan.saturating_loss(logit).item() == pytest.approx(-21 - exact, rel=1e-15)
    both = gan.discriminator_loss(logit, -logit)
    assert both.item() == pytest.approx(2 * exact, rel=1e-12, abs=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_refuse_what_is_not_finite(bad):
    for loss in (gan.generator_loss, gan.saturating_loss):
        with pytest.raises(ValueError, match="fake_logits"):
            loss(torch.tensor([bad]))
    with pytest.raises(ValueError, match="real_logits"):
        gan.discriminator_loss(torch.tensor([bad]), torch.zeros(1))
