"""Strings that a neural policy draws letter by letter, and a score that looks at their trigrams.

A *policy* is a table of log-probabilities [V, V, V]: entry (a, b, c) is log p(c | a, b), the next
token after a, b. The two tokens before the first count as token 0, the space. A *reward* is a table
of the same shape: what each trigram is worth. The *score* of a string is the mean reward of its
trigrams.
"""

import math
import re

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradbook.checks import require
from gradbook.gumbel import gumbel_max

ALPHABET = " abcdefghijklmnopqrstuvwxyz"

Theta = dict[str, Tensor]


def encode(text: str) -> Tensor:
    """Write a text as tokens: 26 letters without case, and everything else as one space.

    Args:
        text: any text.

    Returns:
        Indices into ``ALPHABET``, int64, one for each letter and one for each run of others.
    """
    letters = re.sub("[^a-z]+", " ", text.lower()).strip().encode()
    codes = torch.frombuffer(bytearray(letters), dtype=torch.uint8) if letters else torch.empty(0)
    return (codes.long() - ord("a") + 1).clamp_(min=0)


def decode(tokens: Tensor) -> str:
    """Write tokens as a string.

    Args:
        tokens: indices into ``ALPHABET``, [n].

    Returns:
        n characters.
    """
    return "".join(ALPHABET[token] for token in tokens.tolist())


def trigram_counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """Count the trigrams of a text.

    Args:
        tokens: [n], from 0 to ``vocabulary`` - 1.
        vocabulary: the number V of tokens.

    Returns:
        int64 [V, V, V]; the counts sum to n - 2.

    Raises:
        ValueError: if a token is out of range.
    """
    _check_tokens(tokens, vocabulary)
    codes = (tokens[:-2] * vocabulary + tokens[1:-1]) * vocabulary + tokens[2:]
    return codes.bincount(minlength=vocabulary**3).reshape([vocabulary] * 3)


def frequent(counts: Tensor, share: float) -> Tensor:
    """Mark the most frequent trigrams: a reward with no slope anywhere.

    Args:
        counts: [V, V, V].
        share: of all V^3 trigrams, how many are to be marked; those that
            are as frequent as the last one are marked too.

    Returns:
        float64 [V, V, V], 1 where a trigram is frequent and 0 elsewhere.

    Raises:
        ValueError: if the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: must be in (0, 1], got {share}")
    wanted = max(1, round(share * counts.numel()))
    threshold = counts.flatten().topk(wanted).values[-1]
    return (counts >= threshold).double()


def next_entropy(counts: Tensor) -> Tensor:
    """Compute a text's entropy of a token given the two before it.

    Args:
        counts: of its trigrams, [V, V, V].

    Returns:
        Nats per token, a float64 scalar.

    Source: Shannon 1951, equation 1, with N = 3.
    """
    pairs = counts.sum(-1, keepdim=True).double()
    information = torch.where(counts > 0, (pairs / counts).log(), 0.0)
    return (counts * information).sum() / counts.sum()


def initial(
    generator: torch.Generator,
    vocabulary: int,
    width: int,
    hidden: int,
) -> Theta:
    """Draw the parameters of a neural trigram policy.

    Args:
        generator: of a device of its own; the draws are float64 there.
        vocabulary: the number V of tokens.
        width: of an embedding.
        hidden: the number of hidden units.

    Returns:
        ``embedding`` [V, width] of variance 1; ``before`` and ``last``
        [width, hidden], ``bias`` [hidden]; ``output`` [hidden, V],
        ``output_bias`` [V]. A matrix has variance 1 / (its inputs), a
        bias is zero.

    Source: Bengio et al. 2003, section 2.
    """

    def normal(*shape: int, inputs: int) -> Tensor:
        where = generator.device
        draw = torch.randn(shape, generator=generator, dtype=torch.float64, device=where)
        return draw / math.sqrt(inputs)

    embedding = normal(vocabulary, width, inputs=1)
    return {
        "embedding": embedding,
        "before": normal(width, hidden, inputs=2 * width),
        "last": normal(width, hidden, inputs=2 * width),
        "bias": embedding.new_zeros(hidden),
        "output": normal(hidden, vocabulary, inputs=hidden),
        "output_bias": embedding.new_zeros(vocabulary),
    }


def next_logits(theta: Theta, before: Tensor, last: Tensor) -> Tensor:
    """Compute the logits of the next token from the last two.

    A token is a one-hot row; a row of shares is read as the mixture of
    the embeddings.

    Args:
        theta: from :func:`initial`.
        before: the token before the last, [..., V].
        last: the last token, [..., V].

    Returns:
        [..., V].

    Source: Bengio et al. 2003, equation 1, without its direct connections.
    """
    one = before @ theta["embedding"] @ theta["before"]
    two = last @ theta["embedding"] @ theta["last"]
    hidden = (one + two + theta["bias"]).tanh()
    return hidden @ theta["output"] + theta["output_bias"]


def log_policy(theta: Theta) -> Tensor:
    """Tabulate the policy: log-probabilities after every two tokens.

    Args:
        theta: from :func:`initial`.

    Returns:
        [V, V, V], differentiable in theta.
    """
    tokens = torch.eye(len(theta["embedding"])).to(theta["embedding"])
    return next_logits(theta, tokens[:, None], tokens).log_softmax(-1)


def draw(policy: Tensor, noise: Tensor) -> Tensor:
    """Draw strings token by token with the Gumbel-Max trick.

    Args:
        policy: log-probabilities [V, V, V].
        noise: standard Gumbel draws [..., L, V], one row per token.

    Returns:
        Tokens [..., L].

    Raises:
        ValueError: if the noise does not fit the policy, or as
            :func:`gradbook.gumbel.gumbel_max`.
    """
    if noise.ndim < 2 or noise.shape[-1] != len(policy):
        raise ValueError(f"noise: must be [..., length, {len(policy)}], got {tuple(noise.shape)}")
    # With an axis for one token: under vmap, an index without axes asks torch 2.6 for its item().
    shape = (*noise.shape[:-2], 1)
    before = last = torch.zeros(shape, dtype=torch.int64, device=noise.device)
    tokens = []
    for row in noise.unbind(-2):
        before, last = last, gumbel_max(policy[before, last], row[..., None, :])
        tokens.append(last)
    return torch.cat(tokens, -1)


def token_log_probs(policy: Tensor, tokens: Tensor) -> Tensor:
    """Look up the log-probability of each token given the two before it.

    Args:
        policy: log-probabilities [V, V, V].
        tokens: [..., L].

    Returns:
        [..., L]; their sum is the log-probability of the string.
    """
    _check_tokens(tokens, len(policy))
    padded = pad(tokens, (2, 0))
    return policy[padded[..., :-2], padded[..., 1:-1], tokens]


def trigram_rewards(reward: Tensor, tokens: Tensor) -> Tensor:
    """Look up what each trigram of a string is worth.

    Args:
        reward: [V, V, V].
        tokens: [..., L] with L at least 3.

    Returns:
        [..., L - 2]; their mean is the score of the string.

    Raises:
        ValueError: if a string has no trigram.
    """
    _check_tokens(tokens, len(reward))
    if tokens.shape[-1] < 3:
        raise ValueError(f"tokens: a trigram needs three, got {tokens.shape[-1]}")
    return reward[tokens[..., :-2], tokens[..., 1:-1], tokens[..., 2:]]


def _check_tokens(tokens: Tensor, vocabulary: int) -> None:
    holds = (tokens >= 0) & (tokens < vocabulary)
    require(holds, f"tokens: must be from 0 to {vocabulary - 1}")
