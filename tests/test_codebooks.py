"""Codebooks: gradients of each loss, averages in closed form, k-means, the library people use."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_quantize_pytorch import VectorQuantize

from gradbook.codebook_starts import ones_start
from gradbook.codebooks import (
    CodebookState,
    code_sums,
    codebook_term,
    commitment_term,
    ema_update,
    perplexity,
    require_amounts,
    reversed_vq_loss,
    smoothed_means,
    vq_loss,
)
from gradbook.k_means import lloyd_step
from gradbook.nearest import nearest_code

N, K, D = 12, 5, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def codes(n, k, seed=0):
    return torch.randint(k, (n,), generator=generator(seed))


def some_state(k=K, d=D, seed=5):
    counts = normals(k, seed=seed).exp()
    return CodebookState(counts, normals(k, d, seed=seed + 1), normals(k, d, seed=seed + 2))


def gradients(loss, *arguments):
    leaves = [x.clone().requires_grad_() for x in arguments]
    slopes = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, slopes, strict=True)]


def test_losses_are_weighted_mean_squares():
    z, z_q = normals(N, D), normals(N, D, seed=1)
    mean = (z - z_q).square().mean()
    for loss in (codebook_term, commitment_term):
        torch.testing.assert_close(loss(z, z_q), mean, rtol=1e-14, atol=0)
    for loss in (vq_loss, reversed_vq_loss):
        torch.testing.assert_close(loss(z, z_q, 0.25), 1.25 * mean, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("loss", "of_z", "of_code"),
    [
        (codebook_term, 0, 1),
        (commitment_term, 1, 0),
        (lambda z, z_q: vq_loss(z, z_q, 0.25), 0.25, 1),
        (lambda z, z_q: reversed_vq_loss(z, z_q, 0.25), 1, 0.25),
    ],
)
def test_gradients_of_each_term_in_closed_form(loss, of_z, of_code):
    z, z_q = normals(N, D), normals(N, D, seed=1)
    slope = 2 * (z - z_q) / (N * D)
    at_z, at_code = gradients(loss, z, z_q)
    torch.testing.assert_close(at_z, of_z * slope, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(at_code, -of_code * slope, rtol=1e-13, atol=1e-16)


def test_gradients_of_each_term_by_finite_differences():
    """What is held constant takes no part: only the other argument is moved."""
    z, z_q, step = normals(2, D), normals(2, D, seed=1), 1e-6
    terms = ((codebook_term, 1), (commitment_term, 0))
    for term, moving in terms:
        slope = gradients(term, z, z_q)[moving]
        for i in range(z.numel()):
            shift = torch.zeros(z.numel()).double()
            shift[i] = step
            shift = shift.view_as(z)
            ends = [(z, z_q + s) if moving else (z + s, z_q) for s in (shift, -shift)]
            up, down = (term(*end) for end in ends)
            assert slope.flatten()[i].item() == pytest.approx((up - down).item() / (2 * step), 1e-7)


def test_a_shared_code_gets_the_sum_of_its_vectors_gradients():
    z, codebook = normals(N, D), normals(K, D, seed=1)
    indices = codes(N, K)
    (slope,) = gradients(lambda c: vq_loss(z, c[indices], 0.25), codebook)
    counts, sums = code_sums(z, indices, K)
    by_hand = 2 * (counts[:, None] * codebook - sums) / (N * D)
    torch.testing.assert_close(slope, by_hand, rtol=1e-13, atol=1e-15)


def test_losses_of_an_empty_batch_are_zero_and_so_are_their_gradients():
    none = torch.empty(0, D, dtype=torch.float64)
    for loss in (codebook_term, commitment_term):
        assert loss(none, none) == 0
    for loss in (vq_loss, reversed_vq_loss):
        assert loss(none, none, 0.25) == 0
    (slope,) = gradients(lambda c: vq_loss(none, c[:0], 0.25), normals(K, D))
    assert torch.equal(slope, torch.zeros(K, D).double())


@given(st.integers(0, 10**6), st.integers(0, 20), st.integers(1, 6))
def test_sums_are_those_of_one_hot_rows(seed, n, k):
    z, indices = normals(n, D, seed=seed), codes(n, k, seed)
    rows = torch.nn.functional.one_hot(indices, k).double()
    counts, sums = code_sums(z, indices, k)
    assert counts.dtype == z.dtype
    assert torch.equal(counts, rows.sum(0))
    torch.testing.assert_close(sums, rows.T @ z, rtol=1e-12, atol=1e-12)


def test_averages_of_one_batch_again_and_again_in_closed_form():
    """After t steps N = d^t N_0 + (1 - d^t) n, and m likewise."""
    state, decay, eps = some_state(), 0.9, 1e-3
    first, z, indices = state, normals(N, D), codes(N, K)
    n = torch.stack([(indices == k).sum() for k in range(K)]).double()
    s = torch.stack([z[indices == k].sum(0) for k in range(K)])
    for t in range(1, 21):
        state = ema_update(state, z, indices, decay, eps)
        kept = decay**t
        counts = kept * first.counts + (1 - kept) * n
        sums = kept * first.sums + (1 - kept) * s
        smoothed = (counts + eps) / (counts.sum() + K * eps) * counts.sum()
        torch.testing.assert_close(state.counts, counts, rtol=1e-12, atol=0)
        torch.testing.assert_close(state.sums, sums, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.codebook, sums / smoothed[:, None], rtol=1e-12, atol=0)


def test_twenty_steps_are_those_of_the_library_people_use():
    k, d, n, decay = 8, 4, 64, 0.99
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = VectorQuantize(d, codebook_size=k, decay=decay, rotation_trick=False).float()
    book = theirs._codebook
    assert book.eps == 1e-5
    assert (book.cluster_size == 1).all()
    assert torch.equal(book.embed_avg, book.embed)
    state = ones_start(book.embed[0].clone())
    for step in range(20):
        z = normals(n, d, seed=100 + step, dtype=torch.float32)
        indices = nearest_code(z, state.codebook)
        state = ema_update(state, z, indices, decay, 1e-5)
        _, found, _ = theirs(z[None])
        assert torch.equal(found[0], indices)
        pairs = zip(state, (book.cluster_size, book.embed_avg, book.embed), strict=True)
        for ours, other in pairs:
            torch.testing.assert_close(ours, other[0], rtol=1e-6, atol=1e-6)
    assert (state.counts > 1.01).any()


@given(st.integers(0, 10**6), st.integers(0, 12))
def test_without_decay_and_smoothing_a_step_is_one_of_k_means(seed, n):
    z, state = normals(n, D, seed=seed), some_state(seed=seed + 1)
    indices = nearest_code(z, state.codebook)
    after = ema_update(state, z, indices, 0.0, 0.0)
    for k in range(K):
        own = z[indices == k]
        if len(own):
            torch.testing.assert_close(after.codebook[k], own.mean(0), rtol=1e-12, atol=1e-13)
        else:
            assert torch.equal(after.codebook[k], state.codebook[k])
    theirs, _ = lloyd_step(z, state.codebook)
    torch.testing.assert_close(after.codebook, theirs, rtol=1e-12, atol=1e-12)


def test_smoothing_keeps_the_total_and_shrinks_a_code_out_of_use():
    state = CodebookState(torch.tensor([3.0, 1.0, 0.0]), torch.ones(3, 1), torch.ones(3, 1))
    counts, eps = state.counts.double(), 0.1
    codes = smoothed_means(counts, torch.ones(3, 1).double(), state.codebook.double(), eps)
    smoothed = 1 / codes[:, 0]
    assert smoothed.sum().item() == pytest.approx(4, rel=1e-14)
    torch.testing.assert_close(smoothed, 4 * (counts + 0.1) / 4.3, rtol=1e-14, atol=0)
    state = ones_start(normals(2, D))
    start, z, indices = state, normals(50, D), torch.zeros(50, dtype=torch.int64)
    lengths = []
    for _ in range(2000):
        state = ema_update(state, z, indices, 0.99, 1e-5)
        lengths.append((state.codebook[1].norm() / start.codebook[1].norm()).item())
    assert lengths[0] == pytest.approx(1, abs=2e-5)
    # Its count is then 0.99^1146, as much as eps.
    assert lengths[1145] == pytest.approx(0.5, abs=0.01)
    assert lengths[-1] < 1e-3


def test_an_empty_batch_lets_the_averages_decay_and_moves_no_code_unless_smoothed():
    state = some_state()
    state = state._replace(codebook=state.sums / state.counts[:, None])
    none, no_codes = torch.empty(0, D).double(), torch.empty(0, dtype=torch.int64)
    after = ema_update(state, none, no_codes, 0.9, 0.0)
    torch.testing.assert_close(after.counts, 0.9 * state.counts, rtol=1e-15, atol=0)
    torch.testing.assert_close(after.sums, 0.9 * state.sums, rtol=1e-15, atol=0)
    torch.testing.assert_close(after.codebook, state.codebook, rtol=1e-13, atol=0)
    for eps in (0.0, 1e-5):
        after = ema_update(state, none, no_codes, 0.0, eps)
        assert torch.equal(after.counts, torch.zeros(K).double())
        assert torch.equal(after.codebook, state.codebook)
    counts, sums = code_sums(none, no_codes, K)
    assert not counts.any()
    assert torch.equal(sums, torch.zeros(K, D).double())


def test_one_code_is_the_mean_and_the_second_of_two_equal_codes_stays():
    z = normals(N, D)
    one = ema_update(ones_start(normals(1, D)), z, codes(N, 1), 0.0, 0.0)
    torch.testing.assert_close(one.codebook[0], z.mean(0), rtol=1e-13, atol=1e-15)
    twice = normals(1, D, seed=3).repeat(2, 1)
    after = ema_update(ones_start(twice), z, nearest_code(z, twice), 0.0, 0.0)
    torch.testing.assert_close(after.codebook[0], z.mean(0), rtol=1e-13, atol=1e-15)
    assert torch.equal(after.codebook[1], twice[1])


def test_updates_leave_their_arguments_and_carry_no_gradient():
    state, z = some_state(), normals(N, D).requires_grad_()
    before = [part.clone() for part in state]
    after = ema_update(state, z, codes(N, K), 0.9, 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
    assert not any(part.requires_grad for part in after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_that_of_the_codes_whatever_the_default(dtype):
    state = CodebookState(*(part.to(dtype) for part in some_state()))
    torch.set_default_dtype(torch.float64)
    try:
        after = ema_update(state, normals(N, D, dtype=dtype), codes(N, K), 0.9, 1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {part.dtype for part in after} == {dtype}


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_perplexity_by_hand(indices):
    shares = [indices.count(k) / len(indices) for k in set(indices)]
    exact = math.exp(-sum(p * math.log(p) for p in shares))
    assert perplexity(torch.tensor(indices), 7).item() == pytest.approx(exact, rel=1e-12)


def test_perplexity_of_equal_shares_and_of_one_code():
    every = torch.arange(6).repeat(3).view(2, 9)
    assert perplexity(every, 6).item() == pytest.approx(6, rel=1e-14)
    assert perplexity(every, 100).item() == pytest.approx(6, rel=1e-14)
    one = torch.full((4,), 2)
    assert perplexity(one, 3) == 1


def nan(x):
    return torch.where(torch.arange(len(x))[:, None] == 1, float("nan"), x)


def update(state=None, z=None, indices=None, decay=0.9, eps=1e-5):
    state = some_state() if state is None else state
    z = normals(N, D) if z is None else z
    return ema_update(state, z, codes(N, K) if indices is None else indices, decay, eps)


NO_INDEX = torch.empty(0, dtype=torch.int64)
BAD = [
    (lambda: update(z=normals(N, D + 1)), "z: must fit"),
    (lambda: update(z=normals(N)), "z: must be rows"),
    (lambda: update(z=normals(N, D).float()), "z: must fit"),
    (lambda: update(z=nan(normals(N, D))), "z: must be finite"),
    (lambda: update(indices=codes(N, K) + 1), "indices: must be from 0 to 4"),
    (lambda: update(indices=codes(N, K) - 1), "indices: must be from 0 to 4"),
    (lambda: update(indices=codes(N, K).int()), "indices: must be int64"),
    (lambda: update(indices=codes(N - 1, K)), "indices: must be one for each"),
    (lambda: update(indices=codes(N, K)[:, None]), "indices: must be one for each"),
    (lambda: update(decay=1.1), "decay: "),
    (lambda: update(decay=-0.1), "decay: "),
    (lambda: update(decay=math.nan), "decay: "),
    (lambda: update(eps=-1e-9), "eps: "),
    (lambda: update(eps=math.inf), "eps: "),
    (lambda: update(some_state()._replace(counts=normals(K + 1).exp())), "state: must be"),
    (lambda: update(some_state()._replace(sums=normals(K + 1, D))), "state: must be"),
    (lambda: update(some_state()._replace(sums=normals(K, D + 1))), "sums: must fit"),
    (lambda: update(some_state()._replace(counts=-normals(K).exp())), "state: counts must not"),
    (lambda: update(some_state()._replace(sums=nan(normals(K, D)))), "state: must be finite"),
    (lambda: update(some_state(k=0), normals(0, D), NO_INDEX), "state: must be"),
    (lambda: update(some_state(d=0), normals(N, 0)), "state: must be rows"),
    (lambda: code_sums(normals(N, D).long(), codes(N, K), K), "z: must be rows"),
    (lambda: code_sums(nan(normals(N, D)), codes(N, K), K), "z: must be finite"),
    (lambda: perplexity(NO_INDEX, K), "indices: must not be empty"),
    (lambda: perplexity(codes(N, K), 2), "indices: must be from 0 to 1"),
    (lambda: perplexity(codes(N, K) * 0.5, K), "indices: must be int64"),
    (lambda: require_amounts(threshold=-1.0), "threshold: "),
]
for _loss in (vq_loss, reversed_vq_loss):
    BAD += [
        (lambda f=_loss: f(normals(N, D), normals(N, D), -0.1), "beta: "),
        (lambda f=_loss: f(normals(N, D), normals(N, D), math.nan), "beta: "),
    ]
for _term in (codebook_term, commitment_term):
    BAD += [
        (lambda f=_term: f(normals(N, D), normals(1, D)), "z_q: must have 12 rows"),
        (lambda f=_term: f(normals(N, D), normals(N, 1)), "z_q: must fit"),
        (lambda f=_term: f(normals(N, D), normals(N, D).float()), "z_q: must fit"),
        (lambda f=_term: f(normals(N, 2, D), normals(N, 2, D)), "z: must be rows"),
        (lambda f=_term: f(nan(normals(N, D)), normals(N, D)), "z: must be finite"),
        (lambda f=_term: f(normals(N, D), nan(normals(N, D))), "z_q: must be finite"),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
