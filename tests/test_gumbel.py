import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.distributions import RelaxedOneHotCategorical
from torch.func import grad, vmap
from torch.nn import functional

from gradbook.gumbel import (
    conditional_gumbels,
    gumbel_log_softmax,
    gumbel_max,
    gumbel_noise,
    gumbel_one_hot,
    gumbel_softmax,
    one_hot,
    straight_through,
)

F32, F64 = torch.float32, torch.float64
INF = math.inf
LOGITS = torch.tensor([0.3, -0.7, 1.1, -2.0], dtype=F64)
# As rare as 4.5 standard errors.
RARE = 7e-6
DRAWS = (
    gumbel_max,
    lambda o, g: gumbel_softmax(o, 0.5, g),
    lambda o, g: gumbel_log_softmax(o, 0.5, g),
)
RELAXED = (gumbel_softmax, gumbel_log_softmax)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def tensor(x, dtype=F64):
    return torch.tensor(x, dtype=dtype)


def some(*shape, seed=0, dtype=F64):
    """Logits and noise."""
    logits = torch.randn(shape, generator=generator(seed), dtype=dtype)
    return logits, gumbel_noise(shape, generator(seed + 1), dtype)


@pytest.fixture
def seeded():
    """Peers draw from the global generator alone: seed it, and give it back."""
    with torch.random.fork_rng(devices=[]):
        yield lambda: torch.manual_seed(3)


# Exact draws


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("seed", range(3))
def test_gumbel_max_draws_the_softmax(dtype, seed):
    logits, n = LOGITS.to(dtype), 100_000
    index = gumbel_max(logits, gumbel_noise((n, 4), generator(seed), dtype))
    counts = torch.bincount(index, minlength=4).numpy()
    expected = n * LOGITS.softmax(-1).numpy()
    assert scipy.stats.chisquare(counts, expected).pvalue > RARE


def test_gumbel_max_is_the_argmax():
    logits, noise = some(50, 6)
    assert torch.equal(gumbel_max(logits, noise), (logits + noise).argmax(-1))


def test_impossible_classes_are_never_drawn():
    logits, noise = tensor([0.0, -INF, 1.0, -INF]), some(20_000, 4)[1]
    index = gumbel_max(logits, noise)
    assert set(index.tolist()) == {0, 2}
    y = gumbel_softmax(logits, 0.7, noise)
    assert (y[:, [1, 3]] == 0).all()
    possible = gumbel_softmax(logits[[0, 2]], 0.7, noise[:, [0, 2]])
    torch.testing.assert_close(y[:, [0, 2]], possible, rtol=1e-13, atol=0)
    assert (gumbel_log_softmax(logits, 0.7, noise)[:, [1, 3]] == -INF).all()


def test_one_class_is_certain():
    logits, noise = some(5, 1)
    assert (gumbel_max(logits, noise) == 0).all()
    assert (gumbel_softmax(logits, 0.3, noise) == 1).all()


