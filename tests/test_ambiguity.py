"""A code that stands for several pictures, and the answer that each loss likes best."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook import adversarial, ambiguity

SEEDS = st.integers(0, 1000)
N, WIDTH = 16, 4
CODE = 1


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "cpu")


def normals(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def law(*shape, seed=2):
    return normals(*shape, seed=seed).softmax(-1)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def toy():
    """The law of one code, and all pictures."""
    return ambiguity.posteriors(N - 1, WIDTH)[CODE], ambiguity.pictures(N)


def slopes(x):
    return x.diff().abs()


def pooled(width):
    return partial(ambiguity.pooled_energy, width=width)


def test_pictures_have_one_edge():
    exact = tensor([0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1])
    assert torch.equal(ambiguity.pictures(4), exact)
    assert torch.equal(ambiguity.pictures(N).diff().nonzero()[:, 1], torch.arange(N - 1))


def test_lines_have_one_bright_pixel():
    assert torch.equal(ambiguity.lines(3), tensor([1, 0, 0], [0, 1, 0], [0, 0, 1]))


def test_the_last_code_may_have_fewer_pictures():
    exact = tensor([1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 2]) / 2
    assert torch.equal(ambiguity.posteriors(5, 2), exact)


@given(count=st.integers(1, 20), width=st.integers(1, 25))
def test_every_picture_has_one_code(count, width):
    laws = ambiguity.posteriors(count, width)
    assert torch.equal((laws > 0).sum(0), torch.ones(count).long())
    assert ((laws > 0).sum(1) <= width).all()
    torch.testing.assert_close(laws.sum(1), torch.ones(len(laws)).double())


def test_features_by_hand():
    x = tensor([0, 2, 1, 1, 4], [1, 1, 1, 1, 1])
    assert torch.equal(ambiguity.pooled_energy(x, 1), tensor([4, 1, 0, 9], [0, 0, 0, 0]))
    assert torch.equal(ambiguity.pooled_energy(x, 3), tensor([5, 9], [0, 0]))
    assert torch.equal(ambiguity.pooled_energy(x, 9), tensor([14], [0]))


def by_loops(x, p, pictures, cost):
    return sum(chance * cost(x, row) for chance, row in zip(p, pictures, strict=True))


def test_expectations_by_loops():
    p, pictures, x = law(5), normals(5, 3), normals(3, seed=4)
    pixels = range(3)
    exact = by_loops(x, p, pictures, lambda a, b: sum((a[i] - b[i]) ** 2 for i in pixels))
    torch.testing.assert_close(ambiguity.expected_squared(x, p, pictures), exact)
    exact = by_loops(x, p, pictures, lambda a, b: sum(abs(a[i] - b[i]) for i in pixels))
    torch.testing.assert_close(ambiguity.expected_absolute(x, p, pictures), exact)
    exact = by_loops(x, p, pictures, lambda a, b: ((a**3).sum() - (b**3).sum()) ** 2)
    ours = ambiguity.expected_distance(x, p, pictures, lambda v: (v**3).sum(-1, keepdim=True))
    torch.testing.assert_close(ours, exact)


@given(seed=SEEDS)
def test_squared_error_is_the_variance_and_the_distance_from_the_mean(seed):
    """So nothing else is as good as the mean."""
    p, pictures, x = law(5, seed=seed), normals(5, 3, seed=seed + 1), normals(3, seed=seed + 2)
    mean = ambiguity.best_squared(p, pictures)
    least = ambiguity.expected_squared(mean, p, pictures)
    variance = (p @ pictures.square() - mean.square()).sum()
    torch.testing.assert_close(least, variance)
    ours = ambiguity.expected_squared(x, p, pictures)
    torch.testing.assert_close(ours, least + (x - mean).square().sum())


@settings(max_examples=30)
@given(seed=SEEDS, levels=st.integers(1, 4))
def test_median_is_the_best_by_enumeration(seed, levels):
    """Absolute error is piecewise linear: it is enough to try the values that occur."""
    p = law(4, seed=seed)
    pictures = normals(4, 3, seed=seed + 1).mul(levels).round()
    tries = tensor(*itertools.product(*(column.tolist() for column in pictures.T)))
    least = ambiguity.expected_absolute(tries, p, pictures).min()
    ours = ambiguity.expected_absolute(ambiguity.best_absolute(p, pictures), p, pictures)
    torch.testing.assert_close(ours, least, rtol=1e-13, atol=1e-13)


def test_median_of_a_half_is_the_lesser_value():
    pictures = tensor([3.0], [1.0], [2.0], [5.0])
    assert torch.equal(ambiguity.best_absolute(tensor(1, 1, 1, 1) / 4, pictures), tensor(2))
    # The first half of these, added up one by one, rounds to less than a half.
    p = torch.full((28,), 1 / 28, dtype=torch.float64)
    assert p.cumsum(0)[13] < 0.5
    rows = torch.arange(28, dtype=torch.float64)[:, None]
    assert ambiguity.best_absolute(p, rows).item() == 13


def test_squared_error_blurs_the_edge():
    p, pictures = toy()
    ramp = tensor(0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1)
    assert torch.equal(ambiguity.best_squared(p, pictures), ramp)


def test_absolute_error_keeps_one_of_the_middle_edges_and_drops_a_line():
    p, pictures = toy()
    median = ambiguity.best_absolute(p, pictures)
    middle = (pictures[5], pictures[6])
    assert any(torch.equal(median, edge) for edge in middle)
    costs = ambiguity.expected_absolute(pictures, p, pictures)
    torch.testing.assert_close(costs[5:7], costs.min().expand(2))
    lines, p = ambiguity.lines(N), ambiguity.posteriors(N, WIDTH)[CODE]
    assert torch.equal(ambiguity.best_absolute(p, lines), torch.zeros(N).double())


def test_features_that_keep_the_place_are_best_at_the_mean():
    """Its slopes are the mean of the slopes, and no features are nearer than their mean."""
    p, pictures = toy()
    mean = ambiguity.best_squared(p, pictures)
    torch.testing.assert_close(slopes(mean), p @ slopes(pictures))
    cost = ambiguity.expected_distance(mean, p, pictures, slopes)
    torch.testing.assert_close(cost, 1 - p.square().sum())
    best = ambiguity.best_of_features(p, pictures, slopes)
    assert best.nonzero().flatten().tolist() == [N - 1]


@pytest.mark.parametrize(("width", "sharp"), [(1, False), (2, False), (4, True), (8, True)])
def test_features_that_pool_the_place_away_are_best_at_a_sharp_edge(width, sharp):
    p, pictures = toy()
    best = ambiguity.best_of_features(p, pictures, pooled(width))
    # The windows of 8 hold the pictures of two codes.
    kept = range(8 - width, 8) if sharp else [N - 1]
    assert best.nonzero().flatten().tolist() == list(kept)
    costs = ambiguity.expected_distance(pictures, p, pictures, pooled(width))
    assert (costs.min() == 0).item() is sharp


def test_with_pixels_a_row_that_is_no_picture_is_better_than_all_of_them():
    """Its jumps have the energy of one edge: a texture that never occurs."""
    p, pictures = toy()

    def both(x):
        return torch.cat([x, ambiguity.pooled_energy(x, WIDTH)], -1)

    made_up = ambiguity.pictures(N)[5].clone()
    made_up[4:10] = tensor(-0.06, 0.15, 0.72, 0.5, 1.18, 1.01)
    choice = torch.stack([made_up, *pictures, ambiguity.best_squared(p, pictures)])
    costs = ambiguity.expected_distance(choice, p, pictures, both)
    assert costs[0] < 0.8
    assert costs[1:].min().item() == pytest.approx(1, rel=1e-12)
    assert ambiguity.expected_game(made_up, p, pictures).item() == 1


def test_mask_of_features_by_enumeration():
    laws, pictures = law(3, 5), normals(5, 4)
    masks = ambiguity.best_of_features(laws, pictures, lambda x: x**2)
    for p, mask in zip(laws, masks, strict=True):
        choice = [*pictures, p @ pictures]
        costs = [
            by_loops(x, p, pictures, lambda a, b: (a**2 - b**2).square().sum()) for x in choice
        ]
        assert mask.tolist() == [cost == min(costs) for cost in costs]


def test_in_the_game_any_likely_picture_will_do_and_no_blur():
    laws, pictures = ambiguity.posteriors(N - 1, WIDTH), ambiguity.pictures(N)
    assert torch.equal(ambiguity.best_adversarial(laws, pictures), laws > 0)
    for p in laws:
        blur = ambiguity.best_squared(p, pictures)
        assert ambiguity.expected_game(blur, p, pictures).item() == 1


def test_the_most_likely_picture_is_the_best_and_equal_ones_count_together():
    pictures = tensor([0, 1], [1, 0], [1, 0])
    p = tensor(0.4, 0.3, 0.3)
    assert ambiguity.best_adversarial(p, pictures).tolist() == [False, True, True]
    costs = ambiguity.expected_game(pictures, p, pictures)
    torch.testing.assert_close(costs, tensor(0.6, 0.4, 0.4))


@given(seed=SEEDS)
def test_game_is_what_the_best_discriminator_leaves(seed):
    """The hinge loss on the finite set of all pictures and one row that is none."""
    p, pictures = law(N - 1, seed=seed), ambiguity.pictures(N)
    choice = torch.cat([pictures, ambiguity.best_squared(p, pictures)[None]])
    real = torch.cat([p, tensor(0)]).expand(N, -1)
    fake = torch.eye(N, dtype=torch.float64)
    scores = adversarial.best_scores(real, fake)
    least = adversarial.expected_hinge(real, fake, scores)
    ours = ambiguity.expected_game(choice, p, pictures)
    torch.testing.assert_close(ours, 1 - least, rtol=1e-13, atol=1e-13)


def test_a_discriminator_that_knows_the_blur_pulls_to_any_picture():
    p, pictures = toy()
    real, blur = torch.cat([p, tensor(0)]), torch.eye(N, dtype=torch.float64)[-1]
    scores = adversarial.best_scores(real, blur)
    answers = torch.eye(N, dtype=torch.float64)
    losses = adversarial.expected_generator_loss(answers, scores.expand(N, -1))
    assert torch.equal(losses == losses.min(), real > 0)
    assert losses[-1] == losses.max() == 1


def test_laws_of_several_codes_at_once():
    laws, pictures = law(2, 3, 5), normals(5, 4).round()
    for function in (
        ambiguity.best_squared,
        ambiguity.best_absolute,
        ambiguity.best_adversarial,
        partial(ambiguity.best_of_features, features=slopes),
    ):
        at_once = function(laws, pictures)
        one_by_one = torch.stack([function(p, pictures) for p in laws.flatten(0, 1)])
        assert torch.equal(at_once.flatten(0, 1), one_by_one)
    x = normals(2, 3, 4, seed=6)
    for cost in (ambiguity.expected_squared, ambiguity.expected_absolute, ambiguity.expected_game):
        pairs = zip(x.flatten(0, 1), laws.flatten(0, 1), strict=True)
        one_by_one = torch.stack([cost(row, p, pictures) for row, p in pairs])
        torch.testing.assert_close(cost(x, laws, pictures).flatten(), one_by_one)


def test_no_laws_have_no_answers():
    none, pictures = torch.empty(0, 5).double(), normals(5, 4)
    assert ambiguity.best_squared(none, pictures).shape == (0, 4)
    assert ambiguity.best_absolute(none, pictures).shape == (0, 4)
    assert ambiguity.best_adversarial(none, pictures).shape == (0, 5)
    masks = ambiguity.best_of_features(none, pictures, slopes)
    assert masks.shape == (0, 6)
    x = torch.empty(0, 4).double()
    for cost in (ambiguity.expected_squared, ambiguity.expected_absolute, ambiguity.expected_game):
        assert cost(x, none, pictures).shape == (0,)
    assert ambiguity.pooled_energy(x, 2).shape == (0, 2)


def test_float32_stays_float32():
    p, pictures = law(5).float(), normals(5, 4).float()
    assert ambiguity.best_squared(p, pictures).dtype == torch.float32
    assert ambiguity.best_absolute(p, pictures).dtype == torch.float32


P, ROWS = law(3), normals(3, 4)
BAD = [
    (lambda: ambiguity.pictures(1), "n: must be at least 2"),
    (lambda: ambiguity.lines(1), "n: must be at least 2"),
    (lambda: ambiguity.posteriors(0, 1), "count: "),
    (lambda: ambiguity.posteriors(3, 0), "width: "),
    (lambda: ambiguity.pooled_energy(tensor(1)[0], 2), "x: must be rows"),
    (lambda: ambiguity.pooled_energy(torch.tensor([1, 2]), 2), "x: must be rows"),
    (lambda: ambiguity.pooled_energy(normals(3, 2) / 0, 2), "x: must be finite"),
    (lambda: ambiguity.pooled_energy(normals(3, 1), 2), "x: must be rows"),
    (lambda: ambiguity.pooled_energy(normals(3, 2), 0), "width: "),
]
for _best in (
    ambiguity.best_squared,
    ambiguity.best_absolute,
    ambiguity.best_adversarial,
    partial(ambiguity.best_of_features, features=slopes),
):
    BAD += [
        (lambda f=_best: f(2 * P, ROWS), "p: must sum to 1"),
        (lambda f=_best: f(tensor(1, 0.5, -0.5), ROWS), "p: must not be negative"),
        (lambda f=_best: f(law(4), ROWS), "p: must be \\[..., 3\\]"),
        (lambda f=_best: f(P.float(), ROWS), "p: must be \\[..., 3\\]"),
        (lambda f=_best: f(P, ROWS[0]), "pictures: must be numbers"),
        (lambda f=_best: f(P, ROWS.long()), "pictures: must be numbers"),
        (lambda f=_best: f(P[:0], ROWS[:0]), "pictures: must be numbers"),
        (lambda f=_best: f(P, ROWS / 0), "pictures: must be finite"),
    ]
for _cost in (
    ambiguity.expected_squared,
    ambiguity.expected_absolute,
    ambiguity.expected_game,
):
    BAD += [
        (lambda f=_cost: f(ROWS[0, :3], P, ROWS), "x: must be rows \\[..., 4\\]"),
        (lambda f=_cost: f(ROWS[0].long(), P, ROWS), "x: must be rows"),
        (lambda f=_cost: f(ROWS[0] / 0, P, ROWS), "x: must be finite"),
        (lambda f=_cost: f(ROWS[0], 2 * P, ROWS), "p: must sum to 1"),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
