"""The Ising model on a grid against sums over every picture, and its sampler against its law."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradbook import bits, ising

GRIDS = [(1, 1), (1, 4), (4, 1), (3, 3), (3, 4), (4, 3)]


def pictures(rows, columns):
    return bits.all_bits(rows * columns).double().unflatten(1, (rows, columns))


def weights(model):
    """The exponent of every picture, one bond at a time."""
    s = 2 * pictures(model.rows, model.columns) - 1
    total = model.field * s.sum((1, 2))
    for i in range(model.rows):
        for j in range(model.columns):
            for k, m in ((i + 1, j), (i, j + 1)):
                if k < model.rows and m < model.columns:
                    total = total + model.coupling * s[:, i, j] * s[:, k, m]
    return total


def uniforms(n, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("coupling", "field"), [(0.4, 0.0), (-0.7, 0.3), (1.5, -0.2)])
def test_normalizer_and_probabilities_are_the_sum_over_pictures(grid, coupling, field):
    model = ising.Ising(coupling, field, *grid)
    exact = weights(model)
    log_z = ising.log_partition(model)
    torch.testing.assert_close(log_z, exact.logsumexp(0), rtol=1e-12, atol=1e-12)
    ours = ising.log_prob(model, pictures(*grid))
    torch.testing.assert_close(ours, exact.log_softmax(0), rtol=1e-12, atol=1e-12)
    assert ours.exp().sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("grid", [(3, 3), (3, 4), (2, 5)])
@pytest.mark.parametrize(("coupling", "field"), [(0.4, 0.0), (-0.7, 0.3), (0.0, 0.8)])
def test_entropy_and_energy_are_the_sum_over_pictures(grid, coupling, field):
    model = ising.Ising(coupling, field, *grid)
    exact = weights(model)
    p = exact.softmax(0)
    energy = -(p * exact).sum()
    torch.testing.assert_close(ising.mean_energy(model), energy, rtol=1e-10, atol=1e-12)
    entropy = -(p * exact.log_softmax(0)).sum()
    torch.testing.assert_close(ising.entropy(model), entropy, rtol=1e-12, atol=1e-12)


@given(
    field=st.floats(-3, 3),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
)
@settings(max_examples=25)
def test_without_coupling_the_spins_are_independent(field, rows, columns):
    model = ising.Ising(0.0, field, rows, columns)
    exact = rows * columns * (math.log(2) + math.log(math.cosh(field)))
    assert ising.log_partition(model).item() == pytest.approx(exact, rel=1e-12)


@given(coupling=st.floats(-1.5, 1.5), pixels=st.integers(2, 10))
@settings(max_examples=25)
def test_one_row_or_one_column_is_the_chain(coupling, pixels):
    """The free chain has Z = 2 (2 cosh J)^(n - 1)."""
    exact = math.log(2) + (pixels - 1) * math.log(2 * math.cosh(coupling))
    for grid in ((1, pixels), (pixels, 1)):
        log_z = ising.log_partition(ising.Ising(coupling, 0.0, *grid))
        assert log_z.item() == pytest.approx(exact, rel=1e-12)


def test_the_transposed_grid_has_the_same_normalizer():
    one, other = ising.Ising(0.44, 0.1, 10, 4), ising.Ising(0.44, 0.1, 4, 10)
    torch.testing.assert_close(
        ising.log_partition(one), ising.log_partition(other), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(ising.entropy(one), ising.entropy(other), rtol=1e-10, atol=0)


def test_slopes_of_the_normalizer_are_the_mean_sums():
    coupling, field = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.2))
    model = ising.Ising(coupling, field, 3, 4)
    slopes = torch.autograd.grad(ising.log_partition(model), (coupling, field))
    p = ising.log_prob(model, pictures(3, 4)).exp().detach()
    for slope, total in zip(slopes, ising.statistics(pictures(3, 4)), strict=True):
        torch.testing.assert_close(slope, (p * total).sum(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda j, h: ising.entropy(ising.Ising(j, h, 3, 3)), (coupling, field)
    )


def test_statistics_of_pictures_that_are_known():
    board = (torch.arange(4)[:, None] + torch.arange(5)) % 2
    x = torch.stack([torch.ones(4, 5), torch.zeros(4, 5), board]).double()
    pairs, spins = ising.statistics(x)
    assert pairs.tolist() == [31, 31, -31]
    assert spins.tolist() == [20, -20, 0]


@pytest.mark.parametrize(("coupling", "field"), [(0.4, 0.0), (-0.6, 0.25)])
def test_sampled_pictures_have_the_law(coupling, field):
    """Chi-square over all 512 pictures, those expected fewer than 5 times put together."""
    model, n = ising.Ising(coupling, field, 3, 3), 100_000
    x = ising.sample(model, uniforms(n, 3))
    index = (x.flatten(1) @ 2.0 ** torch.arange(8, -1, -1).double()).long()
    seen = index.bincount(minlength=512).double()
    expected = n * ising.log_prob(model, pictures(3, 3)).exp()
    rare = expected < 5
    seen, expected = (torch.cat([a[~rare], a[rare].sum()[None]]) for a in (seen, expected))
    seen, expected = seen[expected > 0], expected[expected > 0]
    statistic = ((seen - expected).square() / expected).sum().item()
    assert len(seen) > 100
    assert stats.chi2.sf(statistic, len(seen) - 1) > stats.norm.sf(4.5)


def test_sampled_pictures_of_a_larger_grid_have_the_mean_sums():
    model, n = ising.Ising(0.4, 0.05, 8, 8), 20_000
    x = ising.sample(model, uniforms(n, 8))
    values = torch.tensor([0.4, 0.05], dtype=torch.float64, requires_grad=True)
    log_z = ising.log_partition(ising.Ising(values[0], values[1], 8, 8))
    (slopes,) = torch.autograd.grad(log_z, values)
    for total, exact in zip(ising.statistics(x), slopes, strict=True):
        assert abs(total.mean() - exact) <= 4.5 * total.std() / math.sqrt(n)
    surprise = -ising.log_prob(model, x)
    error = (surprise.mean() - ising.entropy(model)).abs()
    assert error <= 4.5 * surprise.std() / math.sqrt(n)


def test_each_row_is_the_quantile_of_its_law_given_the_rows_above():
    """At cut points of the enumerated conditional law, a hair below and a hair above."""
    model = ising.Ising(0.5, 0.1, 2, 2)
    p = ising.log_prob(model, pictures(2, 2)).exp().reshape(4, 4)
    first = p.sum(1).cumsum(0)
    for top in range(4):
        inside = first[top] - p[top].sum() / 2
        cuts = (p[top] / p[top].sum()).cumsum(0)[:3]
        for side in (0, 1):
            shift = (2 * side - 1) * 1e-9
            u = torch.stack([inside.expand(3), cuts + shift], 1)
            drawn = ising.sample(model, u)
            expected = torch.arange(3) + side
            assert torch.equal(drawn[:, 0], pictures(1, 2)[top].expand(3, 2))
            assert torch.equal(drawn[:, 1], pictures(1, 2)[expected, 0])


def test_extreme_noise_draws_possible_pictures():
    """At this coupling all but the two uniform pictures have probability 0 in float64."""
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    x = ising.sample(ising.Ising(500.0, 0.0, 3, 3), torch.cartesian_prod(ends, ends, ends))
    assert torch.equal(x[:4], torch.zeros(4, 3, 3).double())
    assert torch.equal(x[4:], torch.ones(4, 3, 3).double())


def test_numbers_count_as_float64_and_tensors_keep_their_type():
    x = pictures(2, 2).float()
    assert ising.log_prob(ising.Ising(0.4, 0.0, 2, 2), x).dtype == torch.float64
    single = ising.Ising(torch.tensor(0.4), 0.0, 2, 2)
    assert ising.log_prob(single, x.double()).dtype == torch.float32
    assert ising.sample(single, uniforms(3, 2).float()).dtype == torch.float32
    assert ising.sample(single, uniforms(3, 2)).dtype == torch.float64


def test_batches_may_be_empty_or_have_more_axes():
    model = ising.Ising(0.4, 0.0, 2, 3)
    assert ising.sample(model, torch.empty(0, 2)).shape == (0, 2, 3)
    assert ising.log_prob(model, torch.empty(0, 2, 3)).shape == (0,)
    flat = ising.log_prob(model, pictures(2, 3))
    square = ising.log_prob(model, pictures(2, 3).unflatten(0, (8, 8)))
    assert torch.equal(square.flatten(), flat)
    assert torch.equal(ising.log_prob(model, pictures(2, 3)[5]), flat[5])


GOOD = ising.Ising(0.4, 0.0, 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ising.log_partition(GOOD._replace(coupling=math.nan)), "coupling: must be finite"),
        (lambda: ising.entropy(GOOD._replace(field=math.inf)), "field: must be finite"),
        (lambda: ising.entropy(GOOD._replace(coupling=torch.zeros(2))), "coupling: must be a sc"),
        (lambda: ising.entropy(GOOD._replace(field=torch.zeros(1))), "field: must be a scalar"),
        (lambda: ising.log_partition(GOOD._replace(rows=0)), "rows: "),
        (lambda: ising.log_partition(GOOD._replace(columns=0)), "columns: "),
        (lambda: ising.log_partition(GOOD._replace(columns=11)), "columns: "),
        (lambda: ising.log_prob(GOOD, torch.zeros(3, 2)), "x: must be \\["),
        (lambda: ising.log_prob(GOOD, torch.full((2, 3), -1.0)), "x: must be zeros"),
        (lambda: ising.log_prob(GOOD, torch.full((2, 3), math.nan)), "x: must be zeros"),
        (lambda: ising.sample(GOOD, torch.zeros(5, 3)), "uniforms: must be \\["),
        (lambda: ising.sample(GOOD, torch.zeros(2)), "uniforms: must be \\["),
        (lambda: ising.sample(GOOD, torch.ones(5, 2)), "uniforms: must be in"),
        (lambda: ising.sample(GOOD, torch.full((5, 2), -1e-9)), "uniforms: must be in"),
        (lambda: ising.sample(GOOD, torch.full((5, 2), math.nan)), "uniforms: must be in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_an_integer_coupling_does_not_truncate_the_field():
    with pytest.raises(ValueError, match="coupling: must be a scalar of a floating type"):
        ising.log_partition(ising.Ising(torch.tensor(1), 0.5, 2, 2))


def test_the_largest_noise_below_one_draws_a_picture():
    """The last of the cumulated probabilities may fall short of 1."""
    top = torch.full((1, 3), 1 - 2.0**-53, dtype=torch.float64)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        coupling, field = torch.randn(2, generator=generator, dtype=torch.float64)
        x = ising.sample(ising.Ising(coupling, field, 3, 5), top)
        assert ((x == 0) | (x == 1)).all()