# Relaxed draws, against torch


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 7.0])
def test_the_same_noise_gives_torchs_gumbel_softmax(seeded, dtype, temperature):
    logits = some(400, 5, dtype=dtype)[0]
    seeded()
    noise = -torch.empty_like(logits).exponential_().log()
    for hard in (False, True):
        seeded()
        theirs = functional.gumbel_softmax(logits, temperature, hard=hard)
        ours = gumbel_softmax(logits, temperature, noise)
        if hard:
            ours = straight_through(one_hot(gumbel_max(logits, noise), 5, dtype), ours)
        atol = 8 * torch.finfo(dtype).eps / temperature
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 7.0])
def test_the_same_uniforms_give_torchs_relaxed_categorical(seeded, temperature):
    logits = some(400, 5)[0]
    seeded()
    noise = -(-torch.rand(logits.shape, dtype=F64).log()).log()
    seeded()
    theirs = RelaxedOneHotCategorical(tensor(temperature), logits=logits).rsample()
    ours = gumbel_softmax(logits, temperature, noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    ours = gumbel_log_softmax(logits, temperature, noise).exp()
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_the_same_noise_gives_torchs_gradient(seeded):
    logits = some(50, 5)[0]
    weight = torch.randn(50, 5, generator=generator(9), dtype=F64)
    seeded()
    noise = -torch.empty_like(logits).exponential_().log()
    gradients = []
    for draw in (
        lambda o: gumbel_softmax(o, 0.4, noise),
        lambda o: functional.gumbel_softmax(o, 0.4),
        lambda o: functional.gumbel_softmax(o, 0.4, hard=True),
        lambda o: straight_through(
            one_hot(gumbel_max(o, noise), 5, F64), gumbel_softmax(o, 0.4, noise)
        ),
    ):
        leaf = logits.clone().requires_grad_()
        seeded()
        gradients += torch.autograd.grad((weight * draw(leaf)).sum(), leaf)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("relaxed", RELAXED)
def test_relaxed_draws_differentiate_in_logits_temperature_and_noise(relaxed):
    logits, noise = some(3, 4)
    logits[1, 2] = -INF
    temperature = tensor([[0.5], [1.3], [0.9]])
    possible = logits > -INF

    def draw(o, t, g):
        # Finite differences cannot move a logit of minus infinity, nor compare such logarithms.
        return relaxed(torch.where(possible, o, -INF), t, g)[possible]

    start = (torch.where(possible, logits, 0.0), temperature, noise)
    assert gradcheck(draw, [x.clone().requires_grad_() for x in start])


# Where floating numbers end


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1.2e-38])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_tiny_temperatures_give_one_hot_rows_and_finite_gradients(temperature, as_tensor):
    logits, noise = some(500, 6, dtype=F32)
    logits[:, 3] = -INF
    leaf = logits.clone().requires_grad_()
    tau = tensor(temperature, F32).requires_grad_() if as_tensor else temperature
    y = gumbel_softmax(leaf, tau, noise)
    assert torch.equal(y, one_hot(gumbel_max(logits, noise), 6, F32))
    inputs = [leaf, tau] if as_tensor else [leaf]
    weight = torch.randn(500, 6, generator=generator(2))
    for gradient in torch.autograd.grad((weight * y).sum(), inputs):
        assert (gradient == 0).all()


@pytest.mark.parametrize("temperature", [0.02, 1e-6, 1e-30])
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_float32_logarithms_do_not_underflow(temperature, make):
    logits, noise = some(500, 6, dtype=F32)
    exact = ((logits.double() + noise.double()) / temperature).log_softmax(-1)
    ours = gumbel_log_softmax(logits, make(temperature), noise)
    assert ours.dtype == F32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6 / temperature)
    assert ours.isfinite().all()


def test_a_learned_temperature_has_the_slope_of_a_number():
    """Also where some shares underflow, which are cut off from the temperature."""
    logits, noise = some(200, 5, dtype=F32)
    weight = torch.randn(200, 5, generator=generator(2))

    def loss(t, dtype):
        y = gumbel_softmax(logits.to(dtype), t, noise.to(dtype))
        return (weight.to(dtype) * y).sum()

    for temperature in (0.011, 0.1, 3.0):
        ours = grad(loss)(tensor(temperature, F32), F32)
        exact = grad(loss)(tensor(temperature), F64)
        torch.testing.assert_close(ours.double(), exact, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [1e4, -1e6, 1e8])
@pytest.mark.parametrize("draw", DRAWS)
def test_large_logits_do_not_round_the_noise_away(offset, draw):
    # Multiples of 8 are exact in float32 up to 1.3e8.
    logits = 8 * torch.randint(-2, 3, (300, 5), generator=generator(0)).to(F32)
    noise = gumbel_noise((300, 5), generator(1), F32)
    assert torch.equal(draw(logits + offset, noise), draw(logits, noise))


