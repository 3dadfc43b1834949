"""The nearest code: against differences in float64, by symmetries, on ties, and off the origin."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.nearest import nearest_code, plain_nearest_code, squared_distances

LOOKUPS = [nearest_code, plain_nearest_code]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def integers(*shape, low=-4, high=5, seed=0, dtype=torch.float32):
    return torch.randint(low, high, shape, generator=generator(seed)).to(dtype)


def by_differences(z, codebook):
    """The first of the smallest distances, one pair of rows at a time."""
    picks = []
    for row in z.double():
        distances = [((row - code) ** 2).sum().item() for code in codebook.double()]
        picks.append(distances.index(min(distances)))
    return torch.tensor(picks, dtype=torch.int64)


def far_away(offset, scale, seed=3):
    """20 000 vectors and 512 codes of length 64, float32.

    With this seed no two codes are as near as rounding: in units of the spread, the scores of the
    best two differ by 1e-4 or more, and those of float32 err by 2e-5 at most.
    """
    z, codebook = (normals(n, 64, seed=seed + n, dtype=torch.float32) for n in (20_000, 512))
    z, codebook = z * scale + offset, codebook * scale + offset
    exact = torch.cdist(z.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return z, codebook, exact.argmin(1)


@pytest.mark.parametrize("lookup", LOOKUPS)
@given(n=st.integers(1, 9), k=st.integers(1, 9), d=st.integers(1, 7), seed=st.integers(0, 1000))
def test_lookups_find_the_smallest_difference(lookup, n, k, d, seed):
    z, codebook = normals(n, d, seed=seed), normals(k, d, seed=seed + 1)
    picks = lookup(z, codebook)
    assert picks.dtype == torch.int64
    assert torch.equal(picks, by_differences(z, codebook))


def test_squared_distances_are_those_of_differences():
    z, codebook = normals(6, 3), normals(4, 3, seed=1)
    by_hand = torch.cdist(z, codebook, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    torch.testing.assert_close(squared_distances(z, codebook), by_hand, rtol=1e-13, atol=0.0)


def test_squared_distances_of_float32_vectors_are_those_of_their_float64_copies():
    z, codebook = normals(6, 3).float() + 1e4, normals(4, 3, seed=1).float()
    distances = squared_distances(z, codebook)
    assert distances.dtype == torch.float64
    assert torch.equal(distances, squared_distances(z.double(), codebook.double()))


def test_squared_distances_have_gradients():
    z, codebook = normals(3, 2).requires_grad_(), normals(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (z, codebook))


@pytest.mark.parametrize(
    ("offset", "scale", "plain_wrong"),
    [(0, 1, 0), (10, 1, 0), (100, 1, 100), (10, 1 / 512, 19_000)],
)
def test_centring_is_right_where_the_plain_expansion_is_wrong(offset, scale, plain_wrong):
    z, codebook, exact = far_away(offset, scale)
    assert (nearest_code(z, codebook) != exact).sum() == 0
    assert (plain_nearest_code(z, codebook) != exact).sum() >= plain_wrong


def test_the_plain_expansion_is_right_near_the_origin():
    z, codebook, exact = far_away(0, 1)
    assert torch.equal(plain_nearest_code(z, codebook), exact)


def test_each_coordinate_has_its_own_centre():
    offsets = torch.tensor([0.0, 1e3, -1e4, 30.0])
    z = normals(500, 4, dtype=torch.float32) + offsets
    codebook = normals(20, 4, seed=1, dtype=torch.float32) + offsets
    assert torch.equal(nearest_code(z, codebook), squared_distances(z, codebook).argmin(1))
    narrow = torch.tensor([1.0, 0.01, 0.1, 1e-4])
    z, codebook = (z - offsets) * narrow + 1, (codebook - offsets) * narrow + 1
    assert torch.equal(nearest_code(z, codebook), squared_distances(z, codebook).argmin(1))


def test_a_code_that_is_far_from_all_harms_no_lookup():
    z, codebook = normals(300, 8, dtype=torch.float32), normals(9, 8, seed=1, dtype=torch.float32)
    z, codebook = z / 512 + 10, codebook / 512 + 10
    codebook[3] = 1e6
    assert torch.equal(nearest_code(z, codebook), squared_distances(z, codebook).argmin(1))


@given(
    log_offset=st.floats(-3, 6),
    log_gap=st.floats(-3, 6),
    n=st.integers(1, 20),
    k=st.integers(1, 20),
    d=st.integers(1, 16),
    seed=st.integers(0, 1000),
)
def test_the_winner_is_near_the_smallest_distance_whatever_the_offset(
    log_offset, log_gap, n, k, d, seed
):
    """The bound of the docstring: units of rounding times the larger of spread and distance squared."""
    z = normals(n, d, seed=seed, dtype=torch.float32) + 10**log_offset
    codebook = normals(k, d, seed=seed + 1, dtype=torch.float32) + 10**log_offset + 10**log_gap
    distances = squared_distances(z, codebook)
    chosen = distances.gather(1, nearest_code(z, codebook)[:, None])[:, 0]
    smallest = distances.amin(1)
    spread = (z.amax(0) - z.amin(0)).double().square().sum()
    assert (chosen - smallest <= 8 * d * 2.0**-24 * (spread + smallest)).all()


@given(
    n=st.integers(1, 30),
    k=st.integers(1, 40),
    d=st.integers(1, 5),
    grid=st.integers(-3, 3),
    seed=st.integers(0, 1000),
)
def test_exact_ties_on_a_grid_go_to_the_lowest_index(n, k, d, grid, seed):
    z, codebook = integers(n, d, seed=seed), integers(k, d, seed=seed + 1)
    z, codebook = z * 2.0**grid, codebook * 2.0**grid
    assert torch.equal(nearest_code(z, codebook), by_differences(z, codebook))


@pytest.mark.parametrize("seed", range(20))
def test_codes_on_both_sides_of_a_vector_tie_though_the_mean_is_off_the_grid(seed):
    """The shift must not round what lies on the grid."""
    z, codes = integers(7, 3, seed=seed), integers(9, 3, seed=seed + 1000)
    codebook = torch.cat([codes, 2 * z[:1] - codes])
    assert torch.equal(nearest_code(z, codebook), by_differences(z, codebook))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [7, 33, 200, 513])
def test_equal_codes_give_the_lowest_index(dtype, k):
    z, codes = normals(1500, 19, dtype=dtype), normals(k, 19, seed=1, dtype=dtype)
    picks = nearest_code(z, codes)
    assert torch.equal(nearest_code(z, torch.cat((codes, codes.flip(0), codes))), picks)
    doubled = codes.repeat_interleave(2, 0)
    assert torch.equal(nearest_code(z, doubled), 2 * picks)


def test_equal_codes_stand_for_one_even_if_a_product_tells_them_apart(monkeypatch):
    """What a library may do to the last columns, done here to all: scores rise a little with them."""
    addmm = torch.addmm

    def uneven(offset, rows, columns, out):
        return addmm(offset, rows, columns, out=out).add_(1e-6 * torch.arange(columns.shape[1]))

    z, codes = integers(50, 4), integers(6, 4, seed=1).unique(dim=0)
    expected = by_differences(z, codes)
    monkeypatch.setattr(torch, "addmm", uneven)
    twice = torch.cat((codes, codes))
    # A tie of different codes is the product's to break; only equal codes are ours.
    assert (nearest_code(z, twice) < len(codes)).all()
    single = (squared_distances(z, codes) == squared_distances(z, codes).amin(1, True)).sum(1) == 1
    assert single.any()
    assert torch.equal(nearest_code(z, twice)[single], expected[single])


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 2048, 3000])
def test_every_block_of_rows_is_searched(n):
    z, codebook = normals(n, 3), normals(10, 3, seed=1)
    assert torch.equal(nearest_code(z, codebook), squared_distances(z, codebook).argmin(1))


@given(exponent=st.integers(-110, 110))
def test_units_do_not_matter(exponent):
    """Squares of 2^-110 or 2^110 are no float32 numbers."""
    z, codebook = normals(40, 5, dtype=torch.float32), normals(7, 5, seed=1, dtype=torch.float32)
    scale = 2.0**exponent
    assert torch.equal(nearest_code(z * scale, codebook * scale), nearest_code(z, codebook))


@given(exponent=st.integers(-1000, 1000))
def test_units_do_not_matter_in_float64(exponent):
    z, codebook = normals(40, 5), normals(7, 5, seed=1)
    scale = 2.0**exponent
    assert torch.equal(nearest_code(z * scale, codebook * scale), nearest_code(z, codebook))


def test_rotations_and_shifts_do_not_matter():
    z, codebook = normals(200, 4), normals(12, 4, seed=1)
    rotation, _ = torch.linalg.qr(normals(4, 4, seed=2))
    picks = nearest_code(z, codebook)
    assert torch.equal(nearest_code(z @ rotation + 50, codebook @ rotation + 50), picks)
    order = torch.randperm(12, generator=generator())
    assert torch.equal(order[nearest_code(z, codebook[order])], picks)


def test_codes_are_their_own_nearest():
    codebook = normals(100, 6, dtype=torch.float32) / 512 + 10
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(100))


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_one_code_is_always_nearest(lookup):
    assert lookup(normals(5, 3), normals(1, 3)).tolist() == [0] * 5
    assert lookup(torch.zeros(2, 3), torch.zeros(1, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e30, 1e-40])
def test_vectors_that_do_not_vary_are_legal(value):
    z = torch.full((5, 2), value)
    assert nearest_code(z, torch.full((3, 2), value)).tolist() == [0] * 5
    codebook = torch.stack((z[0] + 1, z[0], z[0] - 1))
    first = 0 if abs(value) > 1 else 1
    assert nearest_code(z, codebook).tolist() == [first] * 5


def test_columns_with_gaps_and_orders_of_memory_do_not_matter():
    z, codebook = normals(4, 30, 2)[..., 0], normals(4, 9, seed=1)
    picks = nearest_code(z.T, codebook.T)
    assert torch.equal(picks, squared_distances(z.T, codebook.T).argmin(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype):
    z, codebook = (normals(n, 8, seed=n).to(dtype) for n in (400, 30))
    picks = nearest_code(z, codebook)
    assert torch.equal(picks, nearest_code(z.float(), codebook.float()))
    assert torch.equal(picks, squared_distances(z, codebook).argmin(1))


def test_a_large_spread_in_float16_is_no_overflow():
    z = torch.tensor([[-6e4], [6e4]], dtype=torch.float16)
    assert nearest_code(z, z).tolist() == [0, 1]


def test_autocast_does_not_lower_the_precision():
    z, codebook, exact = far_away(10, 1 / 512)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(z, codebook), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defaults_of_the_caller_do_not_matter(dtype):
    z, codebook = normals(50, 3).to(dtype) * 1e-30, normals(7, 3, seed=1).to(dtype) * 1e-30
    picks = nearest_code(z, codebook)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            assert torch.equal(nearest_code(z, codebook), picks)
            assert nearest_code(z[:0], codebook).device.type == "cpu"
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_no_gradient_flows_and_no_argument_changes(lookup):
    z, codebook = normals(5, 3).requires_grad_(), normals(4, 3, seed=1).requires_grad_()
    copies = z.detach().clone(), codebook.detach().clone()
    assert not lookup(z, codebook).requires_grad
    assert torch.equal(z, copies[0])
    assert torch.equal(codebook, copies[1])


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_lookups_work_inside_gradients_of_functions(lookup):
    z, codebook = normals(5, 3), normals(4, 3, seed=1)

    def loss(z, codebook):
        return (z - codebook[lookup(z, codebook)]).square().sum()

    picks = lookup(z, codebook)
    slope_z, slope_c = torch.func.grad(loss, argnums=(0, 1))(z, codebook)
    torch.testing.assert_close(slope_z, 2 * (z - codebook[picks]), rtol=1e-14, atol=0.0)
    by_code = torch.zeros_like(codebook).index_add(0, picks, 2 * (codebook[picks] - z))
    torch.testing.assert_close(slope_c, by_code, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_no_vectors_give_no_indices(lookup):
    picks = lookup(normals(0, 3), normals(4, 3))
    assert picks.shape == (0,)
    assert picks.dtype == torch.int64
    assert squared_distances(normals(0, 3), normals(4, 3)).shape == (0, 4)


Z, CODES = normals(5, 3), normals(4, 3, seed=1)


def with_value(tensor, value):
    tensor = tensor.clone()
    tensor[2, 1] = value
    return tensor


@pytest.mark.parametrize("lookup", [*LOOKUPS, squared_distances])
@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        (Z[0], CODES, "z: must have two axes"),
        (Z[None], CODES, "z: must have two axes"),
        (Z[:, :0], CODES[:, :0], "z: must have two axes"),
        (Z, CODES[0], "codebook: must have two axes"),
        (Z.long(), CODES.long(), "z: must be of a floating type"),
        (Z, CODES.long(), "codebook: must be of a floating type"),
        (Z.to(torch.complex128), CODES, "z: must be of a floating type"),
        (Z, CODES[:, :2], "codebook: must have rows of length 3"),
        (Z, CODES[:0], "codebook: must have rows of length 3"),
        (Z[:0], CODES[:0], "codebook: must have rows of length 3"),
        (Z, CODES.float(), "codebook: must have the dtype of z"),
        (Z, CODES.to("meta"), "codebook: must have the device of z"),
        (with_value(Z, math.nan), CODES, "z: must be finite"),
        (with_value(Z, math.inf), CODES, "z: must be finite"),
        (with_value(Z, -math.inf), CODES, "z: must be finite"),
        (torch.full_like(Z, math.inf), CODES, "z: must be finite"),
        (Z, with_value(CODES, math.nan), "codebook: must be finite"),
        (Z, with_value(CODES, -math.inf), "codebook: must be finite"),
        (Z[:0], with_value(CODES, math.nan), "codebook: must be finite"),
    ],
)
def test_bad_input_is_refused(lookup, z, codebook, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        lookup(z, codebook)


def test_what_overflows_is_refused():
    large = torch.full((2, 3), 2e38)
    large[0] *= -1
    with pytest.raises(ValueError, match="^z: must be finite, and its spread too"):
        nearest_code(large, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="^codebook: too far from z"):
        nearest_code(torch.full((2, 3), -2e38), torch.full((2, 3), 2e38))


@pytest.mark.parametrize("lookup", [*LOOKUPS, squared_distances])
def test_a_batch_of_codebooks_is_refused(lookup):
    with pytest.raises(ValueError, match="^codebook: must have two axes"):
        torch.func.vmap(lambda codes: lookup(Z, codes))(CODES[None])
    with pytest.raises(ValueError, match="^z: must have two axes"):
        torch.func.vmap(lambda z: lookup(z, CODES))(Z[None])


def test_numbers_below_the_normal_ones_are_told_apart():
    z = torch.tensor([[1e-40, 0.0], [0.0, 0.0]], dtype=torch.float32)
    codebook = torch.tensor([[0.0, 0.0], [1e-40, 0.0]], dtype=torch.float32)
    assert nearest_code(z, codebook).tolist() == [1, 0]
