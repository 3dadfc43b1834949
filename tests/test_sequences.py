import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradbook import sequences
from gradbook.expectation import strings
from gradbook.gumbel import gumbel_noise

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policy(vocabulary=3, seed=0):
    logits = torch.randn([vocabulary] * 3, generator=generator(seed), dtype=F64)
    return logits.log_softmax(-1)


def test_a_text_is_written_with_letters_and_single_spaces():
    tokens = sequences.encode("  To be,\n--or NOT\tto be? É! ")
    assert sequences.decode(tokens) == "to be or not to be"
    assert tokens[:5].tolist() == [20, 15, 0, 2, 5]
    assert tokens.dtype == torch.int64
    for empty in ("", " .!\n"):
        assert sequences.encode(empty).shape == (0,)
        assert sequences.encode(empty).dtype == torch.int64


@given(st.text())
def test_every_text_is_written_in_the_alphabet(text):
    written = sequences.decode(sequences.encode(text))
    assert set(written) <= set(sequences.ALPHABET)
    assert "  " not in written
    assert sequences.decode(sequences.encode(written)) == written


@given(st.lists(st.integers(0, 3), max_size=40))
def test_trigrams_are_counted_one_by_one(tokens):
    counts = sequences.trigram_counts(torch.tensor(tokens, dtype=torch.int64), 4)
    found = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    for code in itertools.product(range(4), repeat=3):
        assert counts[code] == found[code]


def test_frequent_marks_the_most_frequent_and_their_ties():
    counts = torch.tensor([9, 7, 7, 7, 2, 1, 0, 0]).reshape(2, 2, 2)
    for share, marked in ((1 / 8, 1), (2 / 8, 4), (4 / 8, 4), (5 / 8, 5), (1, 8), (0.01, 1)):
        table = sequences.frequent(counts, share)
        assert table.dtype == F64
        assert table.flatten().tolist() == [1.0] * marked + [0.0] * (8 - marked)


def test_entropy_of_the_next_token_of_a_text():
    """After 0 0, token 0 follows 3 times of 4; after 0 1, token 1 always."""
    counts = torch.zeros(2, 2, 2, dtype=torch.int64)
    counts[0, 0, 0], counts[0, 0, 1], counts[0, 1, 1] = 3, 1, 4
    exact = 0.5 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert sequences.next_entropy(counts).item() == pytest.approx(exact, rel=1e-12)


def test_initial_parameters_have_their_variances_and_replay():
    theta = sequences.initial(generator(), 27, 40, 50)
    again = sequences.initial(generator(), 27, 40, 50)
    shapes = {name: tuple(part.shape) for name, part in theta.items()}
    assert shapes == {
        "embedding": (27, 40),
        "before": (40, 50),
        "last": (40, 50),
        "bias": (50,),
        "output": (50, 27),
        "output_bias": (27,),
    }
    variances = {"embedding": 1, "before": 1 / 80, "last": 1 / 80, "output": 1 / 50}
    for name, variance in variances.items():
        n, found = theta[name].numel(), theta[name].square().mean().item()
        assert abs(found - variance) <= 4.5 * variance * math.sqrt(2 / n)
    assert not theta["bias"].any()
    assert not theta["output_bias"].any()
    assert all(torch.equal(theta[name], again[name]) for name in theta)
    assert all(part.dtype == F64 for part in theta.values())


def test_the_network_is_torchs_layers():
    theta = sequences.initial(generator(), 5, 4, 6)
    theta["bias"], theta["output_bias"] = torch.arange(6.0).double(), torch.arange(5.0).double()
    table = sequences.log_policy(theta)
    weights = torch.cat([theta["before"], theta["last"]])
    for a, b in itertools.product(range(5), repeat=2):
        joined = theta["embedding"][[a, b]].flatten()
        hidden = torch.nn.functional.linear(joined, weights.T, theta["bias"]).tanh()
        logits = torch.nn.functional.linear(hidden, theta["output"].T, theta["output_bias"])
        torch.testing.assert_close(table[a, b], logits.log_softmax(0), rtol=1e-12, atol=1e-12)