def test_a_hopeless_logit_is_no_overflow():
    logits = tensor([0.0, -1e30, -3e38], F32).requires_grad_()
    for temperature in (1.0, 1e-30):
        y = gumbel_softmax(logits, temperature, torch.zeros(3))
        assert y.tolist() == [1, 0, 0]
        assert (torch.autograd.grad(y[0], logits)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_keep_the_digits_of_the_noise(dtype):
    logits, noise = some(2000, 5, dtype=F32)
    logits = (4 * logits).to(dtype)
    y = gumbel_softmax(logits, 0.5, noise)
    assert y.dtype == F32
    torch.testing.assert_close(y, gumbel_softmax(logits.float(), 0.5, noise), rtol=0, atol=0)
    assert torch.equal(gumbel_max(logits, noise), gumbel_max(logits.float(), noise))
    leaf = logits.clone().requires_grad_()
    gumbel_softmax(leaf, 0.5, noise)[:, 0].sum().backward()
    assert leaf.grad.dtype == dtype
    assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_throughout_divides_without_overflow(dtype):
    logits, noise = (x.to(dtype) for x in some(300, 5, dtype=F32))
    y = gumbel_softmax(logits, 1e-4, noise)
    assert y.dtype == dtype
    exact = gumbel_softmax(logits.double(), 1e-4, noise.double())
    rounded = (logits + noise).topk(2, -1).values.diff().abs()[:, 0] < 0.1
    assert torch.equal(y[~rounded].double(), exact[~rounded])
    assert y.isfinite().all()


# Symmetries


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.05, 20))
def test_a_constant_of_the_row_changes_nothing(seed, constant, temperature):
    logits, noise = some(4, 3, seed=seed)
    torch.testing.assert_close(
        gumbel_softmax(logits + constant, temperature, noise),
        gumbel_softmax(logits, temperature, noise),
        rtol=1e-11 / temperature,
        atol=1e-14 / temperature,
    )


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_classes_may_be_permuted(seed, order):
    logits, noise = some(3, 5, seed=seed)
    for relaxed in RELAXED:
        torch.testing.assert_close(
            relaxed(logits[:, order], 0.6, noise[:, order]),
            relaxed(logits, 0.6, noise)[:, order],
            rtol=1e-13,
            atol=1e-13,
        )
    moved = gumbel_max(logits[:, order], noise[:, order])
    assert torch.equal(torch.tensor(order)[moved], gumbel_max(logits, noise))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_a_relaxed_draw_is_on_the_simplex_with_the_winner_largest(seed, temperature):
    logits, noise = some(6, 4, seed=seed)
    y = gumbel_softmax(logits, temperature, noise)
    torch.testing.assert_close(y.sum(-1), torch.ones(6, dtype=F64), rtol=1e-14, atol=0)
    assert torch.equal(y.argmax(-1), gumbel_max(logits, noise))
    torch.testing.assert_close(
        gumbel_log_softmax(logits, temperature, noise), y.log(), rtol=1e-10, atol=1e-12
    )


# Shapes, transforms, and tensors of others


def test_noise_broadcasts_with_logits_and_a_temperature_with_both():
    logits, noise = some(2, 3)[0], some(5, 2, 3)[1]
    y = gumbel_softmax(logits, 0.5, noise)
    assert y.shape == (5, 2, 3)
    torch.testing.assert_close(
        y[3, 1], gumbel_softmax(logits[1], 0.5, noise[3, 1]), rtol=1e-14, atol=0
    )
    shared = gumbel_softmax(noise, 0.5, logits)
    torch.testing.assert_close(shared, y, rtol=1e-12, atol=0)
    sweep = tensor([0.1, 1.0, 3.0]).reshape(3, 1, 1, 1)
    swept = gumbel_softmax(logits, sweep, noise)
    assert swept.shape == (3, 5, 2, 3)
    for t, row in zip([0.1, 1.0, 3.0], swept, strict=True):
        torch.testing.assert_close(row, gumbel_softmax(logits, t, noise), rtol=1e-13, atol=1e-300)
        torch.testing.assert_close(
            row, gumbel_softmax(logits, tensor(t), noise), rtol=1e-13, atol=1e-300
        )


@pytest.mark.parametrize("draw", DRAWS)
def test_an_empty_batch_gives_an_empty_result(draw):
    logits, noise = some(0, 3)
    assert draw(logits, noise).shape[:1] == (0,)
    assert draw(logits[0:0].reshape(2, 0, 3), noise).numel() == 0


