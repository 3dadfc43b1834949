"""f-divergences and their bounds, with the limits at zeros, and the distances of the line."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from torch import distributions

from gradbook import divergences

GENERATORS = {
    "kl": divergences.KL,
    "reverse_kl": divergences.REVERSE_KL,
    "jensen_shannon": divergences.JENSEN_SHANNON,
    "total_variation": divergences.TOTAL_VARIATION,
    "squared_hellinger": divergences.SQUARED_HELLINGER,
    "chi_square": divergences.CHI_SQUARE,
}
DIRECT = {
    "kl": divergences.kl,
    "reverse_kl": lambda p, q: divergences.kl(q, p),
    "jensen_shannon": divergences.js,
    "total_variation": divergences.total_variation,
    "squared_hellinger": lambda p, q: 1 - (p * q).sqrt().sum(-1),
    "chi_square": lambda p, q: (p.square() / q).sum(-1) - 1,
}
every_generator = pytest.mark.parametrize("name", GENERATORS)

# Zeros in p alone, in q alone, in both and in neither.
P = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.4, 0.0, 0.0, 0.1, 0.5], dtype=torch.float64)
AT_ZEROS = {
    "kl": math.inf,
    "reverse_kl": math.inf,
    "jensen_shannon": 0.5
    * (
        0.4 * math.log(2)
        + 0.5 * math.log(2)
        + 0.3 * math.log(0.3 / 0.2)
        + 0.1 * math.log(0.1 / 0.2)
        + 0.2 * math.log(0.2 / 0.35)
        + 0.5 * math.log(0.5 / 0.35)
    ),
    "total_variation": 0.7,
    "squared_hellinger": 1 - math.sqrt(0.03) - math.sqrt(0.1),
    "chi_square": math.inf,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(*shape, seed=0, spread=2.0):
    logits = spread * torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return logits.softmax(-1)


def far_normals():
    """Cells of two normals so far apart that a ratio of theirs rounds many limits."""
    x = torch.linspace(-15, 15, 601, dtype=torch.float64)
    return (-(x + 4).square() / 2).softmax(0), (-(x - 4).square()).softmax(0)


def integers(*low_and_high):
    return st.lists(st.integers(*low_and_high), min_size=4, max_size=4).filter(any)


def normalized(counts):
    counts = torch.tensor(counts, dtype=torch.float64)
    return counts / counts.sum()


@every_generator
def test_f_divergence_is_its_direct_formula(name):
    p, q = vectors(6, 5), vectors(6, 5, seed=1)
    ours = divergences.f_divergence(GENERATORS[name], p, q)
    torch.testing.assert_close(ours, DIRECT[name](p, q), rtol=1e-12, atol=1e-14)


@every_generator
def test_gradients_are_those_of_the_direct_formula(name):
    def slopes(divergence):
        a = torch.randn(3, 5, generator=generator(2), dtype=torch.float64).requires_grad_()
        b = torch.randn(3, 5, generator=generator(3), dtype=torch.float64).requires_grad_()
        return torch.autograd.grad(divergence(a.softmax(-1), b.softmax(-1)).sum(), (a, b))

    ours = slopes(lambda p, q: divergences.f_divergence(GENERATORS[name], p, q))
    for mine, direct in zip(ours, slopes(DIRECT[name]), strict=True):
        torch.testing.assert_close(mine, direct, rtol=1e-10, atol=1e-12)


def test_direct_formulas_are_scipys_and_torchs():
    p, q = vectors(6, 5), vectors(6, 5, seed=1)
    exact = distributions.kl_divergence(distributions.Categorical(p), distributions.Categorical(q))
    torch.testing.assert_close(divergences.kl(p, q), exact, rtol=1e-12, atol=1e-14)
    m = (p + q) / 2
    js = 0.5 * (special.rel_entr(p.numpy(), m.numpy()) + special.rel_entr(q.numpy(), m.numpy()))
    exact = torch.from_numpy(js.sum(-1))
    torch.testing.assert_close(divergences.js(p, q), exact, rtol=1e-12, atol=1e-14)


def test_total_variation_is_the_largest_difference_of_an_event():
    p, q = vectors(4), vectors(4, seed=1)
    events = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    largest = (events @ (p - q)).max().item()
    assert divergences.total_variation(p, q).item() == pytest.approx(largest, rel=1e-12)


@every_generator
def test_zeros_take_the_limits(name):
    ours = divergences.f_divergence(GENERATORS[name], P, Q).item()
    assert ours == pytest.approx(AT_ZEROS[name], rel=1e-12)


@every_generator
def test_a_zero_on_one_side_is_finite_where_the_limit_is(name):
    """p excludes an outcome that q allows, and the reverse; with what remains equal."""
    narrow = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    wide = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    narrow_wide = {
        "kl": math.log(2),
        "reverse_kl": math.inf,
        "jensen_shannon": 0.5 * (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        "total_variation": 0.5,
        "squared_hellinger": 1 - math.sqrt(0.5),
        "chi_square": 1.0,
    }
    wide_narrow = narrow_wide | {
        "kl": math.inf,
        "reverse_kl": math.log(2),
        "chi_square": math.inf,
    }
    f = GENERATORS[name]
    ours = divergences.f_divergence(f, narrow, wide).item()
    assert ours == pytest.approx(narrow_wide[name], rel=1e-12)
    ours = divergences.f_divergence(f, wide, narrow).item()
    assert ours == pytest.approx(wide_narrow[name], rel=1e-12)


@every_generator
def test_a_zero_of_the_one_leaves_the_slope_in_the_other(name):
    """The slope at a zero of p is f(0) in q, at a zero of q the recession slope in p."""
    f = GENERATORS[name]
    p, q = P.clone().requires_grad_(), Q.clone().requires_grad_()
    in_p, in_q = torch.autograd.grad(divergences.f_divergence(f, p, q), (p, q))
    at_zero = f.f(torch.zeros((), dtype=torch.float64)).item()
    assert in_p[1].item() == f.recession
    assert in_q[0].item() == pytest.approx(at_zero, rel=1e-12)
    assert in_p[[0, 2]].tolist() == [0, 0]
    assert in_q[[1, 2]].tolist() == [0, 0]
    assert in_p[3:].isfinite().all()
    assert in_q[3:].isfinite().all()


@every_generator
def test_recession_is_the_limit_of_the_slope(name):
    f, large = GENERATORS[name], torch.tensor(1e30, dtype=torch.float64)
    assert f.derivative(torch.tensor(math.inf, dtype=torch.float64)).item() == f.recession
    if math.isfinite(f.recession):
        assert (f.f(large) / large).item() == pytest.approx(f.recession, abs=1e-12)
    else:
        assert (f.f(large) / large).item() > 50


@every_generator
def test_derivative_is_that_of_autograd(name):
    f = GENERATORS[name]
    u = torch.tensor([1e-3, 0.2, 0.9, 1.3, 7.0, 1e3], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(f.f(u).sum(), u)
    torch.testing.assert_close(f.derivative(u.detach()), exact, rtol=1e-12, atol=1e-12)


@every_generator
def test_conjugate_is_the_largest_value_over_ratios(name):
    """On a fine grid of ratios, 0 included; slopes inside the domain, and outside."""
    f = GENERATORS[name]
    ratios = torch.cat((torch.zeros(1), torch.logspace(-12, 6, 180_001))).double()
    finite = torch.tensor([-3.0, -2.0, -1.0, -0.5, -0.2, 0.1, 0.3, 0.45, 0.5, 1.5]).double()
    # Only total variation has the end of its domain in it.
    inside = finite <= f.recession if name == "total_variation" else finite < f.recession
    values = f.f(ratios)
    largest = torch.stack([(t * ratios - values).max() for t in finite])
    ours = f.conjugate(finite)
    torch.testing.assert_close(ours[inside], largest[inside], rtol=1e-6, atol=1e-6)
    assert (ours[~inside] == math.inf).all()
    assert inside.sum() >= 5


@every_generator
def test_conjugate_at_minus_infinity_is_minus_f_at_zero(name):
    f = GENERATORS[name]
    low = f.conjugate(torch.tensor(-math.inf, dtype=torch.float64))
    assert low.item() == pytest.approx(-f.f(torch.zeros((), dtype=torch.float64)).item())


@every_generator
def test_best_witness_reaches_the_divergence(name):
    f = GENERATORS[name]
    for p, q in ((vectors(6, 5), vectors(6, 5, seed=1)), (P, Q), far_normals()):
        witness = divergences.best_witness(f, p, q)
        bound = divergences.variational_bound(f, witness, p, q)
        exact = divergences.f_divergence(f, p, q)
        assert bound.shape == exact.shape
        torch.testing.assert_close(bound, exact, rtol=1e-12, atol=1e-12)


@every_generator
def test_best_witness_reaches_it_in_single_precision_too(name):
    """There q underflows to 0 and ratios overflow: the divergence may be infinite, but not NaN."""
    f, (p, q) = GENERATORS[name], far_normals()
    p, q = p.float(), q.float()
    bound = divergences.variational_bound(f, divergences.best_witness(f, p, q), p, q)
    exact = divergences.f_divergence(f, p, q)
    torch.testing.assert_close(bound, exact, rtol=1e-5, atol=0)


@every_generator
def test_no_other_witness_reaches_higher(name):
    f, p, q = GENERATORS[name], vectors(6, 5), vectors(6, 5, seed=1)
    best, exact = divergences.best_witness(f, p, q), divergences.f_divergence(f, p, q)
    steps = torch.randn(200, 6, 5, generator=generator(4), dtype=torch.float64)
    for size in (0.01, 0.1, 1.0):
        bounds = divergences.variational_bound(f, best + size * steps, p, q)
        assert (bounds <= exact + 1e-12).all()
        assert (bounds.amax(0) > -math.inf).any()


def test_the_bound_is_the_mean_of_the_witness_less_that_of_its_conjugate():
    p, q = vectors(5), vectors(5, seed=1)
    t = torch.tensor([-1.0, 0.3, -0.2, 1.4, 0.0], dtype=torch.float64)
    ours = divergences.variational_bound(divergences.KL, t, p, q).item()
    by_hand = sum(
        a * s - b * math.exp(s - 1)
        for a, b, s in zip(p.tolist(), q.tolist(), t.tolist(), strict=True)
    )
    assert ours == pytest.approx(by_hand, rel=1e-12)


def test_a_witness_learns_the_divergence_by_ascent():
    """Ascent from T = 0 for the Pearson divergence, whose bound is quadratic in the witness."""
    p, q = vectors(5, spread=0.5), vectors(5, seed=1, spread=0.5)
    witness = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        bound = divergences.variational_bound(divergences.CHI_SQUARE, witness, p, q)
        (slope,) = torch.autograd.grad(bound, witness)
        with torch.no_grad():
            witness += slope / q
    exact = divergences.f_divergence(divergences.CHI_SQUARE, p, q)
    torch.testing.assert_close(bound.detach(), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", [n for n, f in GENERATORS.items() if f.recession < math.inf])
def test_a_witness_outside_the_domain_bounds_nothing(name):
    """Also where q is 0, and no expectation of the conjugate would show it."""
    f = GENERATORS[name]
    outside = torch.full_like(P, -1.0)
    outside[1] = f.recession + 0.01
    assert divergences.variational_bound(f, outside, P, Q).item() == -math.inf


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "squared_hellinger"])
def test_the_end_of_an_open_domain_is_outside_and_has_no_nan_slope(name):
    f, p, q = GENERATORS[name], vectors(3), vectors(3, seed=1)
    witness = torch.tensor([-1.0, f.recession, -0.5], dtype=torch.float64, requires_grad=True)
    bound = divergences.variational_bound(f, witness, p, q)
    assert bound.item() == -math.inf
    assert torch.autograd.grad(bound, witness)[0].isfinite().all()


@every_generator
def test_gradients_of_the_bound_are_finite_at_zeros(name):
    f = GENERATORS[name]
    tensors = [t.clone().requires_grad_() for t in (torch.full_like(P, -0.3), P, Q)]
    slopes = torch.autograd.grad(divergences.variational_bound(f, *tensors), tensors)
    for slope in slopes:
        assert slope.isfinite().all()
    assert slopes[0][2].item() == 0


@given(integers(0, 6), integers(0, 6))
def test_the_divergences_keep_their_order(counts, others):
    """Pinsker, Le Cam's two inequalities, chi-square above KL, and the largest values."""
    p, q = normalized(counts), normalized(others)
    value = {name: divergences.f_divergence(f, p, q).item() for name, f in GENERATORS.items()}
    tv, hellinger = value["total_variation"], value["squared_hellinger"]
    assert all(v >= -1e-12 for v in value.values())
    assert tv <= math.sqrt(value["kl"] / 2 + 1e-12)
    assert hellinger <= tv + 1e-12
    assert tv <= math.sqrt(hellinger * (2 - hellinger) + 1e-12)
    assert value["kl"] <= math.log1p(value["chi_square"]) + 1e-12
    assert value["jensen_shannon"] <= math.log(2) * tv + 1e-12
    assert (tv > 1e-12) == (value["kl"] > 1e-12)


