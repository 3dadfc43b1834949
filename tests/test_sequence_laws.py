import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad

from gradbook import sequence_laws, sequences
from gradbook.expectation import strings

F64 = torch.float64
EVERY = strings(3, 5)


def tables(seed=0, vocabulary=3):
    """A policy and a reward."""
    generator = torch.Generator().manual_seed(seed)
    logits, reward = torch.randn([2] + [vocabulary] * 3, generator=generator, dtype=F64)
    return logits.log_softmax(-1), reward


def enumerated(policy, reward, every=EVERY):
    """Log-probability and score of every string."""
    log_probs = sequences.token_log_probs(policy, every).sum(-1)
    return log_probs, sequences.trigram_rewards(reward, every).mean(-1)


def enumerated_reward(policy, reward):
    log_probs, scores = enumerated(policy, reward)
    return (log_probs.exp() * scores).sum()


def enumerated_entropy(policy):
    log_probs, _ = enumerated(policy, policy)
    return -(log_probs.exp() * log_probs).sum()


def close(ours, exact, tolerance=1e-10):
    torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)


def test_pair_laws_are_marginals_of_the_enumeration():
    policy, reward = tables()
    probs = enumerated(policy, reward)[0].exp()
    laws = sequence_laws.pair_laws(policy, 5)
    padded = torch.nn.functional.pad(EVERY, (2, 0))
    for t in range(5):
        for a in range(3):
            for b in range(3):
                chosen = (padded[:, t] == a) & (padded[:, t + 1] == b)
                close(laws[t, a, b], probs[chosen].sum())
    close(laws.sum((1, 2)), torch.ones(5, dtype=F64))


def test_expected_reward_and_its_gradients_are_those_of_the_enumeration():
    for seed in range(3):
        policy, reward = tables(seed)
        ours = sequence_laws.expected_reward(policy, reward, 5)
        close(ours, enumerated_reward(policy, reward))
        close(
            grad(lambda reward: sequence_laws.expected_reward(policy, reward, 5))(reward),  # noqa: B023
            grad(lambda reward: enumerated_reward(policy, reward))(reward),  # noqa: B023
        )


def test_gradients_in_the_parameters_are_those_of_the_enumeration():
    theta = sequences.initial(torch.Generator().manual_seed(1), 3, 2, 4)
    reward = tables()[1]

    def slopes(objective):
        return grad(lambda theta: objective(sequences.log_policy(theta)))(theta)

    pairs = (
        (
            slopes(lambda policy: sequence_laws.expected_reward(policy, reward, 5)),
            slopes(lambda policy: enumerated_reward(policy, reward)),
        ),
        (
            slopes(lambda policy: sequence_laws.entropy(policy, 5)),
            slopes(enumerated_entropy),
        ),
    )
    for ours, exact in pairs:
        for name, part in exact.items():
            assert part.abs().max() > 1e-3
            close(ours[name], part)


@given(st.integers(0, 99), st.integers(1, 6))
def test_entropy_is_that_of_the_enumeration_and_at_most_uniform(seed, length):
    policy = tables(seed)[0]
    log_probs = sequences.token_log_probs(policy, strings(3, length)).sum(-1)
    ours = sequence_laws.entropy(policy, length)
    close(ours, -(log_probs.exp() * log_probs).sum())
    assert ours <= length * math.log(3) + 1e-12


def test_entropy_of_a_uniform_policy():
    policy = torch.full((27, 27, 27), -math.log(27), dtype=F64)
    close(sequence_laws.entropy(policy, 12), torch.tensor(12 * math.log(27), dtype=F64))


def test_impossible_tokens_have_no_share_in_entropy_or_its_slopes():
    policy = tables()[0]
    policy[..., 1] = -math.inf
    policy = policy.log_softmax(-1)
    log_probs = sequences.token_log_probs(policy, EVERY).sum(-1)
    possible = log_probs[log_probs > -math.inf]
    assert len(possible) == 2**5
    close(sequence_laws.entropy(policy, 5), -(possible.exp() * possible).sum())
    assert grad(lambda policy: sequence_laws.entropy(policy, 5))(policy).isfinite().all()


@pytest.mark.parametrize("weight", [0.05, 1.0, 20.0])
def test_soft_maximum_is_the_log_sum_over_all_strings(weight):
    policy, reward = tables()
    scores = enumerated(policy, reward)[1]
    ours = sequence_laws.soft_maximum(reward, 5, weight)
    close(ours, weight * (scores / weight).logsumexp(0))
    best = (scores / weight).softmax(0)
    shares = grad(lambda reward: sequence_laws.soft_maximum(reward, 5, weight))(reward)
    close((shares * reward).sum(), (best * scores).sum())


@given(st.integers(0, 99), st.floats(0.01, 10), st.floats(0, 5))
def test_no_policy_exceeds_the_soft_maximum(seed, weight, sharpness):
    logits, reward = tables(seed)
    policy = (sharpness * logits).log_softmax(-1)
    objective = sequence_laws.expected_reward(policy, reward, 5)
    objective = objective + weight * sequence_laws.entropy(policy, 5)
    assert objective <= sequence_laws.soft_maximum(reward, 5, weight) + 1e-10


def test_the_best_law_of_a_single_trigram_attains_the_soft_maximum():
    reward, weight = tables()[1], 0.3
    joint = (reward / weight).flatten().softmax(0)
    entropy = -(joint * joint.log()).sum()
    objective = (joint * reward.flatten()).sum() + weight * entropy
    close(sequence_laws.soft_maximum(reward, 3, weight), objective)


def test_bad_input_is_named():
    policy, reward = tables()
    for length in (2, 0):
        with pytest.raises(ValueError, match="^length: "):
            sequence_laws.expected_reward(policy, reward, length)
        with pytest.raises(ValueError, match="^length: "):
            sequence_laws.soft_maximum(reward, length, 1.0)
    with pytest.raises(ValueError, match="^length: "):
        sequence_laws.entropy(policy, 0)
    with pytest.raises(ValueError, match="^reward: "):
        sequence_laws.expected_reward(policy, reward[:2], 5)
    broken = reward.clone()
    broken[0, 1, 2] = math.nan
    with pytest.raises(ValueError, match="^reward: "):
        sequence_laws.expected_reward(policy, broken, 5)
    with pytest.raises(ValueError, match="^reward: "):
        sequence_laws.soft_maximum(broken, 5, 1.0)
    for table in (policy + 0.1, policy * math.nan):
        with pytest.raises(ValueError, match="^policy: "):
            sequence_laws.entropy(table, 5)
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="^weight: "):
            sequence_laws.soft_maximum(reward, 5, weight)