def test_a_mixture_of_tokens_is_read_as_the_mixture_of_embeddings():
    theta = sequences.initial(generator(), 3, 4, 6)
    before, last = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], dtype=F64)
    extended = theta | {
        "embedding": torch.stack([before @ theta["embedding"], last @ theta["embedding"]])
    }
    one, two = torch.eye(2, dtype=F64)
    torch.testing.assert_close(
        sequences.next_logits(theta, before, last),
        sequences.next_logits(extended, one, two),
        rtol=1e-12,
        atol=1e-12,
    )


def test_draws_follow_the_policy():
    """20 000 strings against the probability of each of the 3^4: 4.5 standard errors."""
    table, n = policy(), 20_000
    tokens = sequences.draw(table, gumbel_noise((n, 4, 3), generator(1), F64))
    every = strings(3, 4)
    probs = sequences.token_log_probs(table, every).sum(-1).exp()
    places = 3 ** torch.arange(3, -1, -1)
    shares = (tokens @ places).bincount(minlength=81) / n
    assert ((shares - probs).abs() <= 4.5 * (probs * (1 - probs) / n).sqrt()).all()


def test_a_draw_is_the_argmax_of_perturbed_logits_after_two_spaces():
    table = policy()
    noise = gumbel_noise((2, 5, 4, 3), generator(2), F64)
    tokens = sequences.draw(table, noise)
    assert tokens.shape == (2, 5, 4)
    for i, j in itertools.product(range(2), range(5)):
        past = [0, 0]
        for row in noise[i, j]:
            past.append(int((table[past[-2], past[-1]] + row).argmax()))
        assert tokens[i, j].tolist() == past[2:]
    assert sequences.draw(table, noise[:0]).shape == (0, 5, 4)


def test_one_string_is_drawn_under_vmap():
    """Where a token has no axis, torch 2.6 asks for its item()."""
    table, noise = policy(), gumbel_noise((5, 4, 3), generator(2), F64)
    tokens = torch.func.vmap(lambda row: sequences.draw(table, row))(noise)
    assert torch.equal(tokens, sequences.draw(table, noise))


def test_log_probabilities_are_looked_up_after_two_spaces():
    table = policy()
    log_probs = sequences.token_log_probs(table, torch.tensor([2, 0, 1]))
    expected = [table[0, 0, 2], table[0, 2, 0], table[2, 0, 1]]
    assert log_probs.tolist() == [value.item() for value in expected]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_probabilities_of_all_strings_sum_to_one(vocabulary, length, seed):
    table = policy(vocabulary, seed)
    log_probs = sequences.token_log_probs(table, strings(vocabulary, length)).sum(-1)
    assert log_probs.exp().sum().item() == pytest.approx(1, rel=1e-12)


def test_rewards_are_looked_up_trigram_by_trigram():
    reward = torch.arange(27.0).reshape(3, 3, 3)
    tokens = torch.tensor([[2, 0, 1, 1], [0, 0, 0, 2]])
    assert sequences.trigram_rewards(reward, tokens).tolist() == [[19, 4], [0, 2]]


def test_bad_input_is_named():
    table = policy()
    for tokens in (torch.tensor([0, 3]), torch.tensor([-1, 0, 0])):
        with pytest.raises(ValueError, match="^tokens: "):
            sequences.trigram_counts(tokens, 3)
        with pytest.raises(ValueError, match="^tokens: "):
            sequences.token_log_probs(table, tokens)
        with pytest.raises(ValueError, match="^tokens: "):
            sequences.trigram_rewards(table, tokens)
    with pytest.raises(ValueError, match="^tokens: "):
        sequences.trigram_rewards(table, torch.tensor([0, 1]))
    for share in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="^share: "):
            sequences.frequent(torch.ones(2, 2, 2), share)
    for noise in (torch.zeros(3), torch.zeros(4, 2), torch.full((4, 3), math.nan)):
        with pytest.raises(ValueError, match="^noise: "):
            sequences.draw(table, noise)
