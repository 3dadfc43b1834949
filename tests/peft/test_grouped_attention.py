"""Attention with heads in groups: its formula, torch's, the share of a prefix, masks, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradbook.peft import grouped_attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def some_mask(*shape, seed=0):
    """A random mask in which every query sees the first position at least."""
    mask = torch.rand(shape, generator=generator(seed)) < 0.6
    mask[..., 0] = True
    return mask


def close(a, b, bound=1e-12):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


SIZES = {
    "groups": st.integers(1, 3),
    "heads": st.integers(1, 2),
    "queries": st.integers(1, 4),
    "n": st.integers(1, 4),
    "content": st.integers(1, 5),
    "d": st.integers(1, 4),
    "seed": st.integers(0, 1000),
}


def some(groups, heads, queries, n, content, d, seed):
    """Queries, keys and values of prefix and content for two texts, and a mask of the content."""
    sizes = [(groups * heads, queries), (heads, n), (heads, n), (heads, content), (heads, content)]
    tensors = [normal(2, *size, d, seed=seed + i) for i, size in enumerate(sizes)]
    return *tensors, some_mask(2, 1, queries, content, seed=seed)


@settings(max_examples=25)
@given(**SIZES)
def test_attention_is_its_formula_and_torchs(**sizes):
    q, _, _, k, v, mask = some(**sizes)
    group = sizes["groups"]
    expected = functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    ours = grouped_attention.attention(q, k, v, mask)
    close(ours, expected)
    for head in range(q.shape[1]):
        key, value = k[0, head // group], v[0, head // group]
        weights = (q[0, head, 0] @ key.T / sizes["d"] ** 0.5).exp() * mask[0, 0, 0]
        close(ours[0, head, 0], weights @ value / weights.sum())
    close(
        grouped_attention.attention(q, k, v),
        grouped_attention.attention(q, k, v, torch.ones_like(mask)),
    )


@settings(max_examples=60)
@given(**SIZES)
def test_attention_over_both_is_mixed_by_the_share_of_the_prefix(**sizes):
    q, k_prefix, v_prefix, k, v, mask = some(**sizes)
    share = grouped_attention.prefix_share(q, k_prefix, k, mask)
    assert share.shape == q.shape[:-1]
    seen = torch.cat([torch.ones(*mask.shape[:-1], sizes["n"], dtype=torch.bool), mask], -1)
    keys, values = torch.cat([k_prefix, k], -2), torch.cat([v_prefix, v], -2)
    content = grouped_attention.attention(q, k, v, mask)
    alone = grouped_attention.attention(q, k_prefix, v_prefix)
    share = share[..., None]
    mixed = (1 - share) * content + share * alone
    close(grouped_attention.attention(q, keys, values, seen), mixed, 1e-14)


def test_the_share_does_not_overflow():
    q = torch.tensor([[[1.0]]], dtype=torch.float64)
    zero, one = q - 1, q
    for factor in (1e6, -1e6):
        expected = functional.softmax(torch.tensor([0.0, 2.0], dtype=torch.float64), 0)[1]
        close(
            grouped_attention.prefix_share(q, factor * one + 2, factor * one).item(),
            expected.item(),
            1e-9,
        )
    assert grouped_attention.prefix_share(q, 1e6 * one, zero) == 1
    assert grouped_attention.prefix_share(q, -1e6 * one, zero) == 0
    assert grouped_attention.prefix_share(q, one, one, torch.zeros(1, 1, dtype=torch.bool)) == 1


def test_an_empty_batch_gives_an_empty_result():
    k = normal(0, 2, 3, 4)
    assert grouped_attention.attention(normal(0, 4, 5, 4), k, k).shape == (0, 4, 5, 4)
    assert grouped_attention.split_heads(k, 2).shape == (0, 2, 2, 3, 2)


def test_weights_are_the_softmax_of_the_scores_under_either_mask():
    q, k, mask = normal(2, 4, 5, 3), normal(2, 2, 6, 3, seed=1), some_mask(2, 1, 5, 6)
    shares = grouped_attention.weights(q, k, mask)
    close(shares, grouped_attention.scores(q, k, mask.double().log()).softmax(-1))
    assert torch.equal(shares != 0, mask.expand_as(shares))
    added = normal(2, 1, 5, 6, seed=2)
    expected = torch.einsum("bhtd,bhsd->bhts", q, k[:, [0, 0, 1, 1]]) / 3**0.5
    close(grouped_attention.scores(q, k, None), expected)
    close(grouped_attention.scores(q, k, added), expected + added)


def test_a_prefix_stands_in_front_of_every_text_and_head():
    rows, x = normal(3, 8), normal(2, 2, 5, 4, seed=1)
    together = grouped_attention.behind(rows, x)
    assert torch.equal(together[:, :, 3:], x)
    for text in together:
        assert torch.equal(text[0, :3], rows[:, :4])
        assert torch.equal(text[1, :3], rows[:, 4:])


def test_a_longer_mask_shows_the_prefix():
    mask = some_mask(2, 1, 1, 5)
    longer = grouped_attention.extended(mask, 3)
    assert longer.dtype == torch.bool
    assert torch.equal(longer, torch.cat([torch.ones(2, 1, 1, 3).bool(), mask], -1))
    added = normal(2, 1, 5, 5)
    longer = grouped_attention.extended(added, 3)
    assert torch.equal(longer, torch.cat([torch.zeros(2, 1, 5, 3).double(), added], -1))
    assert grouped_attention.extended(None, 3) is None


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (1, 1, 4, 6), (2, 1, 1, 6), (1, 1, 1, 6)])
def test_masks_of_a_model_are_accepted(shape):
    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        grouped_attention.require_text_mask(torch.ones(shape, dtype=dtype), 2, 4, 6)
    grouped_attention.require_text_mask(None, 2, 4, 6)


@pytest.mark.parametrize(
    "shape", [(2, 6), (3, 1, 4, 6), (2, 3, 4, 6), (2, 1, 3, 6), (2, 1, 4, 1), (1, 2, 1, 4, 6)]
)
def test_other_masks_are_refused(shape):
    with pytest.raises(ValueError, match=r"^attention_mask: must be \[2, 1, 4, 6\], is"):
        grouped_attention.require_text_mask(torch.ones(shape).bool(), 2, 4, 6)
    with pytest.raises(ValueError, match=r"^attention_mask: must be boolean or floating"):
        grouped_attention.require_text_mask(torch.ones(2, 1, 4, 6).long(), 2, 4, 6)


A = normal(2, 3, 4)
NAN = torch.full((2, 3, 4), torch.nan).double()
SEEN = torch.ones(3, 3, dtype=torch.bool)
BAD = [
    (lambda: grouped_attention.attention(A[0], A, A), "q: must be \\["),
    (lambda: grouped_attention.attention(A, A[..., :2], A), "k: must be \\["),
    (lambda: grouped_attention.attention(A, A[:, :0], A[:, :0]), "k: must be \\["),
    (lambda: grouped_attention.attention(A[:1], A, A), "k: must have heads that divide 1"),
    (lambda: grouped_attention.attention(A, A.float(), A), "k: must be torch.float64"),
    (lambda: grouped_attention.attention(A, A, A[:, :2]), "v: must have k's heads and positions"),
    (lambda: grouped_attention.attention(NAN, A, A), "q: must be finite"),
    (lambda: grouped_attention.attention(A, A, A, SEEN.double()), "mask: must be boolean"),
    (lambda: grouped_attention.attention(A, A, A, SEEN[:2]), "mask: must be \\["),
    (lambda: grouped_attention.attention(A, A, A, ~SEEN), "mask: every query must see"),
    (lambda: grouped_attention.prefix_share(A, NAN, A), "k_prefix: must be finite"),
    (lambda: grouped_attention.prefix_share(A, A, A, SEEN[:, :2]), "mask: must be \\["),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
