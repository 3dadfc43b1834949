"""Starts of a codebook: four fates of a code out of use, restarts, k-means."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradbook import codebook_starts as starts
from gradbook.codebooks import CodebookState, code_sums, ema_update
from gradbook.k_means import distortion, k_means, k_means_plus_plus

N, K, D = 64, 8, 3
DECAY, EPS = 0.99, 1e-5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def codes(n, k, seed=0):
    return torch.randint(k, (n,), generator=generator(seed))


def growth(start, update):
    """How many times as long the unused codes are after one step in which code 0 has all."""
    codebook = normals(K, D)
    state = update(start(codebook), z=normals(N, D, seed=1), indices=codes(N, 1))
    ratios = state.codebook[1:] / codebook[1:]
    torch.testing.assert_close(ratios, ratios[0, 0].expand_as(ratios), rtol=1e-12, atol=0)
    return ratios[0, 0].item()


averaged = partial(ema_update, decay=DECAY, eps=EPS)
clamped = partial(starts.clamped_update, decay=DECAY, eps=EPS)
debiased = partial(starts.zero_debiased_update, steps=0, decay=DECAY, eps=EPS)


def test_ones_leave_an_unused_code_where_it_is():
    """The counts are 0.99 but for code 0, which has 0.99 + 0.64; smoothing moves the rest."""
    total = DECAY * K + (1 - DECAY) * N
    exact = DECAY / (DECAY + EPS) * (total + K * EPS) / total
    assert growth(starts.ones_start, averaged) == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(1, abs=2e-5)
    unsmoothed = partial(ema_update, decay=DECAY, eps=0)
    assert growth(starts.ones_start, unsmoothed) == pytest.approx(1, rel=1e-14)


def test_empty_counts_divide_an_unused_code_by_the_smoothing():
    total = (1 - DECAY) * N
    exact = DECAY / EPS * (total + K * EPS) / total
    assert growth(starts.empty_counts_start, averaged) == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(99_000, rel=2e-4)


def test_empty_counts_clamped_to_one_still_make_it_99_times_as_long():
    total = (1 - DECAY) * (N + K - 1)
    exact = DECAY / (1 - DECAY + EPS) * (total + K * EPS) / total
    assert growth(starts.empty_counts_start, clamped) == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(99, rel=1e-3)


def test_empty_averages_send_it_to_zero():
    assert growth(starts.empty_start, debiased) == 0
    unsmoothed = partial(starts.zero_debiased_update, steps=0, decay=DECAY, eps=0)
    assert growth(starts.empty_start, unsmoothed) == 1


def test_starts_hold_what_they_say():
    codebook = normals(K, D, dtype=torch.float32)
    ones, zeros, none = (
        start(codebook)
        for start in (starts.ones_start, starts.empty_counts_start, starts.empty_start)
    )
    for state in (ones, zeros, none):
        assert torch.equal(state.codebook, codebook)
        assert {part.dtype for part in state} == {torch.float32}
    assert torch.equal(ones.sums, codebook)
    assert torch.equal(zeros.sums, codebook)
    assert torch.equal(ones.counts, torch.ones(K))
    assert torch.equal(zeros.counts, torch.zeros(K))
    assert not none.counts.any()
    assert not none.sums.any()


def test_debiased_averages_weigh_the_batches_alone():
    """After t steps code k is the mean of its vectors with weights d^(t - i), which sum to 1."""
    decay, state = 0.8, starts.empty_start(normals(K, D))
    batches = [(normals(N, D, seed=i), codes(N, K, seed=50 + i)) for i in range(6)]
    for steps, (z, indices) in enumerate(batches):
        state = starts.zero_debiased_update(state, steps, z, indices, decay, 0.0)
        weights = [decay ** (steps - i) for i in range(steps + 1)]
        parts = [code_sums(*batch, K) for batch in batches[: steps + 1]]
        n, s = (sum(w * p[j] for w, p in zip(weights, parts, strict=True)) for j in (0, 1))
        torch.testing.assert_close(state.codebook, s / n[:, None], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(state.counts, (1 - decay) * n, rtol=1e-12, atol=0)


def test_debiasing_matters_to_the_smoothing():
    """The first averages are the batch's own counts, so eps stands beside n and not 0.01 n."""
    z, indices, eps = normals(N, D), codes(N, K), 0.5
    state = starts.zero_debiased_update(starts.empty_start(normals(K, D)), 0, z, indices, 0.99, eps)
    n, s = code_sums(z, indices, K)
    smoothed = (n + eps) / (N + K * eps) * N
    torch.testing.assert_close(state.codebook, s / smoothed[:, None], rtol=1e-11, atol=1e-13)


def test_clamping_changes_nothing_where_every_code_has_a_vector():
    state, z, indices = starts.ones_start(normals(K, D)), normals(N, D, seed=1), codes(N, K)
    assert (indices.bincount(minlength=K) > 0).all()
    for ours, plain in zip(clamped(state, z, indices), averaged(state, z, indices), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-14, atol=0)


def aged():
    """Codes 1, 4 and 6 are out of use."""
    counts = torch.tensor([3, 0.2, 1, 5, 0.9, 2, 0, 8]).double()
    return CodebookState(counts, normals(K, D, seed=2), normals(K, D, seed=3))


UNUSED = [1, 4, 6]


