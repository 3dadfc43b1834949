"""Orders are permutations with the paths they promise, and a transformer follows any of them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook.gumbel import gumbel_max
from gradbook.noise import gumbel_noise
from gradbook.orders import (
    OrderedTransformer,
    column,
    raster,
    reordered,
    restored,
    spiral,
)
from gradbook.priors import CausalTransformer, grids

ALL = [raster, column, spiral]
sides = st.integers(1, 6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def noise(*shape, seed=4):
    return gumbel_noise(shape, generator(seed), torch.float64, "cpu")


def integers(*shape, count=3, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def stirred(model, std=0.5, seed=1):
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator(seed))
    return model


def ordered(order, height=3, width=4, codes=3, prefix=0):
    return OrderedTransformer(order, height, width, codes, 8, 2, 2, generator(), prefix)


def mixed(places=12, seed=5):
    return torch.randperm(places, generator=generator(seed))


@pytest.mark.parametrize("order", ALL)
@given(sides, sides)
def test_orders_visit_every_place_once(order, height, width):
    found = order(height, width)
    assert found.dtype == torch.int64
    assert sorted(found.tolist()) == list(range(height * width))


def test_orders_of_a_small_grid():
    assert raster(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert column(2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert spiral(3, 3).tolist() == [0, 1, 2, 5, 8, 7, 6, 3, 4]
    assert spiral(3, 4).tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


@given(sides, sides)
def test_a_spiral_goes_from_neighbour_to_neighbour(height, width):
    places = [divmod(place, width) for place in spiral(height, width).tolist()]
    for (i, j), (k, m) in itertools.pairwise(places):
        assert abs(i - k) + abs(j - m) == 1


@given(sides, sides)
def test_a_spiral_goes_inward_and_starts_to_the_right(height, width):
    places = [divmod(place, width) for place in spiral(height, width).tolist()]
    rings = [min(i, j, height - 1 - i, width - 1 - j) for i, j in places]
    assert rings == sorted(rings)
    assert places[:width] == [(0, j) for j in range(width)]


@given(sides, sides, st.integers(0, 2**20))
def test_what_is_reordered_can_be_restored(height, width, seed):
    order = mixed(height * width, seed)
    values = normal(2, height, width, 3, seed=seed)
    found = reordered(values, order)
    assert found.shape == values.shape
    for t, place in enumerate(order.tolist()):
        step, (i, j) = divmod(t, width), divmod(place, width)
        assert torch.equal(found[:, step[0], step[1]], values[:, i, j])
    assert torch.equal(restored(found, order), values)
    assert torch.equal(reordered(restored(values, order), order), values)


@pytest.mark.parametrize("prefix", [0, 2])
def test_in_reading_order_it_is_the_plain_transformer(prefix):
    plain = CausalTransformer(3, 4, 3, 8, 2, 2, generator(), prefix)
    built = ordered(raster(3, 4), prefix=prefix)
    for one, two in zip(plain.parameters(), built.parameters(), strict=True):
        assert torch.equal(one, two)
    codes, g = integers(5, 3, 4), noise(5, 3, 4, 3)
    vectors = (normal(5, prefix, 8).float(),) if prefix else ()
    assert torch.equal(built.logits(codes, *vectors), plain.logits(codes, *vectors))
    assert torch.equal(built.log_prob(codes, *vectors), plain.log_prob(codes, *vectors))
    assert torch.equal(built.sample(5, g, *vectors), plain.sample(5, g, *vectors))


def test_by_columns_it_is_the_plain_transformer_of_transposed_grids():
    built = stirred(ordered(column(3, 4)))
    plain = CausalTransformer(4, 3, 3, 8, 2, 2, generator()).double()
    state = {name: value for name, value in built.state_dict().items() if name != "order"}
    state["rows"], state["columns"] = state["columns"], state["rows"]
    plain.load_state_dict(state)
    codes, g = integers(6, 3, 4), noise(6, 3, 4, 3)
    expected = plain.logits(codes.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(built.logits(codes), expected, rtol=1e-10, atol=1e-10)
    drawn = plain.sample(6, g.transpose(1, 2)).transpose(1, 2)
    assert torch.equal(built.sample(6, g), drawn)


@pytest.mark.parametrize("order", [column(3, 4), spiral(3, 4), mixed()])
def test_a_place_sees_all_that_was_visited_before_it_and_nothing_else(order):
    built = stirred(ordered(order), std=0.4)
    steps = order.argsort()
    past = steps[:, None] < steps
    found = grids.influence(built.logits, integers(3, 4), 3)
    assert (found[~past] == 0).all()
    assert (found[past] > 0).all()


def test_probabilities_sum_to_one():
    rows = list(itertools.product(range(3), repeat=4))
    every = torch.tensor(rows).unflatten(1, (2, 2))
    built = stirred(ordered(spiral(2, 2), 2, 2))
    log_probs = built.log_prob(every)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_probs.std() > 0.1
    other = stirred(ordered(raster(2, 2), 2, 2))
    assert not torch.allclose(log_probs, other.log_prob(every))


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("order", [spiral(3, 4), mixed()])
def test_both_samplers_draw_what_the_noise_picks_at_each_place(order, prefix):
    built, g = stirred(ordered(order, prefix=prefix)), noise(30, 3, 4, 3)
    vectors = (normal(30, prefix, 8),) if prefix else ()
    drawn = built.sample(30, g, *vectors)
    assert torch.equal(drawn, gumbel_max(built.logits(drawn, *vectors).detach(), g))
    assert torch.equal(drawn, built.sample_without_cache(30, g, *vectors))


def test_an_element_knows_its_true_row_and_column():
    """With all codes alike and no attention between them, logits depend on the place alone."""
    built = ordered(spiral(3, 4))
    plain = CausalTransformer(3, 4, 3, 8, 2, 2, generator())
    stirred(plain)
    stirred(built)
    for model in (built, plain):
        for block in model.blocks:
            torch.nn.init.zeros_(block.attention.outward.weight)
        torch.nn.init.zeros_(model.table)
        torch.nn.init.zeros_(model.start)
    codes = integers(1, 3, 4)
    torch.testing.assert_close(built.logits(codes), plain.logits(codes))
    assert built.logits(codes).flatten(0, 2).std(0).min() > 0.01


def test_the_order_travels_with_the_weights():
    first, second = ordered(spiral(3, 4)), ordered(mixed())
    second.load_state_dict(first.state_dict())
    codes = integers(4, 3, 4)
    assert torch.equal(first.logits(codes), second.logits(codes))
    given = mixed()
    built = ordered(given)
    before = built.logits(codes)
    given.copy_(raster(3, 4))
    assert torch.equal(built.logits(codes), before)


def test_an_empty_batch_gives_an_empty_result():
    built, none = ordered(spiral(3, 4)), torch.empty(0, 3, 4, dtype=torch.int64)
    assert reordered(none, mixed()).shape == restored(none, mixed()).shape == (0, 3, 4)
    assert built.logits(none).shape == (0, 3, 4, 3)
    assert built.log_prob(none).shape == (0,)
    assert built.sample(0, torch.empty(0, 3, 4, 3)).shape == (0, 3, 4)
    assert built.sample_without_cache(0, torch.empty(0, 3, 4, 3)).shape == (0, 3, 4)


def test_a_page_may_choose_its_default_type():
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        built = ordered(spiral(3, 4))
    finally:
        torch.set_default_dtype(default)
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


GRID = torch.zeros(2, 3, 4)
BAD = [
    *((lambda f=f: f(0, 2), "height: must be at least 1, got 0") for f in ALL),
    *((lambda f=f: f(2, 0), "width: must be at least 1, got 0") for f in ALL),
]
for _f in (reordered, restored):
    BAD += [
        (lambda f=_f: f(GRID, raster(3, 3)), "order: must be a permutation of 12 places"),
        (lambda f=_f: f(GRID, raster(3, 4).int()), "order: must be a permutation"),
        (lambda f=_f: f(GRID, raster(3, 4) // 2), "order: must be a permutation"),
        (lambda f=_f: f(GRID, raster(3, 4) + 1), "order: must be a permutation"),
        (lambda f=_f: f(GRID[0], raster(3, 4)), "grids: must be \\[B, h, w, ...\\]"),
    ]
BAD += [
    (lambda: ordered(raster(2, 4)), "order: must be a permutation of 12 places"),
    (lambda: ordered(raster(3, 4) - 1), "order: must be a permutation"),
    (lambda: ordered(raster(3, 4), codes=0), "codes: must be at least 1"),
    (lambda: ordered(mixed()).logits(integers(2, 4, 3)), "codes: must be \\[B, 3, 4\\]"),
    (lambda: ordered(mixed()).log_prob(integers(2, 3, 4) + 3), "codes: must be from 0 to 2"),
    (lambda: ordered(mixed()).logits(integers(12)), "codes: must be \\[B, 3, 4\\]"),
    (lambda: ordered(mixed()).sample(2, noise(2, 3, 4)), "noise: must be \\(2, 3, 4, 3\\)"),
    (
        lambda: ordered(mixed()).sample_without_cache(3, noise(2, 3, 4, 3)),
        "noise: must be \\(3, 3, 4, 3\\)",
    ),
    (lambda: ordered(mixed(), prefix=1).sample(2, noise(2, 3, 4, 3)), "prefix: must be"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