@pytest.mark.parametrize("draw", [*DRAWS, lambda o, g: conditional_gumbels(o, gumbel_max(o, g), g)])
def test_what_is_passed_in_is_not_written_to(draw):
    logits, noise = some(4, 3)
    before = logits.clone(), noise.clone()
    draw(logits, noise)
    draw(logits, noise[0])
    assert torch.equal(logits, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize(
    "batched", [(None, 0, None), (0, None, None), (0, 0, None), (None, None, 0), (0, 0, 0)]
)
def test_vmap_of_grad_gives_the_gradients_one_by_one(batched):
    logits, noise = some(6, 4)
    temperature = torch.linspace(0.3, 2, 6, dtype=F64)
    weight = torch.randn(4, generator=generator(3), dtype=F64)
    whole = (logits, noise, temperature)
    given = [x if axis == 0 else x[2] for x, axis in zip(whole, batched, strict=True)]

    def loss(o, g, t):
        return weight @ gumbel_softmax(o, t, g) + weight @ gumbel_log_softmax(o, t, g)

    ours = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=batched)(*given)
    for i in range(6):
        row = [x[i] if axis == 0 else x for x, axis in zip(given, batched, strict=True)]
        leaves = [x.clone().requires_grad_() for x in row]
        exact = torch.autograd.grad(loss(*leaves), leaves)
        for have, want in zip(ours, exact, strict=True):
            torch.testing.assert_close(have[i], want, rtol=1e-11, atol=1e-12)


def test_vmap_of_draws_with_a_number_as_temperature():
    logits, noise = some(6, 4)
    torch.testing.assert_close(
        vmap(grad(lambda o, g: gumbel_softmax(o, 0.5, g)[0]), in_dims=(None, 0))(logits[0], noise),
        torch.stack([grad(lambda o, g=g: gumbel_softmax(o, 0.5, g)[0])(logits[0]) for g in noise]),
        rtol=1e-13,
        atol=1e-14,
    )
    index = vmap(gumbel_max, in_dims=(None, 0))(logits[0], noise)
    assert torch.equal(index, gumbel_max(logits[0], noise))


def test_checks_look_inside_vmap():
    logits, noise = some(3, 4)
    noise[1, 2] = math.nan
    with pytest.raises(ValueError, match="noise: must not have a NaN"):
        vmap(lambda g: gumbel_softmax(logits[0], 0.5, g))(noise)


# Straight through


def test_straight_through_has_the_value_of_one_and_the_slope_of_the_other():
    logits, noise = some(30, 4, dtype=F32)
    leaf = logits.clone().requires_grad_()
    soft = gumbel_softmax(leaf, 0.3, noise)
    hard = one_hot(gumbel_max(logits, noise), 4, F32)
    y = straight_through(hard, soft)
    assert torch.equal(y, hard)
    weight = torch.randn(30, 4, generator=generator(0))
    (ours,) = torch.autograd.grad((weight * y).sum(), leaf, retain_graph=True)
    (exact,) = torch.autograd.grad((weight * soft).sum(), leaf)
    assert torch.equal(ours, exact)
    assert ours.abs().max() > 0


def test_straight_through_cuts_the_gradient_of_the_hard_side():
    hard, soft = tensor([1.0, 0.0]).requires_grad_(), tensor([0.8, 0.2]).requires_grad_()
    by_hard, by_soft = torch.autograd.grad(
        (straight_through(hard, soft) ** 2).sum(), (hard, soft), allow_unused=True
    )
    assert by_hard is None
    assert by_soft.tolist() == [2, 0]


def test_straight_through_checks_its_sides():
    for bad, name in (
        (tensor([1.0]), "soft: must have the shape"),
        (tensor([0.2, math.nan]), "soft: must be finite"),
    ):
        with pytest.raises(ValueError, match=name):
            straight_through(tensor([1.0, 0.0]), bad)
    with pytest.raises(ValueError, match="hard: must be finite"):
        straight_through(tensor([1.0, math.nan]), tensor([0.5, 0.5]))


# Noise given the draw