@given(integers(0, 6), integers(0, 6))
def test_direct_formulas_agree_at_zeros_too(counts, others):
    p, q = normalized(counts), normalized(others)
    for name in ("kl", "reverse_kl", "jensen_shannon", "total_variation"):
        ours = divergences.f_divergence(GENERATORS[name], p, q).item()
        assert ours == pytest.approx(DIRECT[name](p, q).item(), rel=1e-12, abs=1e-12)


def test_kl_has_gradients_at_zeros_of_p():
    q = torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(divergences.kl(p, q), q)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.0, -1.25], dtype=torch.float64))


def test_wasserstein_is_scipys():
    p, q = vectors(6, 5), vectors(6, 5, seed=1)
    positions = torch.tensor([-2.0, -1.5, 0.0, 0.7, 4.0], dtype=torch.float64)
    x = positions.numpy()
    pairs = zip(p.numpy(), q.numpy(), strict=True)
    exact = [stats.wasserstein_distance(x, x, a, b) for a, b in pairs]
    ours = divergences.wasserstein(p, q, positions)
    torch.testing.assert_close(ours, torch.tensor(exact).double(), rtol=1e-12, atol=1e-14)


def test_wasserstein_of_two_points_is_their_distance():
    positions = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    points = torch.eye(3, dtype=torch.float64)
    ours = divergences.wasserstein(points[:, None], points, positions)
    exact = (positions[:, None] - positions).abs()
    torch.testing.assert_close(ours, exact)
    assert divergences.wasserstein(points[:1, :1], points[:1, :1], positions[:1]).item() == 0


