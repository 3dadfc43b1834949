"""The red and blue head: its scores and texts, prefixes and LoRA by hand, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbook.peft import colour_task
from gradbook.peft.grouped_attention import prefix_share

GAPS = st.floats(-6, 6)
TOKENS, TARGETS = colour_task.contents(device="cpu")
LAYER = colour_task.colour_layer(1.0, device="cpu")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def close(ours, theirs):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_texts_are_all_four_and_the_target_is_the_blue_value():
    assert TOKENS.tolist() == [
        [[1, 0, 1, 1], [0, 1, 1, 1]],
        [[1, 0, 1, 1], [0, 1, -1, 1]],
        [[1, 0, -1, 1], [0, 1, 1, 1]],
        [[1, 0, -1, 1], [0, 1, -1, 1]],
    ]
    assert TARGETS.tolist() == [1, -1, 1, -1]


@settings(max_examples=20)
@given(GAPS)
def test_the_scores_are_half_the_gap_up_and_down(gap):
    layer = colour_task.colour_layer(gap, device="cpu")
    scores = TOKENS @ layer.w_k.T @ (layer.w_q @ layer.asker) / 2**0.5
    close(scores, [[gap / 2, -gap / 2]] * 4)


@settings(max_examples=20)
@given(GAPS)
def test_the_frozen_layer_answers_the_mean_with_red_s_share_sigmoid_of_the_gap(gap):
    layer, a = colour_task.colour_layer(gap, device="cpu"), sigmoid(gap)
    expected = [1, 2 * a - 1, 1 - 2 * a, -1]
    close(colour_task.answers(layer, TOKENS), expected)


def test_it_answers_red_before_and_half_of_the_new_task():
    answered = colour_task.answers(LAYER, TOKENS)
    assert colour_task.right(answered, TOKENS[:, 0, 2]) == 4
    assert colour_task.right(answered, TARGETS) == 2


@settings(max_examples=25)
@given(GAPS, st.integers(1, 4), st.integers(0, 1000))
def test_a_prefix_mixes_as_an_explicit_sum_of_exponentials_does(gap, n, seed):
    layer = colour_task.colour_layer(gap, device="cpu")
    keys, values = normal(n, 2, seed=seed), normal(n, 1, seed=seed + 1)
    answered = colour_task.with_prefix(layer, TOKENS, keys, values)
    # The query is sqrt(2) (1, -1), and the division by sqrt(2) leaves (1, -1).
    front = [math.exp(k[0] - k[1]) for k in keys.tolist()]
    red, blue = math.exp(gap / 2), math.exp(-gap / 2)
    drawn = sum(w * v for w, v in zip(front, values[:, 0].tolist(), strict=True))
    for row, (u, v) in enumerate([(1, 1), (1, -1), (-1, 1), (-1, -1)]):
        close(answered[row], (red * u + blue * v + drawn) / (red + blue + sum(front)))


def test_lambda_is_the_same_for_all_texts_and_the_shares_of_red_and_blue_stay_in_proportion():
    keys = normal(3, 2)
    q = (LAYER.w_q @ LAYER.asker).expand(4, 1, 1, 2)
    share = prefix_share(q, keys[None], (TOKENS @ LAYER.w_k.T)[:, None]).flatten()
    close(share, share[:1].expand(4))
    # With values of 0 in front, the answers are the layer's own, times 1 - lambda.
    silent = colour_task.with_prefix(LAYER, TOKENS, keys, torch.zeros_like(keys[:, :1]))
    close(silent, (1 - share) * colour_task.answers(LAYER, TOKENS))


@settings(max_examples=20)
@given(GAPS, st.integers(1, 3), st.integers(0, 1000))
def test_lora_is_the_layer_with_other_keys(gap, rank, seed):
    layer = colour_task.colour_layer(gap, device="cpu")
    a, b = normal(rank, 4, seed=seed), normal(2, rank, seed=seed + 1)
    keys = TOKENS @ layer.w_k.T + TOKENS @ a.T @ b.T
    weights = (keys[..., 0] - keys[..., 1]).softmax(1)
    close(colour_task.with_lora(layer, TOKENS, a, b), (weights * TOKENS[..., 2]).sum(1))


@settings(max_examples=20)
@given(GAPS, GAPS)
def test_the_built_lora_adds_its_number_to_the_gap(gap, change):
    layer, other = (colour_task.colour_layer(x, device="cpu") for x in (gap, gap + change))
    a, b = colour_task.turning_lora(change, TOKENS)
    assert (b.shape, a.shape) == ((2, 1), (1, 4))
    answered = colour_task.with_lora(layer, TOKENS, a, b)
    close(answered, colour_task.answers(other, TOKENS))
    close((answered - TARGETS).square().mean(), 2 * sigmoid(gap + change) ** 2)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0, 20.0])
def test_a_rank_of_one_answers_all_four_whatever_the_gap(gap):
    layer = colour_task.colour_layer(gap, device="cpu")
    for change, count in ((-gap - 0.1, 4), (-gap + 0.1, 2)):
        answered = colour_task.with_lora(layer, TOKENS, *colour_task.turning_lora(change, TOKENS))
        assert colour_task.right(answered, TARGETS) == count


def test_an_answer_of_zero_is_not_right_and_batches_are_counted_apart():
    answered = TARGETS * torch.tensor([[1.0, 1, 1, 1], [2, 0, -1, 0.1], [0, 0, 0, 0]])
    assert colour_task.right(answered, TARGETS).tolist() == [4, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_as_asked(dtype):
    layer = colour_task.colour_layer(1.0, dtype, "cpu")
    tokens, targets = colour_task.contents(dtype, "cpu")
    a, b = colour_task.turning_lora(-2.0, tokens)
    assert {x.dtype for x in (*layer, tokens, targets, a, b)} == {dtype}
    assert colour_task.with_lora(layer, tokens, a, b).dtype == dtype


def test_the_book_s_device_is_the_default(monkeypatch):
    monkeypatch.setenv("GRADBOOK_DEVICE", "meta")
    made = [*colour_task.colour_layer(1.0), *colour_task.contents()]
    assert {x.device.type for x in made} == {"meta"}


NAN = torch.full((1, 2), torch.nan, dtype=torch.float64)
KEY, VALUE = normal(1, 2), normal(1, 1)
A, B = normal(1, 4), normal(2, 1)
BAD = {
    "gap": lambda: colour_task.colour_layer(math.nan, device="cpu"),
    "dtype": lambda: colour_task.colour_layer(1.0, torch.int64, "cpu"),
    "contents-width": lambda: colour_task.answers(LAYER, TOKENS[..., :3]),
    "contents-shape": lambda: colour_task.answers(LAYER, TOKENS[0]),
    "contents-none": lambda: colour_task.answers(LAYER, TOKENS[:, :0]),
    "contents-type": lambda: colour_task.answers(LAYER, TOKENS.float()),
    "contents-nan": lambda: colour_task.answers(LAYER, TOKENS * torch.nan),
    "contents-prefix": lambda: colour_task.with_prefix(LAYER, TOKENS[0], KEY, VALUE),
    "keys-none": lambda: colour_task.with_prefix(LAYER, TOKENS, KEY[:0], VALUE[:0]),
    "keys-width": lambda: colour_task.with_prefix(LAYER, TOKENS, VALUE, VALUE),
    "keys-nan": lambda: colour_task.with_prefix(LAYER, TOKENS, NAN, VALUE),
    "values-length": lambda: colour_task.with_prefix(LAYER, TOKENS, KEY, normal(2, 1)),
    "values-type": lambda: colour_task.with_prefix(LAYER, TOKENS, KEY, VALUE.float()),
    "a-shape": lambda: colour_task.with_lora(LAYER, TOKENS, A.T, B),
    "a-rank": lambda: colour_task.with_lora(LAYER, TOKENS, A[:0], B[:, :0]),
    "b-rank": lambda: colour_task.with_lora(LAYER, TOKENS, A, normal(2, 2)),
    "change": lambda: colour_task.turning_lora(math.inf, TOKENS),
    "like": lambda: colour_task.turning_lora(-1.0, TOKENS.long()),
    "answers-length": lambda: colour_task.right(TARGETS[:3], TARGETS),
    "answers-nan": lambda: colour_task.right(TARGETS * torch.nan, TARGETS),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    with pytest.raises(ValueError, match=rf"^{case.split('-')[0]}: must be"):
        BAD[case]()
