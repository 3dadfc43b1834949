"""A policy that writes twelve letters, paid by a score that has no slope: eleven ways to train it.

The score of a string is the share of its trigrams that are frequent in Shakespeare, a lookup in a
table of zeros and ones. Nine methods climb the expected score: its exact gradient, four estimators
by the score function and four by relaxation. Two climb the expected score plus a bonus for entropy.
All start from the same parameters, see the same noise, sixteen strings a step, and take the same
steps of Adam. Expected score and entropy are exact, so the learning curves have no noise of their
own, and bias is measured from the exact gradient.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from gradbook import comparisons, data, device, sequence_gradients, sequence_laws, sequences
from gradbook.gumbel import gumbel_noise
from gradbook.sequence_training import Method, climb
from gradbook.sequences import Theta

SEEDS = tuple(range(5))
VOCABULARY = len(sequences.ALPHABET)
LENGTH = 12
SHARE = 0.1
WIDTH = 16
HIDDEN = 64
STRINGS = 16
STEPS = 1000
SHORT_STEPS = 40
RATE = 0.003
BONUS = 0.02
REPLICATES = 500
SHORT_REPLICATES = 200
# How many gradients are computed at once: more would only fill the memory.
CHUNK = 25
SHOWN = 3
CURVE = {0, *torch.logspace(0, math.log10(STEPS), 60).round().int().tolist()}


def _exact(surrogate: Callable[..., Tensor], **settings: float) -> Method:
    return Method(lambda theta, reward, *_: surrogate(theta, reward, LENGTH, **settings))


def _sampled(surrogate: Callable[..., Tensor], **settings: float) -> Method:
    return Method(lambda theta, reward, noise, _: surrogate(theta, reward, noise, **settings))


METHODS = {
    "exact": _exact(sequence_gradients.exact),
    "reinforce": Method(sequence_gradients.reinforce),
    "moving_average": Method(sequence_gradients.reinforce, decay=0.9),
    "leave_one_out": _sampled(sequence_gradients.leave_one_out),
    "reward_to_go": _sampled(sequence_gradients.reward_to_go),
    "gumbel_softmax_1": _sampled(sequence_gradients.gumbel_softmax, temperature=1.0),
    "gumbel_softmax_0.5": _sampled(sequence_gradients.gumbel_softmax, temperature=0.5),
    "gumbel_softmax_0.1": _sampled(sequence_gradients.gumbel_softmax, temperature=0.1),
    "straight_through_1": _sampled(sequence_gradients.straight_through_gumbel, temperature=1.0),
    "exact_with_entropy": _exact(sequence_gradients.exact_with_entropy, weight=BONUS),
    "with_entropy": _sampled(sequence_gradients.with_entropy, weight=BONUS),
}
UNBIASED = ("reinforce", "moving_average", "leave_one_out", "reward_to_go")
BIASED = tuple(name for name in METHODS if name[-1].isdigit())


def data_digest() -> str:
    """Summarize the data that the record depends on.

    Returns:
        The SHA-256 of the text, by which :func:`gradbook.data.shakespeare` knows it.
    """
    return data.SHAKESPEARE_SHA256


def table() -> Tensor:
    """Mark the tenth of all trigrams that Shakespeare has most of.

    Returns:
        Zeros and ones, float64 [27, 27, 27], on the book's device.
    """
    return sequences.frequent(_counts(), SHARE).to(device())


def initial(seed: int) -> Theta:
    """Draw the parameters that every method of one seed starts from.

    Args:
        seed: of the generator.

    Returns:
        Parameters on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = sequences.initial(generator, VOCABULARY, WIDTH, HIDDEN)
    return {name: part.to(device()) for name, part in theta.items()}


def noises(seed: int, steps: int) -> Iterator[Tensor]:
    """Yield the noise of each step, drawn on the CPU so that every device sees the same.

    Args:
        seed: of the generator.
        steps: how many batches.

    Yields:
        Standard Gumbel draws [16, 12, 27] on the book's device.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        shape = (STRINGS, LENGTH, VOCABULARY)
        yield gumbel_noise(shape, generator, torch.float64, device())


def run(seed: int) -> dict[str, Any]:
    """Train by every method from one seed.

    Args:
        seed: of the parameters and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``steps``, at which the curves are
        sampled; ``fits`` by method (curves of the exact ``reward`` and of
        the ``entropy`` in nats; three ``strings`` drawn at the end;
        ``seconds``); ``strings`` drawn at the start with the same noise;
        ``midway``, the step at which the exact gradient has reached a
        reward of one half; ``gradients`` at the ``start`` and ``midway``,
        as :func:`measure`.
    """
    reward, fits = table(), {}
    for name in METHODS:
        started = time.perf_counter()
        kept = climbed(name, seed, reward, STEPS, CURVE)
        seconds = time.perf_counter() - started
        if name == "exact":
            path = kept
        fits[name] = {**_summary(kept, reward, seed), "seconds": seconds}
    curve = fits["exact"]["reward"]
    midway = next(step for step, value in zip(path, curve, strict=True) if value >= 0.5)
    noise = torch.stack(list(noises(seed + 2_000, REPLICATES)))
    names = (*UNBIASED, *BIASED)
    return {
        "short": run_short(seed),
        "steps": list(path),
        "fits": fits,
        "strings": _strings(path[0], seed),
        "midway": midway,
        "gradients": {
            "start": measure(names, path[0], reward, noise),
            "midway": measure(names, path[midway], reward, noise),
        },
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the parameters and the noise.

    Returns:
        The exact reward after 40 steps by leave-one-out and by
        Gumbel-Softmax at temperature 1; at the start, how many times the
        variance of the relaxed gradient the other has, as a logarithm to
        base 10, and the slope of the relaxed gradient as :func:`measure`.
    """
    names, reward, theta = ("leave_one_out", "gumbel_softmax_1"), table(), initial(seed)
    ends = [climbed(n, seed, reward, SHORT_STEPS, {SHORT_STEPS}) for n in names]
    loo, relaxed = (_reward(end[SHORT_STEPS], reward) for end in ends)
    noise = torch.stack(list(noises(seed + 2_000, SHORT_REPLICATES)))
    found = measure(names, theta, reward, noise)
    ratio = found["leave_one_out"]["variance"] / found["gumbel_softmax_1"]["variance"]
    return {
        "reward_leave_one_out": loo,
        "reward_gumbel_softmax": relaxed,
        "log10_variance_ratio": math.log10(ratio),
        "slope_gumbel_softmax": found["gumbel_softmax_1"]["slope"],
    }


