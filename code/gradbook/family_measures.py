"""What models of binary pixels are measured by: log-probability, draws, and features for labels.

Every estimate comes with its standard error over the images or draws that it averages.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gradbook import vae_training
from gradbook.families import Model, in_chunks

CHUNK = 100


class Bits(NamedTuple):
    """A data set: bits [N, n] of two splits, and what else is known of them.

    Attributes:
        train: to train on.
        test: to measure on.
        labels: int64 of both splits, or None.
        log_prob: from bits [N, n], the exact log-probability [N] in float64, or None.
    """

    train: Tensor
    test: Tensor
    labels: tuple[Tensor, Tensor] | None = None
    log_prob: Callable[[Tensor], Tensor] | None = None


def pooled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Halve the sides of images, then draw every pixel from its grey level.

    Args:
        images: from 0 to 255, [N, height, width], both even.
        generator: on the images' device.

    Returns:
        float32 zeros and ones, [N, height width / 4], row by row.

    Raises:
        ValueError: if a side is odd, or a value out of range.
    """
    if images.ndim != 3 or images.shape[1] % 2 or images.shape[2] % 2:
        raise ValueError(f"images: must be [N, even, even], is {tuple(images.shape)}")
    blocks = images.float().unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return vae_training.binarized(blocks.mean((2, 4)).flatten(1) / 255, generator)


def estimate(values: Tensor) -> dict[str, float]:
    """Average independent values.

    Args:
        values: [N].

    Returns:
        Their mean as ``value``, and its ``stderr``.

    Raises:
        ValueError: if there are fewer than two.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values: must be [N], N at least 2, is {tuple(values.shape)}")
    stderr = values.std() / math.sqrt(len(values))
    return {"value": values.mean().item(), "stderr": stderr.item()}


def likelihood(
    model: Model,
    bits: Bits,
    images: int,
    generator: torch.Generator,
) -> dict[str, Any] | None:
    """Measure the log-probability q of the first images of both splits.

    Args:
        model: of any family.
        bits: the set.
        images: how many of each split.
        generator: of the noise.

    Returns:
        ``nll``, the mean of -log q over test images in nats, and
        ``train_nll``; ``bits_per_dimension``; where the density p is known
        ``kl``, the mean of log p - log q: an estimate of KL(p || q), or,
        where log q is bounded, of what is above it. All but the third are
        as :func:`estimate`. None for a model that has no log-probability.
    """
    if model.log_prob is None:
        return None
    measure = partial(model.log_prob, generator=generator)
    test, train = bits.test[:images], bits.train[:images]
    log_q, log_q_train = (in_chunks(measure, x, CHUNK).double() for x in (test, train))
    nll = estimate(-log_q)
    found = {
        "nll": nll,
        "train_nll": estimate(-log_q_train),
        "bits_per_dimension": nll["value"] / (test.shape[1] * math.log(2)),
    }
    if bits.log_prob is not None:
        found["kl"] = estimate(bits.log_prob(test) - log_q)
    return found


def independent(bits: Bits) -> Model:
    """Fit pixels that know nothing of each other.

    Args:
        bits: the set; each pixel counts as seen once more in each state.

    Returns:
        A model that is not trained further: it has no players, no draws
        and no features, but an exact ``log_prob`` in float64.
    """
    on = (bits.train.double().sum(0) + 1) / (len(bits.train) + 2)

    def log_prob(x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.where(x > 0, on.log(), (-on).log1p()).sum(1)

    return Model((), None, None, log_prob)


def probe(
    features: Callable[[Tensor], Tensor],
    bits: Bits,
    images: int,
    strength: float,
) -> float:
    """Measure how well a linear classifier tells the labels from features.

    Args:
        features: from bits [N, n] to [N, f].
        bits: a set with labels.
        images: how many of each split, the first ones.
        strength: scikit-learn's C, the inverse of the penalty's, for
            features of mean 0 and standard deviation 1.

    Returns:
        The share of the test images that it gets right.

    Raises:
        ValueError: if the set has no labels.
    """
    if bits.labels is None:
        raise ValueError("bits: must have labels")
    splits = bits.train[:images], bits.test[:images]
    train, test = (in_chunks(features, x, CHUNK).double().cpu() for x in splits)
    labels, truth = (y[:images].cpu().numpy() for y in bits.labels)
    scale, mean = torch.std_mean(train, 0)
    # A feature that never varies is left out, not blown up.
    scale = scale.where(scale > 0, math.inf)
    train, test = ((x - mean) / scale for x in (train, test))
    classifier = LogisticRegression(C=strength, max_iter=1_000).fit(train.numpy(), labels)
    return float(classifier.score(test.numpy(), truth))
