"""The interface that all variants share, and what each of them adds."""

import copy
import math

import pytest
import scipy.stats
import torch
from torch.distributions import Categorical, kl_divergence

from gradbook.gumbel import gumbel_noise, gumbel_softmax
from gradbook.quantizer_variants import (
    GumbelCodebook,
    Identity,
    ResidualCodebook,
    RotatedCodebook,
    ScalarQuantizer,
    normal_codebook,
)
from gradbook.quantizers import EmaCodebook
from gradbook.rotation import rotate
from gradbook.scalar_quantization import finite_scalar_quantize, scalar_indices

D = 4
# As rare as 4.5 standard errors.
RARE = 7e-6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float32)


def gumbel(codes=5, temperature=0.7, kl_weight=0.01, seed=3):
    return GumbelCodebook(D, codes, temperature, kl_weight, generator(seed))


VARIANTS = {
    "identity": (Identity, 1),
    "rotated": (lambda: RotatedCodebook(normal(6, D)), 6),
    "scalar": (lambda: ScalarQuantizer(D, (4, 3), generator()), 12),
    "residual": (lambda: ResidualCodebook([normal(6, D), normal(3, D)]), 18),
    "gumbel": (gumbel, 5),
}
CODED = sorted(VARIANTS.keys() - {"identity"})


def variant(name):
    return VARIANTS[name][0]()


# The interface


@pytest.mark.parametrize("name", VARIANTS)
def test_values_loss_and_indices(name):
    quantizer, z = variant(name), normal(20, D, seed=1).requires_grad_()
    assert quantizer.codes == VARIANTS[name][1]
    values, loss, indices = quantizer(z)
    assert values.shape == z.shape
    assert values.dtype == torch.float32
    assert loss.shape == ()
    assert indices.dtype == torch.int64
    assert indices.shape == ((20, 2) if name == "residual" else (20,))
    (slope,) = torch.autograd.grad(values.sum(), z)
    assert (slope.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("training", [True, False])
def test_decoding_gives_the_values_back(name, training):
    quantizer = variant(name).train(training)
    values, _, indices = quantizer(normal(20, D, seed=1))
    torch.testing.assert_close(quantizer.decode(indices), values, rtol=1e-6, atol=1e-6)
    grid = indices.unflatten(0, (4, 5))
    torch.testing.assert_close(quantizer.decode(grid), values.unflatten(0, (4, 5)))


@pytest.mark.parametrize("name", VARIANTS)
def test_updates_change_the_averages_alone(name):
    quantizer, z = variant(name), normal(20, D, seed=1)
    parameters = copy.deepcopy(list(quantizer.parameters()))
    buffers = [buffer.clone() for buffer in quantizer.buffers()]
    quantizer.update(z, quantizer(z).indices, generator())
    for before, after in zip(parameters, quantizer.parameters(), strict=True):
        assert torch.equal(before, after)
    moved = [not torch.equal(a, b) for a, b in zip(buffers, quantizer.buffers(), strict=True)]
    assert any(moved) == (name in ("rotated", "residual"))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_empty_batch_is_empty_and_has_no_loss(name):
    quantizer = variant(name)
    values, loss, indices = quantizer(torch.empty(0, D, dtype=torch.float32))
    assert values.shape == (0, D)
    assert len(indices) == 0
    assert loss.item() == 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "z",
    [
        torch.ones(D),
        torch.ones(2, D, dtype=torch.int64),
        torch.full((2, D), math.nan),
        torch.full((2, D), math.inf),
    ],
)
def test_bad_vectors(name, z):
    with pytest.raises(ValueError, match="^z: "):
        variant(name)(z)


@pytest.mark.parametrize("name", CODED)
def test_vectors_of_another_size(name):
    with pytest.raises(ValueError, match="^(z|codebook): "):
        variant(name)(torch.ones(2, D + 1))


@pytest.mark.parametrize("name", CODED)
def test_bad_indices(name):
    quantizer = variant(name)
    good = quantizer(normal(3, D)).indices
    for bad in (good + quantizer.codes, good - quantizer.codes, good.float()):
        with pytest.raises(ValueError, match="^indices: "):
            quantizer.decode(bad)


@pytest.mark.parametrize("name", ["scalar", "gumbel"])
def test_weights_depend_on_the_generator_alone(name):
    first = variant(name).state_dict()
    state = torch.random.get_rng_state()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            second = variant(name).state_dict()
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(state, torch.random.get_rng_state())
    for key, value in first.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, second[key])


# No quantization


def test_identity_passes_everything_on():
    z = normal(5, D).requires_grad_()
    values, loss, indices = Identity()(z)
    assert torch.equal(values, z)
    (slope,) = torch.autograd.grad(values, z, normal(5, D, seed=1))
    assert torch.equal(slope, normal(5, D, seed=1))
    assert loss == 0
    assert not indices.any()
    with pytest.raises(NotImplementedError):
        Identity().decode(indices)


# Rotated gradients


def test_rotated_codebook_differs_from_the_plain_one_in_the_gradient():
    z, g = normal(30, D, seed=1).requires_grad_(), normal(30, D, seed=2)
    ours, plain = RotatedCodebook(normal(6, D)), EmaCodebook(normal(6, D))
    for _ in range(3):
        found, expected = ours(z), plain(z)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.loss, expected.loss)
        turned = torch.autograd.grad(rotate(z, expected.values.detach()), z, g)[0]
        slope = torch.autograd.grad(found.values, z, g)[0]
        torch.testing.assert_close(slope, turned, rtol=1e-6, atol=1e-6)
        assert (slope - g).abs().mean() > 0.1
        for quantizer in (ours, plain):
            quantizer.update(z, found.indices, generator())


