"""Starts of soft prompts, and the tokens nearest to what was learnt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gradbook.peft import prompt_starts


def generator(seed=0):
    return torch.Generator(device="cpu").manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def ones(*shape):
    return torch.ones(shape, dtype=torch.int64)


TABLE = normal(17, 8, seed=1)


def test_a_random_start_is_normal_and_comes_from_the_generator_alone():
    state = torch.get_rng_state()
    one = prompt_starts.random_start(50, 40, generator(), 0.5, torch.float64)
    assert one.shape == (50, 40)
    assert stats.kstest(one.flatten() / 0.5, "norm").pvalue > stats.norm.sf(4.5)
    rounded = prompt_starts.random_start(50, 40, generator(), 0.5)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, one.float())
    other = prompt_starts.random_start(50, 40, generator(1), 0.5, torch.float64)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=20)
@given(st.integers(1, 17), st.data())
def test_a_vocabulary_start_takes_first_rows_each_once(first, data):
    length = data.draw(st.integers(1, first))
    start = prompt_starts.vocabulary_start(TABLE, length, generator(length), first)
    matches = (start[:, None] == TABLE).all(-1)
    assert matches.sum(1).tolist() == [1] * length
    rows = matches.int().argmax(1).tolist()
    assert len(set(rows)) == length
    assert max(rows) < first


def test_a_vocabulary_start_reaches_all_of_them_and_repeats_with_the_seed():
    def draw(seed, **first):
        return prompt_starts.vocabulary_start(TABLE, 2, generator(seed), **first)

    assert torch.equal(draw(3), draw(3))
    assert torch.equal(draw(3), draw(3, first=17))
    seen = torch.cat([draw(seed, first=5) for seed in range(60)])
    assert len(seen.unique(dim=0)) == 5


def test_by_default_the_first_5000_rows_are_sampled():
    table = torch.arange(6000.0)[:, None]
    start = prompt_starts.vocabulary_start(table, 5000, generator())
    assert torch.equal(start.flatten().sort().values, torch.arange(5000.0))


def test_the_callers_default_device_does_not_matter():
    expected = (
        prompt_starts.random_start(2, 8, generator(), 1.0),
        prompt_starts.vocabulary_start(TABLE, 2, generator()),
    )
    with torch.device("meta"):
        ours = (
            prompt_starts.random_start(2, 8, generator(), 1.0),
            prompt_starts.vocabulary_start(TABLE, 2, generator()),
        )
        words = prompt_starts.word_start(TABLE, torch.tensor([3], device="cpu"), 2)
    assert all(map(torch.equal, ours, expected))
    assert torch.equal(words, TABLE[[3, 3]])


def test_a_word_start_repeats_the_words_in_order():
    start = prompt_starts.word_start(TABLE, torch.tensor([4, 9, 2]), 7)
    assert torch.equal(start, TABLE[[4, 9, 2, 4, 9, 2, 4]])
    assert torch.equal(prompt_starts.word_start(TABLE, torch.tensor([4]), 1), TABLE[[4]])


def test_starts_are_not_tied_to_the_table():
    table = TABLE.clone().requires_grad_()
    for start in (
        prompt_starts.word_start(table, torch.tensor([4]), 2),
        prompt_starts.vocabulary_start(table, 2, generator()),
    ):
        assert not start.requires_grad
        start.zero_()
    assert torch.equal(table, TABLE)


@settings(max_examples=20)
@given(st.integers(1, 17), st.integers(0, 1000))
def test_nearest_tokens_are_those_of_the_cosines_by_hand(k, seed):
    vectors = normal(3, 8, seed=seed)
    ours = prompt_starts.nearest_tokens(vectors, TABLE, k)
    for vector, row in zip(vectors, ours.tolist(), strict=True):
        cosines = [float(vector @ t / (vector.norm() * t.norm())) for t in TABLE]
        assert row == sorted(range(17), key=lambda i: -cosines[i])[:k]


def test_length_does_not_matter_to_what_is_nearest():
    scales = torch.linspace(0.1, 50, 17, dtype=torch.float64)[:, None]
    ours = prompt_starts.nearest_tokens(3 * TABLE, scales * TABLE, 1)
    assert ours.flatten().tolist() == list(range(17))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prompt_starts.random_start(0, 3, generator(), 1.0), "length"),
        (lambda: prompt_starts.random_start(3, 0, generator(), 1.0), "width"),
        (lambda: prompt_starts.random_start(3, 3, generator(), 0.0), "std"),
        (lambda: prompt_starts.random_start(3, 3, generator(), -1.0), "std"),
        (lambda: prompt_starts.random_start(3, 3, generator(), float("nan")), "std"),
        (lambda: prompt_starts.vocabulary_start(TABLE[0], 1, generator()), "table"),
        (lambda: prompt_starts.vocabulary_start(TABLE, 0, generator()), "length"),
        (lambda: prompt_starts.vocabulary_start(TABLE, 18, generator()), "length"),
        (lambda: prompt_starts.vocabulary_start(TABLE, 4, generator(), 3), "length"),
        (lambda: prompt_starts.vocabulary_start(TABLE, 1, generator(), 0), "first"),
        (lambda: prompt_starts.vocabulary_start(TABLE, 1, generator(), 18), "first"),
        (lambda: prompt_starts.word_start(ones(3, 3), ones(1), 1), "table"),
        (lambda: prompt_starts.word_start(TABLE, ones(1), 0), "length"),
        (lambda: prompt_starts.word_start(TABLE, ones(3), 2), "ids"),
        (lambda: prompt_starts.word_start(TABLE, ones(0), 2), "ids"),
        (lambda: prompt_starts.word_start(TABLE, ones(1, 1), 2), "ids"),
        (lambda: prompt_starts.word_start(TABLE, ones(1).int(), 2), "ids"),
        (lambda: prompt_starts.word_start(TABLE, ones(1) * 17, 2), "ids"),
        (lambda: prompt_starts.word_start(TABLE, -ones(1), 2), "ids"),
        (lambda: prompt_starts.nearest_tokens(TABLE[0], TABLE, 1), "vectors"),
        (lambda: prompt_starts.nearest_tokens(TABLE[:, :7], TABLE, 1), "vectors"),
        (lambda: prompt_starts.nearest_tokens(TABLE.float(), TABLE, 1), "vectors"),
        (lambda: prompt_starts.nearest_tokens(TABLE / 0, TABLE, 1), "vectors"),
        (lambda: prompt_starts.nearest_tokens(TABLE, TABLE / 0, 1), "table"),
        (lambda: prompt_starts.nearest_tokens(TABLE, TABLE, 0), "k"),
        (lambda: prompt_starts.nearest_tokens(TABLE, TABLE, 18), "k"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        call()
