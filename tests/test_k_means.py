"""k-means: steps that are means, distortion that falls, scikit-learn's centres, k-means++'s odds."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.cluster import KMeans

from gradbook.k_means import distortion, k_means, k_means_plus_plus, lloyd_step
from gradbook.nearest import squared_distances


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def step_by_hand(z, codebook):
    """Means of groups, one code at a time."""
    nearest = squared_distances(z, codebook).argmin(1)
    rows, counts = codebook.clone(), []
    for k in range(len(codebook)):
        own = z[nearest == k]
        counts.append(len(own))
        if len(own):
            rows[k] = own.mean(0)
    return rows, torch.tensor(counts)


SIZES = {
    "n": st.integers(1, 30),
    "k": st.integers(1, 12),
    "d": st.integers(1, 4),
    "seed": st.integers(0, 1000),
}


@given(**SIZES)
def test_a_step_moves_codes_to_their_means_and_leaves_the_others(n, k, d, seed):
    z, codebook = normals(n, d, seed=seed), 2 * normals(k, d, seed=seed + 1)
    moved, counts = lloyd_step(z, codebook)
    by_hand, counts_by_hand = step_by_hand(z, codebook)
    torch.testing.assert_close(moved, by_hand, rtol=1e-12, atol=1e-12)
    assert torch.equal(counts, counts_by_hand)
    assert counts.dtype == torch.int64
    assert torch.equal(moved[counts == 0], codebook[counts == 0])


@given(**SIZES)
def test_no_step_raises_the_distortion(n, k, d, seed):
    z, codebook = normals(n, d, seed=seed), normals(k, d, seed=seed + 1)
    before = distortion(z, codebook)
    for _ in range(4):
        codebook, _ = lloyd_step(z, codebook)
        after = distortion(z, codebook)
        assert after <= before * (1 + 1e-13)
        before = after


def test_a_step_keeps_the_digits_of_vectors_far_from_the_origin():
    z = normals(5000, 3, dtype=torch.float32) / 512 + 10
    moved, counts = lloyd_step(z, z[:2].clone())
    nearest = squared_distances(z, z[:2]).argmin(1)
    means = torch.stack([z.double()[nearest == k].mean(0) for k in (0, 1)])
    assert counts.tolist() == nearest.bincount().tolist()
    # Half a unit in the last place of numbers from 8 to 16.
    torch.testing.assert_close(moved.double(), means, rtol=0.0, atol=2.0**-20)


def test_distortion_is_the_mean_of_the_smallest_squared_distance():
    z, codebook = normals(20, 3), normals(5, 3, seed=1)
    expected = squared_distances(z, codebook).amin(1).mean()
    torch.testing.assert_close(distortion(z, codebook), expected, rtol=1e-13, atol=0.0)
    assert distortion(z, z) == 0


def test_distortion_has_the_gradient_that_a_step_sets_to_zero():
    z, codebook = normals(20, 3), normals(5, 3, seed=1).requires_grad_()
    distortion(z, codebook).backward()
    moved, counts = lloyd_step(z, codebook)
    by_hand = 2 * counts[:, None] * (codebook.detach() - moved) / len(z)
    torch.testing.assert_close(codebook.grad, by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_k_means_gives_the_centres_of_scikit_learn(steps):
    z = normals(400, 3) + 4 * normals(6, 3, seed=1)[torch.arange(400) % 6]
    start = z[:6]
    peer = KMeans(6, init=start.numpy(), n_init=1, max_iter=steps, algorithm="lloyd", tol=0.0)
    peer.fit(z.numpy())
    ours = k_means(z, start, steps)
    _, counts = lloyd_step(z, ours)
    assert counts.min() > 0
    torch.testing.assert_close(ours, torch.tensor(peer.cluster_centers_), rtol=1e-11, atol=1e-12)


def test_k_means_takes_so_many_steps():
    z, start = normals(100, 2), normals(7, 2, seed=1)
    assert torch.equal(k_means(z, start, 0), start)
    codebook = start
    for steps in range(1, 6):
        codebook, _ = lloyd_step(z, codebook)
        assert torch.equal(k_means(z, start, steps), codebook)
        assert not torch.equal(codebook, k_means(z, start, steps - 1))


def test_many_steps_end_where_another_moves_nothing():
    z = normals(50, 2)
    codebook = k_means(z, z[:4], 40)
    again, counts = lloyd_step(z, codebook)
    torch.testing.assert_close(again, codebook, rtol=0.0, atol=1e-15)
    assert counts.min() > 0


def test_vectors_that_are_codes_are_a_fixed_point():
    z = normals(9, 3, dtype=torch.float32) / 512 + 10
    moved, counts = lloyd_step(z, z)
    assert torch.equal(moved, z)
    assert counts.tolist() == [1] * 9


def test_k_means_returns_a_codebook_of_its_own():
    z, start = normals(10, 2), normals(3, 2, seed=1).requires_grad_()
    for steps in (0, 2):
        codebook = k_means(z, start, steps)
        assert not codebook.requires_grad
        codebook.zero_()
        assert torch.equal(start, normals(3, 2, seed=1))


def test_no_vectors_move_no_code():
    codebook = normals(3, 2)
    moved, counts = lloyd_step(normals(0, 2), codebook)
    assert torch.equal(moved, codebook)
    assert counts.tolist() == [0, 0, 0]
    assert torch.equal(k_means(normals(0, 2), codebook, 3), codebook)


def odds(z, k):
    """The probability of every ordered choice of k rows, from the definition."""
    result = {}
    for choice in itertools.product(range(len(z)), repeat=k):
        chance = 1 / len(z)
        for i in range(1, k):
            nearest = squared_distances(z, z[list(choice[:i])]).amin(1)
            chance *= (nearest / nearest.sum())[choice[i]].item()
        result[choice] = chance
    return result


LINE = tensor([[0.0], [1.0], [3.0], [3.5]])


def rows_of(codebook, z):
    return tuple(squared_distances(codebook, z).argmin(1).tolist())


def test_k_means_plus_plus_has_its_exact_odds():
    chances = odds(LINE, 3)
    assert sum(chances.values()) == pytest.approx(1, rel=1e-12)
    draws, source = 6000, generator()
    counts = dict.fromkeys(chances, 0)
    for _ in range(draws):
        counts[rows_of(k_means_plus_plus(LINE, 3, source), LINE)] += 1
    assert all(counts[choice] == 0 for choice, chance in chances.items() if chance == 0)
    possible = [choice for choice, chance in chances.items() if chance > 0]
    observed = [counts[choice] for choice in possible]
    expected = [draws * chances[choice] for choice in possible]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_a_draw_inverts_the_distribution_function(monkeypatch):
    """Every uniform from a grid, so that the shares are the probabilities themselves."""
    uniforms = iter(())
    monkeypatch.setattr(torch, "rand", lambda *_, **__: tensor([next(uniforms)]))
    z = tensor([[0.0], [1.0], [0.0], [2.0]])
    picks = []
    for i in range(5):
        # The first code is row 0; squared distances from it are 0, 1, 0, 4.
        uniforms = iter([0.0, i / 5])
        picks.append(k_means_plus_plus(z, 2, generator())[1].item())
    assert picks == [1, 2, 2, 2, 2]
    picks = []
    for u in (0.0, 0.249, 0.25, 0.5, 0.75, 1 - 2.0**-53):
        uniforms = iter([u])
        picks.append(rows_of(k_means_plus_plus(LINE, 1, generator()), LINE)[0])
    assert picks == [0, 0, 1, 2, 3, 3]


@given(n=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_different_vectors_are_drawn_once_each(n, k, seed):
    z = normals(n, 2, seed=seed)
    codebook = k_means_plus_plus(z, k, generator(seed))
    assert codebook.shape == (k, 2)
    assert (squared_distances(codebook, z).amin(1) == 0).all()
    assert len(codebook.unique(dim=0)) == min(n, k)


def test_once_all_distances_are_zero_the_draws_are_uniform():
    z = tensor([[0.0, 1.0]] * 3)
    assert torch.equal(k_means_plus_plus(z, 5, generator()), z[[0] * 5])
    pair = tensor([[0.0], [1.0]])
    drawn = k_means_plus_plus(pair, 2002, generator())[2:]
    assert abs(drawn.mean().item() - 0.5) <= 4.5 * 0.5 / math.sqrt(2000)


def test_a_seed_gives_the_same_draws():
    z = normals(30, 2)
    one, two = (k_means_plus_plus(z, 5, generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, k_means_plus_plus(z, 5, generator(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept(dtype):
    z = normals(30, 2).to(dtype)
    codebook = k_means_plus_plus(z, 4, generator())
    assert codebook.dtype == dtype
    assert k_means(z, codebook, 3).dtype == dtype
    assert distortion(z, codebook).dtype == dtype


def test_k_means_plus_plus_starts_better_than_uniform_rows():
    z = normals(600, 2) / 20 + 10 * normals(12, 2, seed=1)[torch.arange(600) % 12]
    source = generator(2)
    uniform = [z[torch.randperm(600, generator=source)[:12]] for _ in range(20)]
    ours = [k_means_plus_plus(z, 12, source) for _ in range(20)]
    plain, better = (sum(distortion(z, c).item() for c in starts) for starts in (uniform, ours))
    assert better < plain / 2


Z, CODES = normals(5, 3), normals(4, 3, seed=1)
NAN = torch.full_like(Z, math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lloyd_step(NAN, CODES), "z: must be finite"),
        (lambda: lloyd_step(Z, CODES[:, :2]), "codebook: must have rows of length 3"),
        (lambda: distortion(Z, CODES[:0]), "codebook: must have rows"),
        (lambda: distortion(Z[:0], CODES), "z: must have at least one vector"),
        (lambda: k_means(Z, CODES.float(), 1), "codebook: must have the dtype"),
        (lambda: k_means(Z, CODES, -1), "steps: must be at least 0"),
        (lambda: k_means_plus_plus(Z[0], 2, generator()), "z: must be floats"),
        (lambda: k_means_plus_plus(Z.long(), 2, generator()), "z: must be floats"),
        (lambda: k_means_plus_plus(Z[:0], 2, generator()), "z: must have at least one vector"),
        (lambda: k_means_plus_plus(NAN, 2, generator()), "z: must be finite"),
        (lambda: k_means_plus_plus(1e200 * Z, 2, generator()), "z: its squared distances overflow"),
        (lambda: k_means_plus_plus(Z, 0, generator()), "k: must be at least 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
