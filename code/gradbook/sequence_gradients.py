"""Gradients of the expected score of a string: exact, by the score function, and by relaxation.

Each function returns a scalar whose gradient in theta is, or estimates, the gradient of the expected
score, in two of them with a bonus for entropy; ``torch.func.grad`` takes it. Theta, policy and
reward are those of :mod:`gradbook.sequences`; the noise is one batch of B strings, standard Gumbel
[B, L, V].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.estimators.draws import fixed_baseline, mean_of_the_others
from gradbook.gumbel import gumbel_one_hot, straight_through
from gradbook.gumbel import gumbel_softmax as softmax_draw
from gradbook.sequence_laws import entropy, expected_reward
from gradbook.sequences import (
    Theta,
    draw,
    log_policy,
    next_logits,
    token_log_probs,
    trigram_rewards,
)


def exact(theta: Theta, reward: Tensor, length: int) -> Tensor:
    """Compute the expected score itself, by the sum over pairs of tokens.

    Args:
        theta: parameters of the policy.
        reward: [V, V, V].
        length: the number of tokens of a string.

    Returns:
        A scalar; its gradient is the yardstick of all others.
    """
    return expected_reward(log_policy(theta), reward, length)


def exact_with_entropy(
    theta: Theta,
    reward: Tensor,
    length: int,
    weight: float,
) -> Tensor:
    """Compute the expected score plus a multiple of the string's entropy.

    Args:
        theta: parameters of the policy.
        reward: [V, V, V].
        length: the number of tokens of a string.
        weight: of one nat.

    Returns:
        A scalar.
    """
    policy = log_policy(theta)
    bonus = weight * entropy(policy, length)
    return expected_reward(policy, reward, length) + bonus


def reinforce(
    theta: Theta,
    reward: Tensor,
    noise: Tensor,
    baseline: float | Tensor,
) -> Tensor:
    """Weight the log-probability of a string with its score less a number.

    Args:
        theta: parameters of the policy.
        reward: [V, V, V].
        noise: [B, L, V].
        baseline: a number, or [B], that does not depend on these strings.

    Returns:
        A scalar whose gradient is unbiased.

    Raises:
        ValueError: if the noise is not such a batch of strings of three
            tokens or more, the reward not a table of the policy's tokens,
            the baseline neither a number nor [B], or one is not finite.

    Source: Williams 1992, theorem 1.
    """
    log_probs, gains = _drawn(theta, reward, noise)
    baseline = fixed_baseline(baseline, len(noise))
    return ((gains.sum(-1) - baseline) * log_probs.sum(-1)).mean()


def leave_one_out(theta: Theta, reward: Tensor, noise: Tensor) -> Tensor:
    """Measure the score of a string from the mean of the others.

    The arguments are those of :func:`reinforce`, without a baseline; B
    must be at least 2.

    Raises:
        ValueError: if there is one string only.

    Source: Kool, van Hoof and Welling 2019.
    """
    log_probs, gains = _drawn(theta, reward, noise)
    advantage = _from_the_others(gains.sum(-1))
    return (advantage * log_probs.sum(-1)).mean()


def reward_to_go(theta: Theta, reward: Tensor, noise: Tensor) -> Tensor:
    """Credit a token with those trigrams alone that it can still change.

    A trigram that was complete before a token was drawn is independent of
    that token given the past, so its product with the token's score has
    mean zero and can be left out. What is left is measured, token by
    token, from the mean of the other strings.

    The arguments are those of :func:`leave_one_out`.

    Raises:
        ValueError: if there is one string only.

    Source: Sutton et al. 2000, theorem 1.
    """
    log_probs, gains = _drawn(theta, reward, noise)
    advantage = _from_the_others(_to_go(gains))
    return (advantage * log_probs).sum(-1).mean()


def with_entropy(
    theta: Theta,
    reward: Tensor,
    noise: Tensor,
    weight: float,
) -> Tensor:
    """Estimate the gradient of the expected score plus a bonus for entropy.

    A token is paid ``-weight * log p`` of its own beside the trigrams that
    it completes, and credited as in :func:`reward_to_go`. That this
    payment depends on theta too adds the mean of a score function: zero.

    The arguments are those of :func:`leave_one_out`, and the ``weight`` of
    one nat.

    Raises:
        ValueError: if there is one string only.

    Source: Williams and Peng 1991.
    """
    log_probs, gains = _drawn(theta, reward, noise)
    paid = gains - weight * log_probs.detach()
    advantage = _from_the_others(_to_go(paid))
    return (advantage * log_probs).sum(-1).mean()


def gumbel_softmax(
    theta: Theta,
    reward: Tensor,
    noise: Tensor,
    temperature: float,
) -> Tensor:
    """Score relaxed strings: mixtures of tokens, fed back as mixtures.

    Two things are no longer what they were: the policy reads mixtures of
    embeddings, and the reward, extended to be linear in each of its three
    tokens, is that of a trigram of mixtures. The gradient is biased.

    Args:
        theta: parameters of the policy.
        reward: [V, V, V].
        noise: [B, L, V].
        temperature: positive.

    Returns:
        A scalar.

    Raises:
        ValueError: as :func:`reinforce`, or if the temperature is not
            positive and finite.

    Source: Jang, Gu and Poole 2017; Kusner and Hernandez-Lobato 2016.
    """

    def relaxed(logits: Tensor, row: Tensor) -> Tensor:
        return softmax_draw(logits, temperature, row)

    _check_batch(theta, reward, noise)
    return relaxed_score(reward, unroll(theta, noise, relaxed)).mean()


def straight_through_gumbel(
    theta: Theta,
    reward: Tensor,
    noise: Tensor,
    temperature: float,
) -> Tensor:
    """Score hard strings, with the gradients of relaxed tokens.

    The value is the exact score of the strings that :func:`reinforce`
    draws from the same noise; the gradient takes every one-hot token for
    its Gumbel-Softmax.

    The arguments are those of :func:`gumbel_softmax`.

    Source: Jang, Gu and Poole 2017, section 2.2.
    """

    def hard(logits: Tensor, row: Tensor) -> Tensor:
        soft = softmax_draw(logits, temperature, row)
        return straight_through(gumbel_one_hot(logits, row), soft)

    _check_batch(theta, reward, noise)
    return relaxed_score(reward, unroll(theta, noise, hard)).mean()


def unroll(
    theta: Theta,
    noise: Tensor,
    sample: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Draw rows of shares token by token, each from the two before it.

    Args:
        theta: parameters of the policy.
        noise: [..., L, V].
        sample: makes a row of shares of logits and noise, both [..., V].

    Returns:
        [..., L, V].
    """
    space = torch.zeros_like(noise[..., 0, :])
    space[..., 0] = 1
    tokens = [space, space]
    for row in noise.unbind(-2):
        tokens.append(sample(next_logits(theta, *tokens[-2:]), row))
    return torch.stack(tokens[2:], -2)