@pytest.mark.parametrize("seed", range(3))
def test_conditional_after_index_has_the_unconditional_law(seed):
    n = 40_000
    index = gumbel_max(LOGITS, gumbel_noise((n, 4), generator(seed), F64))
    scores = conditional_gumbels(LOGITS, index, gumbel_noise((n, 4), generator(seed + 100), F64))
    assert torch.equal(scores.argmax(-1), index)
    noise = scores - (LOGITS - LOGITS.max())
    for i in range(4):
        assert scipy.stats.kstest(noise[:, i].numpy(), "gumbel_r").pvalue > RARE
    # Coordinates are independent: the correlation of 40 000 pairs has standard error 1/200.
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(4, dtype=F64)
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(n)
    total = (LOGITS - LOGITS.max()).logsumexp(-1)
    for i in range(4):
        largest = scores[index == i, i] - total
        assert scipy.stats.kstest(largest.numpy(), "gumbel_r").pvalue > RARE


def test_conditional_is_the_formula_of_grathwohl_and_others():
    """z_b = -log(-log v_b) and z_i = -log(-log(v_i) / p_i - log v_b), for logits log p."""
    p = LOGITS.softmax(-1)
    v = torch.rand(50, 4, generator=generator(0), dtype=F64)
    index = torch.arange(50) % 4
    own = v.gather(1, index[:, None])
    exact = -(-v.log() / p - own.log()).log()
    exact.scatter_(1, index[:, None], -(-own.log()).log())
    ours = conditional_gumbels(LOGITS, index, -(-v.log()).log())
    torch.testing.assert_close(
        ours + LOGITS.max() - LOGITS.logsumexp(-1), exact, rtol=1e-12, atol=1e-13
    )


def test_conditional_differentiates_in_the_logits():
    logits, noise = some(6, 4)
    logits[2, 1] = -INF
    possible = logits > -INF
    index = gumbel_max(logits, some(6, 4, seed=7)[1])

    def draw(o):
        o = torch.where(possible, o, -INF)
        # The centring is a constant for autograd, and finite differences see it move: take it back.
        centre = o.detach().amax(-1, keepdim=True)
        return (conditional_gumbels(o, index, noise) + centre)[possible]

    assert gradcheck(draw, torch.where(possible, logits, 0.0).requires_grad_())


def test_conditional_of_an_impossible_class_stays_impossible_without_nan():
    logits = tensor([0.0, -INF, 1.0]).requires_grad_()
    scores = conditional_gumbels(logits, torch.tensor(0), tensor([0.3, -0.2, 1.0]))
    assert scores[1] == -INF
    (slope,) = torch.autograd.grad((scores / 0.5).softmax(-1)[0], logits)
    assert slope.isfinite().all()
    assert slope[1] == 0


def test_the_index_wins_even_where_rounding_ties():
    logits = tensor([0.0, 0.0, 0.0], F32).requires_grad_()
    noise = tensor([22.0, -2.5, 1.0], F32)
    scores = conditional_gumbels(logits, torch.tensor(1), noise)
    assert scores.argmax() == 1
    assert (scores == scores.max()).sum() == 1
    exact = conditional_gumbels(logits.detach().double(), torch.tensor(1), noise.double())
    torch.testing.assert_close(scores.detach().double(), exact, rtol=3e-7, atol=0)
    (slope,) = torch.autograd.grad(scores[0], logits)
    torch.testing.assert_close(slope, torch.full((3,), 1 / 3), rtol=1e-6, atol=0)


def test_the_index_wins_always_in_float32():
    n = 200_000
    noise = gumbel_noise((n, 8), generator(0), F32)
    logits = 6 * torch.randn(n, 8, generator=generator(1))
    index = torch.randint(8, (n,), generator=generator(2))
    scores = conditional_gumbels(logits, index, noise)
    assert torch.equal(scores.argmax(-1), index)
    assert ((scores == scores.amax(-1, keepdim=True)).sum(-1) == 1).all()


def test_conditional_broadcasts_and_takes_empty_batches():
    index = torch.tensor([0, 3, 1])
    noise = some(4)[1]
    ours = conditional_gumbels(LOGITS, index, noise)
    assert ours.shape == (3, 4)
    assert torch.equal(ours[1], conditional_gumbels(LOGITS, index[1], noise))
    assert conditional_gumbels(LOGITS, index[:0], noise).shape == (0, 4)
    by_vmap = vmap(lambda i: conditional_gumbels(LOGITS, i, noise))(index)
    torch.testing.assert_close(by_vmap, ours, rtol=1e-14, atol=0)