def test_codes_out_of_use_move_to_different_rows_and_the_others_stay():
    state, z = aged(), normals(N, D)
    after = starts.restart_unused(state, z, generator(), 1.0)
    used = [k for k in range(K) if k not in UNUSED]
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old[used], new[used])
    moved = after.codebook[UNUSED]
    rows = (moved[:, None] == z).all(2).nonzero()[:, 1]
    assert len(rows) == len(set(rows.tolist())) == 3
    assert torch.equal(after.sums[UNUSED], moved)
    assert (after.counts[UNUSED] == 1).all()


@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
def test_a_moved_code_is_its_row_after_the_next_update_and_not_below_the_threshold(threshold):
    z = normals(N, D)
    after = starts.restart_unused(aged(), z, generator(), threshold)
    assert (after.counts >= threshold).all()
    elsewhere = torch.zeros(N, dtype=torch.int64)
    for eps, bound in ((0.0, 1e-13), (EPS, 2e-5)):
        later = ema_update(after, z, elsewhere, DECAY, eps)
        moved = [1, 6]
        torch.testing.assert_close(later.codebook[moved], after.codebook[moved], rtol=bound, atol=0)


def test_rows_are_used_twice_only_when_all_are_used():
    z = normals(2, D)
    state = aged()._replace(counts=torch.zeros(K).double())
    after = starts.restart_unused(state, z, generator(), 1.0)
    times = (after.codebook[:, None] == z).all(2).sum(0)
    assert times.tolist() == [4, 4]


def test_every_row_is_as_likely():
    z, source = normals(4, D), generator(3)
    counts = torch.zeros(4)
    for _ in range(2000):
        after = starts.restart_unused(aged(), z, source, 0.1)
        counts += (after.codebook[6] == z).all(1)
    assert stats.chisquare(counts.numpy()).pvalue > stats.norm.sf(4.5)


def test_restarts_draw_as_much_whether_codes_move_or_not():
    one, two, z = generator(), generator(), normals(N, D)
    same = starts.restart_unused(aged(), z, one, 0.0)
    starts.restart_unused(aged(), z, two, 100.0)
    assert torch.equal(one.get_state(), two.get_state())
    assert not torch.equal(one.get_state(), generator().get_state())
    assert all(torch.equal(a, b) for a, b in zip(same, aged(), strict=True))


def test_an_empty_batch_restarts_nothing():
    after = starts.restart_unused(aged(), normals(0, D), generator(), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(after, aged(), strict=True))


def test_a_vector_is_put_in_use():
    """Two clusters and two codes in one of them: only the restart finds the other."""
    z = torch.cat([normals(50, D), 100 + normals(50, D, seed=1)])
    state = starts.ones_start(torch.tensor([[0.0], [1000.0]]).double().expand(2, D).contiguous())
    state = state._replace(counts=torch.tensor([50, 0.1]).double())
    seeds = [starts.restart_unused(state, z, generator(seed), 1.0) for seed in range(20)]
    assert min(distortion(z, after.codebook).item() for after in seeds) < 10
    assert distortion(z, state.codebook) > 10_000


@given(st.integers(0, 10**6))
def test_k_means_start_is_k_means_from_k_means_plus_plus(seed):
    z = normals(20, 2, seed=seed)
    ours = starts.k_means_start(z, 4, generator(seed), 3)
    start = k_means_plus_plus(z, 4, generator(seed))
    assert torch.equal(ours, k_means(z, start, 3))
    assert torch.equal(starts.k_means_start(z, 4, generator(seed), 0), start)
    assert distortion(z, ours) <= distortion(z, start)


def infinite(x):
    return torch.where(torch.arange(len(x))[:, None] == 1, float("inf"), x)


def debias(steps=0, decay=DECAY):
    state = starts.empty_start(normals(K, D))
    return starts.zero_debiased_update(state, steps, normals(N, D), codes(N, K), decay, EPS)


def restart(z=None, threshold=1.0):
    return starts.restart_unused(aged(), normals(N, D) if z is None else z, generator(), threshold)


BAD = [
    (lambda: debias(steps=-1), "steps: "),
    (lambda: debias(decay=1), "decay: must be less than 1"),
    (lambda: debias(decay=1.5), "decay: "),
    (lambda: clamped(aged(), normals(N, D), codes(N, K) + K), "indices: "),
    (lambda: clamped(aged(), infinite(normals(N, D)), codes(N, K)), "z: must be finite"),
    (lambda: clamped(aged(), normals(N, D + 1), codes(N, K)), "z: must fit"),
    (lambda: restart(normals(N, D + 1)), "z: must fit"),
    (lambda: restart(infinite(normals(N, D))), "z: must be finite"),
    (lambda: restart(threshold=-1), "threshold: "),
    (lambda: restart(threshold=math.nan), "threshold: "),
    (lambda: starts.k_means_start(normals(0, D), 2, generator(), 1), "z: "),
    (lambda: starts.k_means_start(normals(N, D), 0, generator(), 1), "k: "),
    (lambda: starts.k_means_start(normals(N, D), 2, generator(), -1), "steps: "),
]
for _start in (starts.ones_start, starts.empty_counts_start, starts.empty_start):
    BAD += [
        (lambda f=_start: f(normals(K)), "codebook: must be rows"),
        (lambda f=_start: f(normals(0, D)), "codebook: must have a code"),
        (lambda f=_start: f(normals(K, D).long()), "codebook: must be rows"),
        (lambda f=_start: f(infinite(normals(K, D))), "codebook: must be finite"),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
