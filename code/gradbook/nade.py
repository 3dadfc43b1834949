"""Two autoregressive models of binary pixels: one logistic regression a pixel, and NADE.

Both give P(x_i = 1 | x_1 ... x_{i-1}) by a logit that sees the earlier pixels alone. The fully
visible sigmoid belief network (FVSBN) has a weight for each pair of pixels. The neural
autoregressive distribution estimator (NADE) has hidden units whose activation a_i is the bias plus
the weights of the earlier pixels that are 1; one pixel more costs one addition,
a_{i+1} = a_i + x_i W_i. Pictures are zeros and ones [N, n], in the type of the parameters.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradbook.bits import require_bits
from gradbook.checks import require, require_finite


class Fvsbn(NamedTuple):
    """Weights [n, n], where row i is for pixel i and only what is left of the diagonal counts; bias [n].

    Source: Neal 1992; Frey 1998.
    """

    weights: Tensor
    bias: Tensor


class Nade(NamedTuple):
    """Weights W [n, H] and bias [H] into the hidden units, output weights V [n, H] and bias [n].

    The last row of W belongs to the last pixel, which nothing comes after:
    it is counted, but no logit depends on it.

    Source: Larochelle and Murray 2011.
    """

    weights: Tensor
    hidden_bias: Tensor
    output: Tensor
    bias: Tensor


def initial_fvsbn(n: int) -> Fvsbn:
    """Make a network of fair coins.

    Args:
        n: pixels, at least 1.

    Returns:
        Zeros, float32 on the CPU.

    Raises:
        ValueError: if there is no pixel.
    """
    if n < 1:
        raise ValueError(f"n: must be at least 1, got {n}")
    weights = torch.zeros(n, n, dtype=torch.float32, device="cpu")
    return Fvsbn(weights, torch.zeros_like(weights[0]))


def initial_nade(n: int, hidden: int, generator: torch.Generator) -> Nade:
    """Draw the weights that a training starts from.

    Args:
        n: pixels, at least 1.
        hidden: hidden units, at least 1.
        generator: of the CPU.

    Returns:
        Weights uniform with Glorot's bound, biases zero, float32 on the
        CPU.

    Raises:
        ValueError: if a size is not positive.

    Source: X. Glorot and Y. Bengio, 2010, equation 16.
    """
    for name, size in (("n", n), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")
    bound = (6 / (n + hidden)) ** 0.5
    drawn = torch.empty(2, n, hidden, dtype=torch.float32, device="cpu")
    weights, output = drawn.uniform_(-bound, bound, generator=generator)
    zeros = torch.zeros_like(drawn[0, 0]), torch.zeros_like(drawn[0, :, 0])
    return Nade(weights.clone(), zeros[0], output.clone(), zeros[1])


def fvsbn_logits(theta: Fvsbn, x: Tensor) -> Tensor:
    """Compute the logit of every pixel, given those before it.

    Args:
        theta: of n pixels.
        x: [N, n].

    Returns:
        [N, n].

    Raises:
        ValueError: if the parameters do not fit together or are not
            finite, or ``x`` is not rows of n bits.

    Source: Neal 1992; Frey 1998.
    """
    _check_fvsbn(theta)
    require_bits("x", x, len(theta.bias))
    return theta.bias + x @ theta.weights.tril(-1).T


def nade_logits(theta: Nade, x: Tensor) -> Tensor:
    """Compute the logit of every pixel, given those before it.

    One pixel after another: a picture's activations stay in the cache,
    where all of them at once, [N, n, H], would not.

    Args:
        theta: of n pixels.
        x: [N, n].

    Returns:
        [N, n].

    Raises:
        ValueError: as :func:`fvsbn_logits`.

    Source: Larochelle and Murray 2011.
    """
    _check_nade(theta)
    require_bits("x", x, len(theta.bias))
    activation = theta.hidden_bias.expand(len(x), -1)
    logits = []
    rows = zip(x.unbind(1), theta.weights, theta.output, strict=True)
    for pixel, weights, output in rows:
        logits.append(activation.sigmoid() @ output)
        activation = torch.addr(activation, pixel, weights)
    return theta.bias + torch.stack(logits, 1)


def nade_features(theta: Nade, x: Tensor) -> Tensor:
    """Compute the hidden units that the last pixel is predicted from.

    Args:
        theta: of n pixels.
        x: [N, n]; the last column is not used.

    Returns:
        [N, H], from 0 to 1.

    Raises:
        ValueError: as :func:`fvsbn_logits`.
    """
    _check_nade(theta)
    require_bits("x", x, len(theta.bias))
    activation = theta.hidden_bias + x[:, :-1] @ theta.weights[:-1]
    return activation.sigmoid()


def log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Sum the log-probabilities of the pixels.

    Args:
        logits: [N, n], of the same pictures.
        x: [N, n].

    Returns:
        [N], in nats.

    Raises:
        ValueError: if the shapes differ, ``x`` is not rows of bits, or a
            logit is not finite.
    """
    if logits.shape != x.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(x.shape)}"
        raise ValueError(f"logits: must have the shape of x, {shapes}")
    require_bits("x", x)
    require_finite(logits=logits)
    cross_entropy = functional.binary_cross_entropy_with_logits
    return -cross_entropy(logits, x, reduction="none").sum(1)