def test_normal_kl_is_torchs():
    means, scales = torch.randn(2, 7, generator=generator()).double(), vectors(2, 7) * 5
    p, q = (distributions.Normal(*parts) for parts in zip(means, scales, strict=True))
    exact = distributions.kl_divergence(p, q)
    ours = divergences.normal_kl(means[0], scales[0] ** 2, means[1], scales[1] ** 2)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)


def test_batches_broadcast_and_may_be_empty():
    p, q = vectors(4, 1, 5), vectors(3, 5, seed=1)
    for f in GENERATORS.values():
        table = divergences.f_divergence(f, p, q)
        assert table.shape == (4, 3)
        alone = divergences.f_divergence(f, p[2, 0], q[1])
        torch.testing.assert_close(table[2, 1], alone)
        assert divergences.f_divergence(f, p[:0, 0], q[0]).shape == (0,)
        assert divergences.best_witness(f, p, q).shape == (4, 3, 5)


@every_generator
def test_single_precision_stays_single(name):
    f, p, q = GENERATORS[name], vectors(5).float(), vectors(5, seed=1).float()
    ours = divergences.f_divergence(f, p, q)
    witness = divergences.best_witness(f, p, q)
    bound = divergences.variational_bound(f, witness, p, q)
    assert {t.dtype for t in (ours, witness, bound)} == {torch.float32}
    exact = divergences.f_divergence(f, *(v / v.sum() for v in (p.double(), q.double())))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bound.double(), exact, rtol=1e-5, atol=1e-6)