# Bad input


@pytest.mark.parametrize(
    "temperature",
    [0.0, -1.0, math.nan, INF, tensor(0.0), tensor([[1.0], [-1.0]]), 1e-50, 1e39],
)
@pytest.mark.parametrize("relaxed", RELAXED)
def test_temperatures_that_are_refused(relaxed, temperature):
    logits, noise = some(2, 3, dtype=F32)
    with pytest.raises(ValueError, match="temperature: must be positive and finite"):
        relaxed(logits, temperature, noise)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 1)])
def test_temperatures_that_would_meet_the_classes_are_refused(shape):
    logits, noise = some(2, 3)
    with pytest.raises(ValueError, match="^temperature: "):
        gumbel_softmax(logits, torch.ones(shape, dtype=F64), noise)


@pytest.mark.parametrize(
    ("row", "column", "value"), [(1, 2, math.nan), (0, 0, INF), (1, slice(None), -INF)]
)
@pytest.mark.parametrize("draw", DRAWS)
def test_logits_that_are_refused(draw, row, column, value):
    logits, noise = some(2, 3)
    logits[row, column] = value
    with pytest.raises(ValueError, match="logits: must have no NaN and no plus infinity"):
        draw(logits, noise)


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("draw", DRAWS)
def test_noise_that_is_refused(draw, value):
    logits, noise = some(2, 3)
    noise[1, 2] = value
    with pytest.raises(ValueError, match="noise: must not have a NaN"):
        draw(logits, noise)


@pytest.mark.parametrize("draw", DRAWS)
def test_shapes_and_devices_that_are_refused(draw):
    logits, noise = some(2, 3)
    for bad in (noise[:, :2], noise[0, 0], noise[:, :1]):
        with pytest.raises(ValueError, match="noise: must have 3 classes"):
            draw(logits, bad)
    with pytest.raises(ValueError, match="noise: does not broadcast with logits"):
        draw(logits, torch.zeros(4, 3, dtype=F64))
    with pytest.raises(ValueError, match="noise: is on meta, logits on cpu"):
        draw(logits, noise.to("meta"))
    for bad in (tensor(1.0), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="logits: must have at least one class"):
            draw(bad, noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.tensor([0, 4])}, "index: must be from 0 to 3"),
        ({"index": torch.tensor([0, -1])}, "index: must be from 0 to 3"),
        ({"index": torch.tensor([0.0, 1.0])}, "index: must be integers"),
        ({"index": torch.tensor([0, 1, 2])}, "index: does not broadcast with logits"),
        ({"logits": tensor([0.0, -INF, 1.0, 0.0])}, "index: an impossible class"),
        ({"logits": tensor([0.0, math.nan, 1.0, 0.0])}, "logits: must have no NaN"),
        ({"noise": torch.full((2, 4), math.nan)}, "noise: must be finite"),
        ({"noise": torch.full((2, 4), -INF)}, "noise: must be finite"),
        ({"noise": torch.zeros(2, 3)}, "noise: must have 4 classes"),
    ],
)
def test_conditional_names_what_is_wrong(change, message):
    given = {"logits": LOGITS, "index": torch.tensor([0, 1]), "noise": some(2, 4)[1]}
    with pytest.raises(ValueError, match=f"^{message}"):
        conditional_gumbels(**{**given, **change})


def test_one_hot_draws_are_of_the_logits_type():
    logits = torch.tensor([[0.3, -0.7, 1.1], [0.0, -math.inf, 0.4]])
    noise = gumbel_noise((5, 2, 3), torch.Generator().manual_seed(0), torch.float64)
    exact = functional.one_hot((logits + noise).argmax(-1), 3).float()
    ours = gumbel_one_hot(logits, noise)
    assert torch.equal(ours, exact)
    assert ours.dtype == torch.float32
    assert torch.equal(vmap(lambda row: gumbel_one_hot(logits, row))(noise), exact)
    with pytest.raises(ValueError, match="^noise: "):
        gumbel_one_hot(logits, noise[..., :2])