@torch.no_grad()
def fvsbn_sample(theta: Fvsbn, uniforms: Tensor) -> Tensor:
    """Draw pictures, a pixel at a time.

    Args:
        theta: of n pixels.
        uniforms: [N, n], at least 0 and below 1.

    Returns:
        Zeros and ones [N, n].

    Raises:
        ValueError: if the parameters do not fit together or are not
            finite, or the noise has another shape or is out of range.
    """
    _check_fvsbn(theta)
    _check_uniforms(uniforms, len(theta.bias))
    logits, pixels = theta.bias.expand_as(uniforms), []
    for i, u in enumerate(uniforms.unbind(1)):
        pixels.append((u < logits[:, i].sigmoid()).to(logits.dtype))
        # What this adds to pixels already drawn is never read.
        logits = torch.addr(logits, pixels[i], theta.weights[:, i])
    return torch.stack(pixels, 1)


@torch.no_grad()
def nade_sample(theta: Nade, uniforms: Tensor) -> Tensor:
    """Draw pictures, a pixel at a time, with a running activation.

    Args:
        theta: of n pixels.
        uniforms: [N, n], at least 0 and below 1.

    Returns:
        Zeros and ones [N, n].

    Raises:
        ValueError: as :func:`fvsbn_sample`.

    Source: Larochelle and Murray 2011.
    """
    _check_nade(theta)
    _check_uniforms(uniforms, len(theta.bias))
    activation = theta.hidden_bias.expand(len(uniforms), -1)
    pixels = []
    for i, u in enumerate(uniforms.unbind(1)):
        logits = theta.bias[i] + activation.sigmoid() @ theta.output[i]
        pixels.append((u < logits.sigmoid()).to(activation.dtype))
        activation = torch.addr(activation, pixels[i], theta.weights[i])
    return torch.stack(pixels, 1)


def _check_fvsbn(theta: Fvsbn) -> None:
    n = len(theta.bias)
    if n < 1 or theta.bias.ndim != 1 or theta.weights.shape != (n, n):
        _refuse(theta)
    for part in theta:
        require_finite(theta=part)


def _check_nade(theta: Nade) -> None:
    n, hidden = len(theta.bias), len(theta.hidden_bias)
    shapes = [tuple(part.shape) for part in theta]
    if min(n, hidden) < 1 or shapes != [(n, hidden), (hidden,), (n, hidden), (n,)]:
        _refuse(theta)
    for part in theta:
        require_finite(theta=part)


def _refuse(theta: Fvsbn | Nade) -> None:
    shapes = ", ".join(str(tuple(part.shape)) for part in theta)
    raise ValueError(f"theta: shapes {shapes} do not fit")


def _check_uniforms(uniforms: Tensor, n: int) -> None:
    if uniforms.ndim != 2 or uniforms.shape[1] != n:
        raise ValueError(f"uniforms: must be [N, {n}], is {tuple(uniforms.shape)}")
    require((uniforms >= 0) & (uniforms < 1), "uniforms: must be in [0, 1)")