def test_sums_are_checked_to_a_millionth():
    p = vectors(5)
    divergences.kl(p * (1 + 0.9e-6), p)
    for factor in (1 + 1.1e-6, 1 - 1.1e-6):
        with pytest.raises(ValueError, match="q: must sum to 1"):
            divergences.kl(p, p * factor)


def broken(value):
    return torch.tensor([value, 1 - value], dtype=torch.float64)


HALF = broken(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: divergences.kl(broken(-0.1), HALF), "p: must not be negative"),
        (lambda: divergences.js(HALF, broken(-0.1)), "q: must not be negative"),
        (lambda: divergences.total_variation(HALF * math.nan, HALF), "p: "),
        (lambda: divergences.kl(HALF, HALF * math.inf), "q: "),
        (lambda: divergences.kl(HALF * 2, HALF), "p: must sum to 1"),
        (lambda: divergences.kl(HALF, torch.ones(1).double()), "q: must have 2 classes"),
        (lambda: divergences.kl(vectors(2, 5), vectors(3, 5)), "p: does not broadcast"),
        (lambda: divergences.kl(torch.tensor(1.0), HALF), "p: must be probabilities"),
        (lambda: divergences.kl(HALF, torch.tensor([1, 0])), "q: must be probabilities"),
        (lambda: divergences.kl(torch.ones(0), torch.ones(0)), "p: must sum to 1"),
        (lambda: divergences.f_divergence(divergences.KL, HALF * 2, HALF), "p: "),
        (lambda: divergences.best_witness(divergences.KL, HALF, HALF * 2), "q: "),
        (lambda: divergences.variational_bound(divergences.KL, HALF, HALF * 2, HALF), "p: "),
        (
            lambda: divergences.variational_bound(divergences.KL, HALF[:1], HALF, HALF),
            "witness: must have 2",
        ),
        (
            lambda: divergences.variational_bound(divergences.KL, vectors(3, 5), *vectors(2, 2, 5)),
            "witness: does not broadcast",
        ),
        (
            lambda: divergences.variational_bound(divergences.KL, HALF * math.nan, HALF, HALF),
            "witness: must be finite",
        ),
        (
            lambda: divergences.variational_bound(divergences.KL, HALF * math.inf, HALF, HALF),
            "witness: must be finite",
        ),
        (
            lambda: divergences.variational_bound(divergences.KL, -HALF * math.inf, HALF, HALF),
            "witness: must be finite",
        ),
        (lambda: divergences.wasserstein(HALF, HALF, torch.arange(3.0)), "positions: must be"),
        (lambda: divergences.wasserstein(HALF, HALF, HALF * math.nan), "positions: must be fin"),
        (lambda: divergences.wasserstein(HALF, HALF, -torch.arange(2.0)), "positions: must be in"),
        (lambda: divergences.wasserstein(HALF * 2, HALF, HALF), "p: "),
        (lambda: divergences.normal_kl(HALF, HALF, HALF, HALF - HALF), "variance2: "),
        (lambda: divergences.normal_kl(HALF, -HALF, HALF, HALF), "variance1: "),
        (lambda: divergences.normal_kl(HALF * math.nan, HALF, HALF, HALF), "mean1: "),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