def climbed(name: str, seed: int, reward: Tensor, steps: int, keep: set[int]) -> dict[int, Theta]:
    """Train by one method, the step size falling linearly to zero over a full run.

    Args:
        name: of the method.
        seed: of the parameters and the noise.
        reward: [27, 27, 27].
        steps: how many, at most ``STEPS``: a short run is the beginning
            of a long one.
        keep: after which steps to keep the parameters; 0 is the start.

    Returns:
        The kept parameters, by step.
    """
    rates = [RATE * (1 - step / STEPS) for step in range(steps)]
    batches = noises(seed + 1_000, steps)
    return climb(METHODS[name], initial(seed), reward, batches, rates, keep)


def measure(
    names: Collection[str],
    theta: Theta,
    reward: Tensor,
    noise: Tensor,
) -> dict[str, dict[str, float]]:
    """Compare gradients of one batch with the exact gradient g.

    The moving average is taken where it would settle, at the expected
    reward.

    Args:
        names: of the methods.
        theta: where.
        reward: [27, 27, 27].
        noise: n batches, [n, 16, 12, 27].

    Returns:
        By method, the fields of :class:`gradbook.comparisons.Comparison`.
    """
    exact = _flat(grad(sequence_gradients.exact)(theta, reward, LENGTH), 0)
    settled, found = _reward(theta, reward), {}
    for name in names:
        baseline = settled if METHODS[name].decay < 1 else 0.0
        one = vmap(grad(METHODS[name].surrogate), (None, None, 0, None), chunk_size=CHUNK)
        rows = one(theta, reward, noise, baseline)
        found[name] = comparisons.compare(_flat(rows, 1), exact)._asdict()
    return found


def reference() -> dict[str, Any]:
    """Compute the yardsticks, on the CPU whatever the book's device is.

    Returns:
        ``threshold``, the least count of a frequent trigram; ``frequent``,
        how many there are; ``text``, the share of frequent trigrams in
        Shakespeare's text, and the entropy of twelve of its letters, each
        given the two before it; ``best``, the law on strings that
        maximizes reward plus ``weight`` times entropy.
    """
    found = _counts()
    reward = sequences.frequent(found, SHARE)
    shares, best = grad_and_value(sequence_laws.soft_maximum)(reward, LENGTH, BONUS)
    score = (shares * reward).sum().item()
    return {
        "threshold": found[reward > 0].min().item(),
        "frequent": int(reward.sum()),
        "text": {
            "reward": ((found * reward).sum() / found.sum()).item(),
            "entropy": LENGTH * sequences.next_entropy(found).item(),
        },
        "best": {
            "weight": BONUS,
            "objective": best.item(),
            "reward": score,
            "entropy": (best.item() - score) / BONUS,
        },
    }


def _counts() -> Tensor:
    return sequences.trigram_counts(sequences.encode(data.shakespeare()), VOCABULARY)


def _summary(kept: dict[int, Theta], reward: Tensor, seed: int) -> dict[str, Any]:
    policies = [sequences.log_policy(theta) for theta in kept.values()]
    return {
        "reward": [sequence_laws.expected_reward(p, reward, LENGTH).item() for p in policies],
        "entropy": [sequence_laws.entropy(p, LENGTH).item() for p in policies],
        "strings": _strings(kept[STEPS], seed),
    }


def _strings(theta: Theta, seed: int) -> list[str]:
    noise = next(noises(seed + 3_000, 1))[:SHOWN]
    tokens = sequences.draw(sequences.log_policy(theta), noise)
    return [sequences.decode(row) for row in tokens]


def _reward(theta: Theta, reward: Tensor) -> float:
    return sequence_gradients.exact(theta, reward, LENGTH).item()


def _flat(theta: Theta, axes: int) -> Tensor:
    """Join all parameters on one axis, after ``axes`` leading ones."""
    return torch.cat([part.flatten(axes) for part in theta.values()], -1)
