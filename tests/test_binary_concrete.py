"""Bits from logistic noise: the relaxed draw is Gumbel-Softmax's, the hard one has its gradient."""

import math

import pytest
import torch

from gradbook import binary_concrete, gumbel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniforms(*shape, seed=2):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_soft_bits_are_gumbel_softmax_over_two_classes(temperature):
    given = logits(6, 4)
    noise = gumbel.gumbel_noise((6, 4, 2), generator(), torch.float64)
    both = torch.stack([given, torch.zeros_like(given)], -1)
    exact = gumbel.gumbel_softmax(both, temperature, noise)[..., 0]
    u = (noise[..., 0] - noise[..., 1]).sigmoid()
    ours = binary_concrete.soft_bits(given, temperature, u)
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def test_hard_bits_are_ones_with_the_probability_of_their_logits():
    n, given = 40_000, logits(3)
    hard = binary_concrete.hard_bits(given.expand(n, 3), 0.5, uniforms(n, 3))
    assert torch.equal(hard, hard.round())
    p = given.sigmoid()
    assert ((hard.mean(0) - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_a_hard_bit_is_one_where_its_soft_bit_is_above_a_half():
    given, u = logits(50, 4), uniforms(50, 4)
    hard = binary_concrete.hard_bits(given, 0.5, u)
    assert torch.equal(hard == 1, binary_concrete.soft_bits(given, 0.5, u) > 0.5)
    assert torch.equal(hard == 1, u > (-given).sigmoid())


def test_hard_bits_have_the_gradient_of_soft_ones():
    given, u, slope = logits(50, 4).requires_grad_(), uniforms(50, 4), logits(50, 4, seed=5)
    (ours,) = torch.autograd.grad((slope * binary_concrete.hard_bits(given, 0.5, u)).sum(), given)
    y = binary_concrete.soft_bits(given, 0.5, u).detach()
    torch.testing.assert_close(ours, slope * y * (1 - y) / 0.5, rtol=1e-12, atol=1e-12)


def test_noise_at_an_end_makes_a_sure_bit_without_a_gradient():
    given = logits(2).requires_grad_()
    bits = binary_concrete.hard_bits(given, 0.5, torch.tensor([0.0, 1.0]).double())
    assert torch.equal(bits.detach(), torch.tensor([0.0, 1.0]).double())
    (slope,) = torch.autograd.grad(bits.sum(), given)
    assert torch.equal(slope, torch.zeros(2).double())


def test_no_logit_has_no_bit():
    assert binary_concrete.hard_bits(logits(0, 4), 0.5, uniforms(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("draw", [binary_concrete.soft_bits, binary_concrete.hard_bits])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((logits(2) * math.nan, 0.5, uniforms(2)), "logits: "),
        ((logits(2) * math.inf, 0.5, uniforms(2)), "logits: "),
        ((logits(2), 0.0, uniforms(2)), "temperature: "),
        ((logits(2), -1.0, uniforms(2)), "temperature: "),
        ((logits(2, 3), 0.5, uniforms(3)), "uniforms: must have"),
        ((logits(2), 0.5, uniforms(2) + 1), "uniforms: must be from"),
        ((logits(2), 0.5, uniforms(2) - 1), "uniforms: must be from"),
    ],
)
def test_bad_input_is_named(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


@pytest.mark.parametrize("draw", [binary_concrete.soft_bits, binary_concrete.hard_bits])
def test_bits_have_the_type_of_the_logits(draw):
    logits, uniforms = torch.zeros(4, dtype=torch.float32), torch.full((4,), 0.25).double()
    assert draw(logits, 0.5, uniforms).dtype == torch.float32
