"""The flow: its inverse, its Jacobian and its mass; on bits, the probability of every cell."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from gradbook import flows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def uniforms(*shape, seed=2):
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def bits(*shape, seed=3):
    return uniforms(*shape, seed=seed).round()


def model(dimensions=5, layers=4, size=0.4):
    """In float64, with all weights moved away from the identity."""
    flow = flows.build(dimensions, 7, layers, generator()).double()
    with torch.no_grad():
        for i, parameter in enumerate(flow.parameters()):
            parameter += size * normals(*parameter.shape, seed=10 + i)
    return flow


def panels(low, high, count, order=12):
    """Gauss-Legendre nodes and weights on equal panels."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(order))
    half = (high - low) / count / 2
    middle = low + half * (2 * torch.arange(count).double() + 1)
    return (middle[:, None] + half * x).flatten(), (half * w).repeat(count)


def square(nodes, weights):
    """The product rule: points [n^2, 2], weights [n^2]."""
    return torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1)


def half_line(bit):
    """Nodes and weights on the side of 0 that belongs to a bit."""
    return panels(0.0, 8.0, 16) if bit else panels(-8.0, 0.0, 16)


def cell(x):
    """Points y of the cell of two bits, and weights of dy."""
    (a, v), (b, w) = (half_line(bit) for bit in x)
    return torch.cartesian_prod(a, b), torch.cartesian_prod(v, w).prod(-1)


def cell_probability(flow, x):
    y, weights = cell(x)
    with torch.no_grad():
        return (weights * flows.log_prob(flow, y).exp()).sum()


def bounds_in_cell(flow, x):
    """Bounds at the dequantized points of a cell, and the weights of uniform noise."""
    y, weights = cell(x)
    u = 2 * torch.special.ndtr(y) - torch.tensor(x).double()
    density = 4 * torch.exp(-0.5 * y.square().sum(-1)) / (2 * math.pi)
    with torch.no_grad():
        given = torch.tensor(x).double().expand(len(y), 2)
        return flows.bits_log_prob_bound(flow, given, u), weights * density


def test_number_of_parameters():
    # even indices: 33 of 65, odd ones: 32
    kept_even = 33 * 10 + 10 + 10 * 64 + 64
    kept_odd = 32 * 10 + 10 + 10 * 66 + 66
    flow = flows.build(65, 10, 3, generator())
    assert sum(p.numel() for p in flow.parameters()) == 2 * kept_even + kept_odd
    assert {p.dtype for p in flow.parameters()} == {torch.float32}