# Finite scalars


def test_scalar_quantizer_rounds_between_its_maps():
    quantizer, z = ScalarQuantizer(D, (4, 3), generator()), normal(30, D, seed=1)
    down, up = quantizer.down, quantizer.up
    low = finite_scalar_quantize(z @ down.weight.T + down.bias, (4, 3))
    values, loss, indices = quantizer(z)
    torch.testing.assert_close(values, low @ up.weight.T + up.bias, rtol=1e-6, atol=1e-6)
    assert torch.equal(indices, scalar_indices(low, (4, 3)))
    assert loss == 0
    values.sum().backward()
    assert all((p.grad.abs() > 0).all() for p in quantizer.parameters())


@pytest.mark.parametrize(("dim", "levels", "name"), [(0, (3,), "dim"), (2, (1,), "levels")])
def test_bad_scalar_quantizers(dim, levels, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        ScalarQuantizer(dim, levels, generator())


# Gumbel noise


def test_training_draws_codes_from_the_softmax():
    quantizer, n = gumbel(), 50_000
    z = 2 * normal(1, D, seed=4)
    indices = quantizer(z.expand(n, D)).indices
    expected = n * quantizer.logits(z).detach().double().softmax(-1)[0]
    counts = torch.bincount(indices, minlength=5)
    expected *= n / expected.sum()
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > RARE


def test_evaluation_takes_the_most_probable_code():
    quantizer, z = gumbel().eval(), normal(200, D, seed=4)
    first, second = quantizer(z), quantizer(z)
    assert torch.equal(first.indices, quantizer.logits(z).argmax(-1))
    assert torch.equal(first.values, second.values)
    assert not torch.equal(quantizer.train()(z).indices, first.indices)


def test_the_gradient_is_that_of_the_concrete_draw():
    quantizer, z, g = gumbel(), normal(30, D, seed=4).requires_grad_(), normal(30, D, seed=5)
    noise = gumbel_noise((30, 5), copy.deepcopy(quantizer).generator, torch.float32, "cpu")
    values, _, indices = quantizer(z)
    logits = quantizer.logits(z)
    assert torch.equal(indices, (logits + noise).argmax(-1))
    soft = gumbel_softmax(logits, 0.7, noise)
    found = torch.autograd.grad(values, [z, quantizer.logits.weight], g)
    expected = torch.autograd.grad(soft @ quantizer.codebook, [z, quantizer.logits.weight], g)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (codes,) = torch.autograd.grad(quantizer(z).values.sum(), quantizer.codebook)
    assert codes.sum().item() == pytest.approx(30 * D, rel=1e-5)


def test_the_noise_is_reproducible_and_a_copy_goes_its_own_way():
    z = normal(100, D, seed=4)
    quantizer, twin = gumbel(), gumbel()
    first = quantizer(z).indices
    assert torch.equal(first, twin(z).indices)
    copied = copy.deepcopy(quantizer)
    second = quantizer(z).indices
    assert torch.equal(second, copied(z).indices)
    assert not torch.equal(first, second)


def test_the_loss_is_the_divergence_from_uniform():
    quantizer, z = gumbel(), normal(30, D, seed=4)
    q = Categorical(logits=quantizer.logits(z).detach())
    expected = 0.01 * kl_divergence(q, Categorical(torch.ones(5))).mean()
    torch.testing.assert_close(quantizer(z).loss.detach(), expected, rtol=1e-4, atol=0)
    logits = quantizer.logits(z)
    taming = 0.01 * (logits.softmax(1) * (logits.softmax(1) * 5 + 1e-10).log()).sum(1).mean()
    torch.testing.assert_close(quantizer(z).loss, taming, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        quantizer.logits.weight.zero_()
    assert quantizer(z).loss.item() == pytest.approx(0, abs=1e-8)


def test_a_certain_code_costs_the_logarithm_of_the_codes():
    quantizer = gumbel(kl_weight=1.0)
    with torch.no_grad():
        quantizer.logits.bias[2] = 1e4
    quantized = quantizer(normal(10, D))
    assert quantized.loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert (quantized.indices == 2).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 0),
        ("codes", 0),
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("kl_weight", -1.0),
        ("kl_weight", math.nan),
    ],
)
def test_bad_gumbel_codebooks(name, value):
    arguments = {"dim": 2, "codes": 3, "temperature": 1.0, "kl_weight": 0.0, name: value}
    with pytest.raises(ValueError, match=f"^{name}: "):
        GumbelCodebook(**arguments, generator=generator())


def test_normal_codes():
    codes = normal_codebook(500, 20, generator())
    assert codes.dtype == torch.float32
    assert scipy.stats.kstest(codes.flatten().numpy(), "norm").pvalue > RARE
    assert torch.equal(codes, normal_codebook(500, 20, generator()))
    for name, sizes in (("codes", (0, 2)), ("dim", (2, 0))):
        with pytest.raises(ValueError, match=f"^{name}: "):
            normal_codebook(*sizes, generator())