def relaxed_score(reward: Tensor, tokens: Tensor) -> Tensor:
    """Extend the score to mixtures of tokens, linear in every token.

    Args:
        reward: [V, V, V].
        tokens: rows of shares [..., L, V].

    Returns:
        [...]; for one-hot rows the score of the string.
    """
    first, second = tokens[..., :-2, :], tokens[..., 1:-1, :]
    pairs = (first @ reward.flatten(1)).unflatten(-1, reward.shape[1:])
    thirds = (second[..., None, :] @ pairs).squeeze(-2)
    return (thirds * tokens[..., 2:, :]).sum(-1).mean(-1)


def _drawn(theta: Theta, reward: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw strings: log-probabilities of their tokens, and what each token completes, [B, L].

    The last token of a trigram is paid for it, 1 / (L - 2) of its reward; the first two of a string
    complete nothing.
    """
    _check_batch(theta, reward, noise)
    policy = log_policy(theta)
    tokens = draw(policy.detach(), noise)
    rewards = trigram_rewards(reward, tokens)
    gains = torch.nn.functional.pad(rewards / rewards.shape[-1], (2, 0))
    return token_log_probs(policy, tokens), gains


def _check_batch(theta: Theta, reward: Tensor, noise: Tensor) -> None:
    vocabulary = len(theta["embedding"])
    if reward.shape != (vocabulary,) * 3:
        raise ValueError(f"reward: must be {[vocabulary] * 3}, got {tuple(reward.shape)}")
    require_finite(reward=reward)
    fits = noise.ndim == 3 and noise.shape[1] >= 3 and noise.shape[2] == vocabulary
    if not fits or len(noise) == 0:
        wanted = f"[strings, length, {vocabulary}], at least one string of three tokens"
        raise ValueError(f"noise: must be {wanted}, got {tuple(noise.shape)}")


def _to_go(gains: Tensor) -> Tensor:
    """Sum what each token and those after it are paid, [B, L]."""
    return gains.flip(-1).cumsum(-1).flip(-1)


def _from_the_others(values: Tensor) -> Tensor:
    return values - mean_of_the_others(values)
