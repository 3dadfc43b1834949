"""Windows that are cut from grids, priors that are told their places, and their training."""

import math

import pytest
import torch

from gradbook import sliding
from gradbook import window_priors as windowed
from gradbook.priors import CausalTransformer
from gradbook.window_priors import Windows


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


SIZES = (8, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integers(*shape, count=5, seed=0):
    return torch.randint(count, shape, generator=generator(seed))


def test_windows_are_cut_where_they_should():
    codes = torch.arange(2 * 4 * 5).view(2, 4, 5)
    which, tops, lefts = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([3, 0, 1])
    found = windowed.cut(codes, which, tops, lefts, 2)
    for n in range(3):
        top, left = tops[n], lefts[n]
        assert torch.equal(found.codes[n], codes[which[n], top : top + 2, left : left + 2])
    assert torch.equal(found.places, sliding.places(tops, lefts, 4, 5, 2))


def test_random_windows_are_those_of_the_sampler():
    """Every window comes as often as the sampler uses it, from every grid."""
    codes = torch.arange(2 * 5 * 6).view(2, 5, 6)
    found = windowed.random_windows(codes, 60_000, 3, generator())
    corners = found.codes[:, 0, 0]
    expected = torch.zeros(60)
    for n, i, j in torch.cartesian_prod(*map(torch.arange, (2, 5, 6))).tolist():
        where = sliding.window(i, j, 5, 6, 3)
        expected[codes[n, where.top, where.left]] += 1_000
    counts = corners.bincount(minlength=60)
    assert ((counts == 0) == (expected == 0)).all()
    assert ((counts - expected).abs() <= 4.5 * expected.sqrt()).all()
    which, rest = corners // 30, corners % 30
    again = windowed.cut(codes, which, rest // 6, rest % 6, 3)
    assert torch.equal(again.codes, found.codes)
    assert torch.equal(again.places, found.places)


def test_random_windows_follow_their_generator():
    codes = integers(3, 6, 6)
    first, again, other = (windowed.random_windows(codes, 9, 2, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)
    assert windowed.random_windows(codes, 0, 2, generator()).codes.shape == (0, 2, 2)


@pytest.mark.parametrize("make", [windowed.blind, windowed.placed])
def test_priors_come_from_their_seed(make):
    first, again, other = (make(3, 5, SIZES, seed) for seed in (7, 7, 8))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
        assert parameter.dtype == torch.float32
    assert not torch.equal(first.transformer.table, other.transformer.table)


def test_prefix_and_transformer_are_drawn_from_streams_of_their_own():
    built = windowed.placed(3, 5, SIZES, 7)
    expected = CausalTransformer(3, 3, 5, *SIZES, generator(7), 1)
    for one, two in zip(built.transformer.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    prefixes = [sliding.CoordinatePrefix(SIZES[0], generator(seed)) for seed in (10_007, 7)]
    weights = [prefix.linear.weight for prefix in prefixes]
    assert torch.equal(built.prefix.linear.weight, weights[0])
    assert not torch.equal(built.prefix.linear.weight, weights[1])


def test_only_one_kind_hears_of_places():
    blind, placed = (make(3, 5, SIZES, 7) for make in (windowed.blind, windowed.placed))
    codes = integers(4, 3, 3)
    near, far = (Windows(codes, torch.full((4, 2), share)) for share in (0.0, 1.0))
    assert torch.equal(blind.log_prob(near), blind.log_prob(far))
    assert torch.equal(blind.log_prob(near), blind.transformer.log_prob(codes))
    assert not torch.equal(placed.log_prob(near), placed.log_prob(far))
    expected = placed.transformer.log_prob(codes, placed.prefix(near.places))
    assert torch.equal(placed.log_prob(near), expected)


def test_what_is_told_of_a_window_is_its_place():
    placed = windowed.placed(3, 5, SIZES, 7)
    told = placed.prefix_of(6, 9)
    for i, j in ((0, 0), (4, 2), (2, 7)):
        where = sliding.window(i, j, 6, 9, 3)
        place = torch.tensor([[where.top / 3, where.left / 6]])
        torch.testing.assert_close(told(where), placed.prefix(place)[0])
    assert windowed.blind(3, 5, SIZES, 7).prefix_of(6, 9)(where).shape == (0, 8)


def test_what_is_told_is_on_the_device_of_the_prior(monkeypatch):
    # No vectors at all must be there too: a GPU adds no empty tensor of the CPU's.
    monkeypatch.setattr(windowed, "places", lambda tops, *_: tops.new_zeros(1, 2))
    told = windowed.blind(3, 5, SIZES, 7).to("meta").prefix_of(6, 9)
    assert told(sliding.window(0, 0, 6, 9, 3)).device.type == "meta"


def striped(n, seed=0):
    """Grids whose code is their column's number, at odds of nine to one: the place tells all."""
    noise = integers(n, 3, 6, count=6, seed=seed)
    kept = torch.rand(n, 3, 6, generator=generator(seed + 1)) < 0.9
    return torch.where(kept, torch.arange(6).expand(n, 3, 6), noise)


def test_training_lowers_the_bits_and_the_place_lowers_them_further():
    train, test = striped(200), striped(50, seed=5)
    every = torch.zeros(50, dtype=torch.int64)
    windows = windowed.cut(test, torch.arange(50), every, every + 2, 3)
    bits = {}
    for make in (windowed.blind, windowed.placed):
        model = make(3, 6, (16, 1, 2), 0)
        before = windowed.bits_per_code(model, windows)
        seconds = windowed.fit(model, [train], 0, 60, 2e-2, 32)
        bits[make] = windowed.bits_per_code(model, windows)
        assert bits[make] < before - 0.5
        assert seconds > 0
    # The blind one has to guess the first column alone: a ninth of its codes, mostly.
    assert bits[windowed.placed] < bits[windowed.blind] - 0.05


def test_training_is_that_of_a_loop(monkeypatch):
    sources = [integers(2, 5, 4), integers(1, 3, 7, seed=1)]
    model, other = (windowed.placed(2, 5, SIZES, 3) for _ in range(2))
    windowed.fit(model, sources, 11, 3, 1e-2, 4)
    optimizer = torch.optim.Adam(other.parameters(), lr=1.0, betas=(0.9, 0.95))
    order = generator(11)
    # Three steps: no warm-up to speak of, then a line down.
    for share in (1.0, 1.0, 0.5):
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        parts = [windowed.random_windows(codes, 4, 2, order) for codes in sources]
        codes, places = (torch.cat(pair) for pair in zip(*parts, strict=True))
        optimizer.zero_grad()
        (-other.log_prob(Windows(codes, places)).sum() / (8 * 4)).backward()
        optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_bits_are_means_over_windows_whatever_the_chunks(monkeypatch):
    model = windowed.placed(3, 5, SIZES, 7)
    windows = windowed.random_windows(integers(2, 6, 6), 11, 3, generator())
    log_probs = model.log_prob(windows).detach().double()
    expected = -log_probs.mean().item() / (9 * math.log(2))
    for chunk in (500, 4):
        monkeypatch.setattr(windowed, "CHUNK", chunk)
        assert windowed.bits_per_code(model, windows) == pytest.approx(expected, rel=1e-6)


def test_large_grids_are_drawn_with_the_places_told():
    model = windowed.placed(3, 5, SIZES, 7)
    found = windowed.drawn(model, 4, 7, 2, 13)
    noise = windowed.vae_training.gumbels(2, 4, 7, 5, generator=generator(13))
    expected = sliding.sample_large(model.transformer, 4, 7, noise, model.prefix_of(4, 7))
    assert torch.equal(found, expected)
    assert not torch.equal(found, windowed.drawn(model, 4, 7, 2, 14))


def bad_inputs():
    codes, one = integers(2, 4, 5), torch.tensor([1])
    model = windowed.blind(2, 5, SIZES, 0)
    empty = Windows(codes[:0, :2, :2], torch.zeros(0, 2))
    return [
        ("which", lambda: windowed.cut(codes, one + 1, one, one, 2)),
        ("which", lambda: windowed.cut(codes, one - 2, one, one, 2)),
        ("which", lambda: windowed.cut(codes, one.float(), one, one, 2)),
        ("which", lambda: windowed.cut(codes, torch.tensor([1, 1]), one, one, 2)),
        ("tops", lambda: windowed.cut(codes, one, one + 2, one, 2)),
        ("codes", lambda: windowed.cut(codes[0], one, one, one, 2)),
        ("codes", lambda: windowed.random_windows(codes[0], 1, 2, generator())),
        ("codes", lambda: windowed.random_windows(codes[:0], 1, 2, generator())),
        ("height", lambda: windowed.random_windows(codes, 1, 5, generator())),
        ("steps", lambda: windowed.fit(model, [codes], 0, 0, 1e-2, 4)),
        ("each", lambda: windowed.fit(model, [codes], 0, 1, 1e-2, 0)),
        ("sources", lambda: windowed.fit(model, [], 0, 1, 1e-2, 4)),
        ("codes", lambda: windowed.fit(model, [codes + 1], 0, 1, 1e-2, 4)),
        ("windows", lambda: windowed.bits_per_code(model, empty)),
        ("heads", lambda: windowed.placed(2, 5, (8, 1, 3), 0)),
        ("width", lambda: windowed.drawn(model, 2, 1, 1, 0)),
    ]


@pytest.mark.parametrize("case", range(16))
def test_bad_input_is_refused(case):
    name, call = bad_inputs()[case]
    with pytest.raises(ValueError, match=f"^{name}: "):
        call()