def test_first_weights_are_glorots():
    flow = flows.build(200, 100, 2, generator())
    for coupling in flow.couplings:
        bound = math.sqrt(6 / 200)
        assert 0.99 * bound < coupling.hidden.weight.abs().max().item() <= bound
        for zero in (coupling.hidden.bias, coupling.out.weight, coupling.out.bias):
            assert torch.equal(zero, torch.zeros_like(zero))


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    built, again, other = (flows.build(4, 3, 2, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [flow.couplings[1].hidden.weight for flow in (built, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_do_not_depend_on_the_default_type():
    plain = flows.build(4, 3, 2, generator())
    torch.set_default_dtype(torch.float64)
    try:
        other = flows.build(4, 3, 2, generator())
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_flow_starts_as_the_identity():
    flow, x = flows.build(5, 7, 4, generator()).double(), normals(6, 5)
    z, log_det = flows.to_noise(flow, x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(6).double())
    assert torch.equal(flows.to_data(flow, x), x)
    exact = torch.distributions.Normal(0, 1).log_prob(x).sum(-1)
    torch.testing.assert_close(flows.log_prob(flow, x), exact, rtol=1e-13, atol=1e-13)


def test_at_the_start_all_bits_are_equally_probable_whatever_the_noise():
    flow = flows.build(5, 7, 4, generator()).double()
    bound = flows.bits_log_prob_bound(flow, bits(50, 5), uniforms(50, 5))
    exact = torch.full((50,), -5 * math.log(2), dtype=torch.float64)
    torch.testing.assert_close(bound, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3, 8])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_each_direction_undoes_the_other(dimensions, layers):
    flow, x = model(dimensions, layers), 2 * normals(20, dimensions)
    z, _ = flows.to_noise(flow, x)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(flows.to_data(flow, z), x, rtol=0, atol=1e-10)
    back, _ = flows.to_noise(flow, flows.to_data(flow, x))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dimensions", [2, 3, 8])
def test_log_det_is_that_of_the_jacobian(dimensions):
    flow, x = model(dimensions), normals(6, dimensions)
    _, log_det = flows.to_noise(flow, x)
    assert log_det.abs().mean() > 0.1
    for row, ours in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flows.to_noise(flow, v[None])[0][0], row
        )
        exact = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-11)


def test_two_couplings_change_every_coordinate_and_one_its_half():
    x = normals(4, 5)
    moved = flows.to_noise(model(layers=1), x)[0] != x
    assert torch.equal(moved, torch.tensor([[False, True] * 2 + [False]] * 4))
    assert (flows.to_noise(model(layers=2), x)[0] != x).all()


def test_rows_do_not_see_each_other():
    flow, x = model(), normals(4, 5)
    together = flows.log_prob(flow, x)
    alone = torch.cat([flows.log_prob(flow, row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_one_coupling_scales_by_at_most_its_bound():
    flow, x = model(layers=1), normals(4, 5)
    with torch.no_grad():
        flow.couplings[0].out.weight.zero_()
        # of two changed coordinates: log scales first, then shifts
        flow.couplings[0].out.bias.copy_(torch.tensor([1e6, 1.0, 0.0, 3.0]))
    z, log_det = flows.to_noise(flow, x)
    middle = 2 * math.tanh(0.5)
    torch.testing.assert_close(z[:, 1], x[:, 1] * math.exp(2))
    torch.testing.assert_close(z[:, 3], x[:, 3] * math.exp(middle) + 3)
    torch.testing.assert_close(log_det, torch.full((4,), 2 + middle).double())


def test_the_density_has_mass_one():
    flow = model(2, size=0.3)
    points, weights = square(*panels(-15.0, 15.0, 40))
    with torch.no_grad():
        density = flows.log_prob(flow, points).exp()
    assert (weights * density).sum().item() == pytest.approx(1, abs=1e-12)
    # far from the density that it starts from
    start = torch.exp(-0.5 * points.square().sum(-1)) / (2 * math.pi)
    assert (weights * (density - start).abs()).sum().item() > 0.5


def test_samples_have_the_density():
    """E[f(x)] of draws against a quadrature, for three functions."""
    flow, n = model(2, size=0.3), 40_000
    points, weights = square(*panels(-15.0, 15.0, 40))
    with torch.no_grad():
        weights = weights * flows.log_prob(flow, points).exp()
        draws = flows.to_data(flow, normals(n, 2, seed=4))
    for f in (
        lambda x: x[:, 0].tanh(),
        lambda x: x[:, 1].tanh(),
        lambda x: x.prod(-1).tanh(),
    ):
        stderr = f(draws).std().item() / math.sqrt(n)
        assert abs(f(draws).mean().item() - (weights * f(points)).sum().item()) <= 4.5 * stderr


def test_to_line_is_the_normal_quantile_function():
    v = uniforms(20, 3)
    y, log_det = flows.to_line(v)
    exact = stats.norm.ppf(v.numpy())
    np.testing.assert_allclose(y.numpy(), exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det.numpy(), -stats.norm.logpdf(exact).sum(-1), rtol=1e-12)
    torch.testing.assert_close(flows.to_cube(y), v, rtol=0, atol=1e-14)


def test_log_det_of_to_line_is_that_of_the_jacobian():
    v = uniforms(4, 3)
    _, log_det = flows.to_line(v)
    for row, ours in zip(v, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda u: flows.to_line(u[None])[0][0], row)
        exact = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_dequantized_bits_fill_their_halves():
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]]).double()
    u = torch.tensor([[0.25, 0.25, 0.5, 0.75]]).double()
    exact = torch.tensor([[0.125, 0.625, 0.25, 0.875]]).double()
    assert torch.equal(flows.dequantized(x, u), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_at_an_end_stays_inside(dtype):
    x = torch.tensor([[0, 1, 0, 1]], dtype=dtype)
    last = 1 - torch.finfo(dtype).eps / 2
    u = torch.tensor([[0, 1, 1, last]], dtype=dtype)
    v = flows.dequantized(x, u)
    assert v.dtype == dtype
    assert torch.equal(v, torch.tensor([[1 - last, last, 0.5, last]], dtype=dtype))
    y, log_det = flows.to_line(v)
    assert y.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize("x", list(itertools.product((0, 1), repeat=2)))
def test_the_bound_is_below_the_probability_of_the_cell(x):
    flow = model(2, size=0.1)
    exact = cell_probability(flow, x).item()
    bounds, weights = bounds_in_cell(flow, x)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    # the constant: exp(bound) averages to the probability itself
    assert (weights * bounds.exp()).sum().item() == pytest.approx(exact, rel=1e-7)
    assert (weights * bounds).sum().item() < math.log(exact) - 0.01
    # a single draw may be above
    assert bounds.max().item() > math.log(exact)


def test_probabilities_of_all_bits_sum_to_one():
    flow = model(2, size=0.1)
    probabilities = [cell_probability(flow, x) for x in itertools.product((0, 1), repeat=2)]
    # the quadrature ends at 8, where a mass of 5e-9 is left
    assert sum(probabilities).item() == pytest.approx(1, abs=1e-8)
    assert max(probabilities) > 1.5 * min(probabilities)


def test_sampled_bits_have_the_probability_of_their_cells():
    flow, n = model(2, size=0.1), 40_000
    drawn = flows.bits_sample(flow, normals(n, 2, seed=5))
    assert drawn.dtype == torch.float64
    for x in itertools.product((0, 1), repeat=2):
        p = cell_probability(flow, x).item()
        share = (drawn == torch.tensor(x)).all(-1).double().mean().item()
        assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / n)


def test_gradients_reach_every_weight():
    flow = model()
    flows.bits_log_prob_bound(flow, bits(6, 5), uniforms(6, 5)).sum().backward()
    for parameter in flow.parameters():
        assert (parameter.grad != 0).any()


def test_an_empty_batch_has_an_empty_result():
    flow = model()
    none = torch.zeros(0, 5).double()
    assert flows.log_prob(flow, none).shape == (0,)
    assert flows.to_data(flow, none).shape == (0, 5)
    assert flows.bits_log_prob_bound(flow, none, none).shape == (0,)
    assert flows.bits_sample(flow, none).shape == (0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.build(1, 2, 2, generator()), "dimensions: "),
        (lambda: flows.build(2, 0, 2, generator()), "hidden: "),
        (lambda: flows.build(2, 2, 0, generator()), "layers: "),
        (lambda: flows.to_noise(model(), normals(3, 4)), "x: must be \\[n, 5\\]"),
        (lambda: flows.to_noise(model(), normals(5)), "x: must be \\[n, 5\\]"),
        (lambda: flows.to_data(model(), normals(3, 6)), "z: must be \\[n, 5\\]"),
        (lambda: flows.log_prob(model(), normals(3, 5) * math.nan), "x: must be finite"),
        (lambda: flows.to_data(model(), normals(3, 5) * math.inf), "z: must be finite"),
        (lambda: flows.dequantized(bits(3, 5) + 0.5, uniforms(3, 5)), "x: must be zeros"),
        (lambda: flows.dequantized(bits(3, 5), uniforms(3, 4)), "uniforms: must have"),
        (lambda: flows.dequantized(bits(3, 5), uniforms(3, 5) + 1), "uniforms: must be from"),
        (lambda: flows.dequantized(bits(3, 5), uniforms(3, 5) - 1), "uniforms: must be from"),
        (lambda: flows.to_line(torch.zeros(1, 2)), "v: "),
        (lambda: flows.to_line(torch.ones(1, 2)), "v: "),
        (lambda: flows.bits_log_prob_bound(model(), bits(3, 4), uniforms(3, 4)), "x: must be \\["),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
