"""Residual quantization: sums of codes, the greedy choice, and the averages of every stage."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import ResidualVQ

from gradbook.codebooks import ema_update
from gradbook.quantizers import EmaCodebook
from gradbook.residual import (
    ResidualCodebook,
    residual_decode,
    residual_quantize,
    residual_start,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def ragged(seed=1):
    """Three stages of 5, 3 and 4 codes in 2 dimensions."""
    return [normal(k, 2, seed=seed + k) for k in (5, 3, 4)]


def errors(z, values):
    return (z - values).square().sum(-1)


# The functions


@pytest.mark.parametrize("codebooks", [normal(3, 6, 2, seed=4), ragged()])
def test_every_stage_takes_the_code_nearest_to_the_rest(codebooks):
    z = normal(40, 2)
    values, indices = residual_quantize(z, codebooks)
    assert indices.dtype == torch.int64
    assert indices.shape == (40, 3)
    for row, choice, value in zip(z, indices.tolist(), values, strict=True):
        total = torch.zeros(2, dtype=F64)
        for codebook, index in zip(codebooks, choice, strict=True):
            assert index == errors(row, total + codebook).argmin()
            total = total + codebook[index]
        torch.testing.assert_close(value, total, rtol=1e-14, atol=1e-14)


@settings(max_examples=25)
@given(depth=st.integers(1, 4), codes=st.integers(1, 5), seed=st.integers(0, 1000))
def test_decoding_gives_the_values_back(depth, codes, seed):
    z, codebooks = normal(9, 3, seed=seed), normal(depth, codes, 3, seed=seed + 1)
    values, indices = residual_quantize(z, codebooks)
    assert torch.equal(residual_decode(indices, codebooks), values)


@settings(max_examples=25)
@given(depth=st.integers(2, 6), codes=st.integers(1, 5), seed=st.integers(0, 1000))
def test_with_a_zero_code_in_each_stage_no_stage_adds_error(depth, codes, seed):
    z, codebooks = normal(20, 2, seed=seed), normal(depth, codes, 2, seed=seed + 1)
    codebooks[:, -1] = 0
    found = [errors(z, residual_quantize(z, codebooks[:d]).values) for d in range(1, depth + 1)]
    for before, after in zip(found, found[1:], strict=False):
        assert (after <= before + 1e-12).all()


def test_without_a_zero_code_a_stage_may_add_error():
    z = torch.tensor([[1.0]])
    far = [torch.tensor([[1.0]]), torch.tensor([[5.0], [-7.0]])]
    assert residual_quantize(z, far).values.tolist() == [[6.0]]


def test_all_tuples_make_all_sums():
    codebooks = ragged()
    tuples = torch.tensor(list(product(range(5), range(3), range(4))))
    sums = residual_decode(tuples, codebooks)
    by_hand = [a + b + c for a, b, c in product(*codebooks)]
    torch.testing.assert_close(sums, torch.stack(by_hand), rtol=1e-14, atol=1e-14)
    assert len(sums.unique(dim=0)) == 60


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_the_greedy_sum_is_never_nearer_than_the_nearest(seed):
    z, codebooks = normal(30, 2, seed=seed), ragged(seed)
    sums = torch.stack([a + b + c for a, b, c in product(*codebooks)])
    best = errors(z[:, None], sums).amin(1)
    greedy = errors(z, residual_quantize(z, codebooks).values)
    assert (greedy >= best - 1e-12).all()


def test_the_greedy_sum_is_not_always_the_nearest():
    z = torch.tensor([[6.0]])
    codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [6.0]]])
    values, indices = residual_quantize(z, codebooks)
    assert values.tolist() == [[10.0]]
    assert indices.tolist() == [[1, 0]]
    assert residual_decode(torch.tensor([[0, 1]]), codebooks).tolist() == z.tolist()


def test_vector_quantize_pytorch_has_the_same_codes():
    z, codebooks = normal(50, 4).float(), normal(3, 8, 4, seed=2).float()
    theirs = ResidualVQ(dim=4, num_quantizers=3, codebook_size=8).eval()
    for layer, codebook in zip(theirs.layers, codebooks, strict=True):
        layer._codebook.embed.data.copy_(codebook[None])
    values, indices, _ = theirs(z[None])
    ours = residual_quantize(z, codebooks)
    assert torch.equal(ours.indices, indices[0])
    torch.testing.assert_close(ours.values, values[0], rtol=0, atol=1e-6)


def test_gradients_reach_the_codes_that_were_chosen_and_not_the_vectors():
    z = normal(7, 2).requires_grad_()
    codebooks = [c.requires_grad_() for c in ragged()]
    values, indices = residual_quantize(z, codebooks)
    weight = normal(7, 2, seed=5)
    slopes = torch.autograd.grad(values, [z, *codebooks], weight, allow_unused=True)
    assert slopes[0] is None
    for s, slope in enumerate(slopes[1:]):
        by_hand = torch.zeros_like(slope).index_add_(0, indices[:, s], weight)
        torch.testing.assert_close(slope, by_hand, rtol=1e-14, atol=1e-14)


def test_an_empty_batch_is_empty():
    values, indices = residual_quantize(torch.empty(0, 2, dtype=F64), ragged())
    assert values.shape == (0, 2)
    assert indices.shape == (0, 3)
    assert residual_decode(indices, ragged()).shape == (0, 2)


@pytest.mark.parametrize(
    "codebooks",
    [
        [],
        torch.ones(0, 2, 2),
        torch.ones(3, 2),
        [torch.ones(3, 2), torch.ones(3, 1)],
        [torch.ones(3, 2), torch.ones(0, 2)],
        [torch.ones(3, 2), torch.full((3, 2), math.nan)],
    ],
)
def test_bad_codebooks(codebooks):
    z, indices = torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.int64)
    for call in (
        lambda: residual_quantize(z, codebooks),
        lambda: residual_decode(indices, codebooks),
        lambda: ResidualCodebook(codebooks),
    ):
        with pytest.raises(ValueError, match="^codebooks: "):
            call()


@pytest.mark.parametrize("z", [torch.ones(2), torch.ones(2, 3), torch.full((2, 2), math.nan)])
def test_bad_vectors(z):
    for call in (residual_quantize, lambda z, c: ResidualCodebook(c)(z)):
        with pytest.raises(ValueError, match="^(z|codebook): "):
            call(z, torch.ones(2, 3, 2))


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([[0, 3, 0]]),
        torch.tensor([[0, -1, 0]]),
        torch.tensor([[0, 0]]),
        torch.tensor(0),
        torch.tensor([[0.0, 0.0, 0.0]]),
    ],
)
def test_bad_indices(indices):
    with pytest.raises(ValueError, match="^indices: "):
        residual_decode(indices, ragged())


# Where the codes start


def test_codes_start_at_different_rows_of_what_is_left():
    z = normal(30, 2)
    first, second = residual_start(z, [5, 7], generator())
    rows = [(z == code).all(1).nonzero().item() for code in first]
    assert len(set(rows)) == 5
    left = z - residual_quantize(z, [first]).values
    gaps = errors(left[:, None], second)
    assert (gaps.amin(0) < 1e-24).all()
    assert torch.equal(residual_start(z, [5, 7], generator())[1], second)
    assert not torch.equal(residual_start(z, [5, 7], generator(1))[0], first)


@pytest.mark.parametrize("sizes", [[], [0], [5, 31]])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="^sizes: "):
        residual_start(normal(30, 2), sizes, generator())


# The module


def module(decay=0.9):
    return ResidualCodebook(ragged(), beta=0.5, decay=decay, eps=1e-5)


def test_the_module_quantizes_and_copies_the_gradient():
    quantizer, z = module(), normal(40, 2).requires_grad_()
    assert quantizer.codes == 60
    values, loss, indices = quantizer(z)
    expected = residual_quantize(z, ragged())
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(quantizer.decode(indices), values)
    g = normal(40, 2, seed=3)
    (found,) = torch.autograd.grad(values, z, g)
    assert torch.equal(found, g)


def test_the_loss_pulls_what_is_left_to_the_code_of_every_stage():
    quantizer, z = module(), normal(40, 2).requires_grad_()
    loss, (slope,) = quantizer(z).loss, torch.autograd.grad(quantizer(z).loss, z)
    value, by_hand, rest = 0.0, torch.zeros_like(z), z.detach()
    for s, codebook in enumerate(ragged()):
        rest = rest - codebook[quantizer(z).indices[:, s]]
        value += 0.5 * rest.square().mean().item()
        by_hand += 0.5 * 2 * rest / rest.numel()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(slope, by_hand, rtol=1e-12, atol=1e-15)


def test_every_stage_follows_what_the_earlier_ones_left():
    quantizer, z = module(), normal(400, 2)
    indices = quantizer(z).indices
    states = [EmaCodebook(codebook).state for codebook in ragged()]
    quantizer.update(z, indices, generator())
    rest = z
    for s, (stage, state) in enumerate(zip(quantizer.stages, states, strict=True)):
        expected = ema_update(state, rest, indices[:, s], 0.9, 1e-5)
        assert (expected.counts > 1).all()
        torch.testing.assert_close(stage.state, expected, rtol=1e-12, atol=1e-14)
        rest = rest - state.codebook[indices[:, s]]


def test_unused_codes_of_every_stage_start_again():
    far = 100 + normal(4, 2)
    quantizer = ResidualCodebook([torch.cat([normal(2, 2, seed=s), far]) for s in (1, 2)])
    z = normal(50, 2, seed=3)
    quantizer.update(z, quantizer(z).indices, generator())
    for codebook in quantizer.codebooks:
        assert (codebook.norm(dim=1) < 20).all()


def test_updates_bring_the_codes_to_the_vectors():
    z = normal(500, 2)
    quantizer, draws = module(), generator()
    before = errors(z, quantizer(z).values).mean()
    for _ in range(30):
        quantizer.update(z, quantizer(z).indices, draws)
    assert errors(z, quantizer(z).values).mean() < before / 2


def test_an_empty_batch_has_no_loss():
    quantized = module()(torch.empty(0, 2, dtype=F64))
    assert quantized.values.shape == (0, 2)
    assert quantized.indices.shape == (0, 3)
    assert quantized.loss == 0


def test_the_module_has_no_parameters_and_keeps_its_state():
    quantizer = module()
    assert not list(quantizer.parameters())
    z = normal(60, 2)
    quantizer.update(z, quantizer(z).indices, generator())
    other = module()
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).values, quantizer(z).values)
