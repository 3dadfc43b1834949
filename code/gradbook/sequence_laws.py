"""The exact law of a string drawn by a trigram policy: expected score, entropy, and their best.

Policy and reward are those of :mod:`gradbook.sequences`, tables [V, V, V]. Both look at three
neighbours only, so sums over all V^L strings are L sums over V^2 pairs of tokens, and autograd
differentiates them exactly.
"""

import math

import torch
from torch import Tensor

from gradbook.checks import require, require_finite


def pair_laws(policy: Tensor, length: int) -> Tensor:
    """Compute the law of the two tokens before each token, exactly.

    Args:
        policy: log-probabilities [V, V, V].
        length: the number L of tokens of a string, at least 1.

    Returns:
        Probabilities [L, V, V]: entry (t, a, b) is P(x_{t-2} = a,
        x_{t-1} = b), with x_{-2} = x_{-1} = 0.

    Raises:
        ValueError: if the rows of the policy do not sum to 1, or the
            length is below 1.
    """
    if length < 1:
        raise ValueError(f"length: must be at least 1, got {length}")
    probs = policy.exp()
    tolerance = math.sqrt(torch.finfo(probs.dtype).eps)
    require((probs.sum(-1) - 1).abs() <= tolerance, "policy: rows must sum to 1")
    first = torch.zeros_like(probs[0])
    first[0, 0] = 1
    laws = [first]
    for _ in range(length - 1):
        laws.append((laws[-1][..., None] * probs).sum(0))
    return torch.stack(laws)


def expected_reward(policy: Tensor, reward: Tensor, length: int) -> Tensor:
    """Compute the expected score of a string, exactly.

    Args:
        policy: log-probabilities [V, V, V].
        reward: [V, V, V].
        length: the number L of tokens of a string, at least 3.

    Returns:
        The sum over all V^L strings of probability times score, a
        scalar, differentiable in the policy and the reward.

    Raises:
        ValueError: if the reward is not finite or not of the policy's
            shape, the length is below 3, or the rows of the policy do not
            sum to 1.
    """
    _check_length(length)
    if reward.shape != policy.shape:
        raise ValueError(f"reward: must be {tuple(policy.shape)}, got {tuple(reward.shape)}")
    require_finite(reward=reward)
    occupancy = pair_laws(policy, length)[2:].mean(0)
    return (occupancy[..., None] * policy.exp() * reward).sum()


def entropy(policy: Tensor, length: int) -> Tensor:
    """Compute the entropy of the law of a string, exactly.

    Args:
        policy: log-probabilities [V, V, V]; minus infinity is allowed.
        length: the number L of tokens of a string, at least 1.

    Returns:
        Nats, a scalar: by the chain rule, the entropy of each token given
        its past, averaged over the past and summed over the tokens.

    Raises:
        ValueError: as :func:`pair_laws`.
    """
    occupancy = pair_laws(policy, length).sum(0)
    terms = policy.exp() * policy.masked_fill(policy == -math.inf, 0.0)
    return -(occupancy[..., None] * terms).sum()


def soft_maximum(reward: Tensor, length: int, weight: float) -> Tensor:
    """Compute the most that expected score plus entropy can be.

    Of all laws on strings, the one with probabilities proportional to
    exp(score / weight) is best; no policy does better.

    Args:
        reward: [V, V, V].
        length: the number L of tokens of a string, at least 3.
        weight: of one nat of entropy, positive.

    Returns:
        weight * log(sum over all V^L strings of exp(score / weight)), a
        scalar; its gradient in the reward is the share that each trigram
        has of the strings of the best law.

    Raises:
        ValueError: if the reward is not finite, the length is below 3, or
            the weight is not positive.

    Source: the Gibbs variational principle; Todorov 2007.
    """
    _check_length(length)
    require_finite(reward=reward)
    if not 0 < weight < math.inf:
        raise ValueError(f"weight: must be positive and finite, got {weight}")
    gains = reward / (weight * (length - 2))
    # Log of the sum over all ways to go on, by the last two tokens.
    ahead = torch.zeros_like(reward[0])
    for _ in range(length - 2):
        ahead = (gains + ahead).logsumexp(-1)
    return weight * ahead.logsumexp((0, 1))


def _check_length(length: int) -> None:
    if length < 3:
        raise ValueError(f"length: a trigram needs three tokens, got {length}")
