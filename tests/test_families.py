"""The face of a family: its size, its training, and bits as text."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import families
from gradbook.families import Model, Player, Recipe


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def model(*players):
    return Model(players, None, None, None)


def sized(count):
    """A builder whose models have as many parameters as the function says of their width."""

    def build(pixels, width, generator):
        return model(Player((torch.zeros(count(pixels, width)),), None))

    return build


def numbered(n):
    """Images that tell their index."""
    return torch.arange(n, dtype=torch.float64)[:, None]


def test_the_parameters_of_all_players_count():
    one = Player((torch.zeros(3), torch.zeros(2, 5)), None)
    two = Player((torch.zeros(4),), None)
    assert families.parameter_count(model(one, two)) == 3 + 10 + 4


@given(
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 3),
    st.integers(71, 5_000),
)
def test_the_size_is_the_one_that_comes_closest(slope, constant, curve, budget):
    def count(pixels, width):
        return slope * width + constant + curve * width**2

    (found,) = families.sizes({"one": sized(count)}, 1, budget + slope).values()
    gaps = {w: abs(count(1, w) - budget - slope) for w in range(1, budget + slope + 2)}
    assert gaps[found] == min(gaps.values())


def test_every_family_has_a_size_of_its_own_and_sees_the_pixels():
    builders = {"a": sized(lambda n, w: n * w), "b": sized(lambda n, w: n + 2 * w)}
    assert families.sizes(builders, 10, 100) == {"a": 10, "b": 45}


def test_a_budget_below_the_smallest_model_is_refused():
    builders = {"small": sized(lambda n, w: n * w)}
    assert families.sizes(builders, 10, 10) == {"small": 1}
    with pytest.raises(ValueError, match=r"^budget: 9 parameters are too few for small"):
        families.sizes(builders, 10, 9)


def test_one_player_moves_as_adam_with_a_rate_that_falls_to_zero():
    """The gradients differ from step to step: Adam would hide a constant factor otherwise."""
    images = numbered(7)
    recipe = Recipe(steps=5, batch=3, rate=0.1, betas=(0.8, 0.95))

    def loss(parameter, x):
        return ((parameter - x) ** 2 + parameter.sin()).mean()

    ours, theirs = weights(0.3), weights(0.3)
    player = Player((ours,), lambda x, g: loss(ours, x))
    seconds = families.train(model(player), images, recipe, generator(3))
    assert seconds > 0
    batches = families.minibatches(7, 3, generator(3))
    optimizer = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95))
    for rate in (0.1, 0.08, 0.06, 0.04, 0.02):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss(theirs, images[next(batches)]).backward()
        optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_a_players_loss_moves_only_its_own_weights():
    """In the game a b, a walks down and b up; the second sees the first's move."""
    a, b = weights(1.0), weights(1.0)
    seen = []

    def first(x, g):
        seen.append(("a", a.item(), b.item()))
        return (a * b).sum()

    def second(x, g):
        seen.append(("b", a.item(), b.item()))
        return -(a * b).sum()

    game = model(Player((a,), first), Player((b,), second))
    families.train(game, numbered(2), Recipe(1, 1, 0.25, (0.5, 0.9)), generator())
    # Adam's first step has the length of its rate, whatever the slope.
    assert (a.item(), b.item()) == pytest.approx((0.75, 1.25), abs=1e-6)
    assert seen == [("a", 1.0, 1.0), ("b", pytest.approx(0.75, abs=1e-6), 1.0)]


def test_both_players_see_the_batch_and_every_image_comes_once_a_pass():
    a, b = weights(1.0), weights(1.0)
    seen = {"a": [], "b": []}

    def watcher(name, weight):
        def loss(x, g):
            seen[name].append(tuple(x[:, 0].tolist()))
            return (weight * x.sum()).sum()

        return Player((weight,), loss)

    game = model(watcher("a", a), watcher("b", b))
    families.train(game, numbered(6), Recipe(4, 3, 0.1, (0.9, 0.99)), generator())
    assert seen["a"] == seen["b"]
    counts = Counter(index for batch in seen["a"] for index in batch)
    assert counts == dict.fromkeys(range(6), 2)


def test_a_batch_larger_than_the_set_is_refused():
    a = weights(1.0)
    player = Player((a,), lambda x, g: (a * x).sum())
    with pytest.raises(ValueError, match="^size: "):
        families.train(model(player), numbered(2), Recipe(1, 3, 0.1, (0.9, 0.99)), generator())


def test_chunks_together_are_one_call_without_gradients():
    sizes, scale = [], weights(2.0)

    def doubled(x):
        sizes.append(len(x))
        return scale * x

    found = families.in_chunks(doubled, numbered(7), 3)
    assert sizes == [3, 3, 1]
    assert torch.equal(found, 2 * numbered(7))
    assert not found.requires_grad


@given(st.lists(st.integers(1, 5), max_size=3), st.integers(0, 9))
def test_bits_survive_as_text(shape, seed):
    bits = torch.rand(shape, generator=generator(seed)).round()
    text = families.packed(bits)
    assert torch.equal(families.unpacked(text, *shape), bits.to(torch.uint8))


def test_text_is_base64_of_bytes_with_the_first_bit_highest():
    assert families.packed(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1])) == "gIA="


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: families.packed(torch.tensor([0.0, 0.5])), "bits: "),
        (lambda: families.packed(torch.tensor([2])), "bits: "),
        (lambda: families.unpacked("gIA=", 8), "text: holds 16 bits"),
        (lambda: families.unpacked("gIA=", 17), "text: holds 16 bits"),
    ],
)
def test_bad_bits_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
