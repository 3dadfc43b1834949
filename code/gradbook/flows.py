"""A normalizing flow of affine coupling layers (real NVP), on vectors and on bits.

Data x [n, d] and noise z [n, d] are images of each other under a bijection; a standard normal z
gives x the density N(z; 0, 1) ``|det dz/dx|``. A coupling keeps half of the coordinates, and from them
computes how the others are scaled and shifted, so that its Jacobian is triangular: its
log-determinant is a sum of logarithms of scales, and its inverse needs the same network once more.

Bits x in {0, 1}^d have no density. The cube (0, 1)^d does: cut at 1/2 in every direction, it has
one cell for every x, and the flow's probability of x is that of its cell. The normal quantile
function takes the cube to R^d, where the flow lives.
"""

import math

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite

#: One coupling scales a coordinate by at most exp(LARGEST_LOG_SCALE), and at least its inverse.
LARGEST_LOG_SCALE = 2.0


class Coupling(nn.Module):
    """A network of one hidden layer, from the kept coordinates to the others' scales and shifts.

    Args:
        kept: indices of the coordinates that stay as they are.
        changed: indices of all others.
        hidden: units of the hidden layer.
    """

    def __init__(self, kept: Tensor, changed: Tensor, hidden: int):
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("changed", changed)
        self.hidden = nn.Linear(len(kept), hidden)
        self.out = nn.Linear(hidden, 2 * len(changed))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the affine map of the changed coordinates.

        Args:
            x: [n, d]; only the kept coordinates count.

        Returns:
            Logarithms of scales and shifts, each [n, changed].
        """
        raw = self.out(self.hidden(x[:, self.kept]).tanh())
        log_scale, shift = raw.chunk(2, -1)
        return LARGEST_LOG_SCALE * (log_scale / LARGEST_LOG_SCALE).tanh(), shift


class Flow(nn.Module):
    """A row of couplings, which keep the coordinates of even and of odd index in turn.

    Args:
        dimensions: d, at least 2.
        hidden: units in the hidden layer of each coupling.
        layers: how many couplings.

    Attributes:
        dimensions: d.
        couplings: from data to noise.
    """

    def __init__(self, dimensions: int, hidden: int, layers: int):
        super().__init__()
        self.dimensions = dimensions
        index = torch.arange(dimensions)
        halves = index[0::2], index[1::2]
        self.couplings = nn.ModuleList(
            Coupling(halves[i % 2], halves[1 - i % 2], hidden) for i in range(layers)
        )


def build(dimensions: int, hidden: int, layers: int, generator: torch.Generator) -> Flow:
    """Build a flow that starts as the identity.

    Weights into the hidden units are uniform with Glorot's bound; those
    out of them, and all biases, are zero.

    Args:
        dimensions: d, at least 2.
        hidden: units in the hidden layer of each coupling.
        layers: how many couplings; two change every coordinate once.
        generator: of the CPU.

    Returns:
        A float32 flow on the CPU.

    Raises:
        ValueError: if there are fewer than 2 dimensions, or another size
            is not positive.

    Source: L. Dinh, J. Sohl-Dickstein and S. Bengio, 2017, section 3.
    """
    for name, size, least in (
        ("dimensions", dimensions, 2),
        ("hidden", hidden, 1),
        ("layers", layers, 1),
    ):
        if size < least:
            raise ValueError(f"{name}: must be at least {least}, got {size}")
    # torch's own initialization draws from its global generator: put that back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        flow = Flow(dimensions, hidden, layers)
    # A page's default type may be float64, whose draws would be other weights.
    flow = flow.float()
    for coupling in flow.couplings:
        nn.init.xavier_uniform_(coupling.hidden.weight, generator=generator)
        for zero in (coupling.hidden.bias, coupling.out.weight, coupling.out.bias):
            nn.init.zeros_(zero)
    return flow


def to_noise(flow: Flow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Map data to noise, and measure how much that stretches space.

    Args:
        flow: over d coordinates.
        x: [n, d].

    Returns:
        The noise z [n, d], and ``log |det dz/dx|`` [n].

    Raises:
        ValueError: if ``x`` is not [n, d] or not finite.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, equations 6 to 8.
    """
    z = _rows("x", x, flow)
    log_det = x.new_zeros(len(x))
    for coupling in flow.couplings:
        log_scale, shift = coupling(z)
        moved = z[:, coupling.changed] * log_scale.exp() + shift
        z = z.index_copy(1, coupling.changed, moved)
        log_det = log_det + log_scale.sum(-1)
    return z, log_det


def to_data(flow: Flow, z: Tensor) -> Tensor:
    """Map noise to data, the inverse of :func:`to_noise`.

    Args:
        flow: over d coordinates.
        z: [n, d]; standard normal draws become draws of the flow.

    Returns:
        The data x [n, d].

    Raises:
        ValueError: if ``z`` is not [n, d] or not finite.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, equation 8.
    """
    x = _rows("z", z, flow)
    for coupling in reversed(flow.couplings):
        log_scale, shift = coupling(x)
        moved = (x[:, coupling.changed] - shift) * (-log_scale).exp()
        x = x.index_copy(1, coupling.changed, moved)
    return x


def log_prob(flow: Flow, x: Tensor) -> Tensor:
    """Compute the log density of a flow, by the change of variables.

    Args:
        flow: over d coordinates.
        x: [n, d].

    Returns:
        log N(z; 0, 1) + ``log |det dz/dx|``, [n], in nats.

    Raises:
        ValueError: as :func:`to_noise`.

    Source: Dinh, Sohl-Dickstein and Bengio 2017, equation 3.
    """
    z, log_det = to_noise(flow, x)
    normalizer = 0.5 * flow.dimensions * math.log(2 * math.pi)
    return log_det - 0.5 * z.square().sum(-1) - normalizer


def dequantized(x: Tensor, uniforms: Tensor) -> Tensor:
    """Spread every bit over its half of the unit interval.

    Args:
        x: zeros and ones, [n, d].
        uniforms: from 0 to 1, of the same shape and type.

    Returns:
        (x + u) / 2, strictly between 0 and 1: a value that rounds to an
        end is half a rounding error away from it.

    Raises:
        ValueError: if ``x`` has another value than 0 and 1, or the
            uniforms another shape or a value outside [0, 1].
    """
    require((x == 0) | (x == 1), "x: must be zeros and ones")
    if uniforms.shape != x.shape:
        shapes = f"{tuple(uniforms.shape)} for x {tuple(x.shape)}"
        raise ValueError(f"uniforms: must have the shape of x, is {shapes}")
    require((uniforms >= 0) & (uniforms <= 1), "uniforms: must be from 0 to 1")
    v = (x + uniforms) / 2
    least = torch.finfo(v.dtype).eps / 2
    return v.clamp(least, 1 - least)


def to_line(v: Tensor) -> tuple[Tensor, Tensor]:
    """Map the unit cube to the whole space by the normal quantile function.

    It maps uniform numbers to normal ones, so that a flow that is the
    identity is uniform on the cube. It maps onto the whole line: no mass
    of a flow lies outside the cube.

    Args:
        v: [n, d], strictly between 0 and 1.

    Returns:
        The quantiles y [n, d], and ``log |det dy/dv|`` [n].

    Raises:
        ValueError: if a value is not strictly between 0 and 1.
    """
    require((v > 0) & (v < 1), "v: must be strictly between 0 and 1")
    y = torch.special.ndtri(v)
    # dy/dv is one over the normal density at y
    return y, (0.5 * y.square() + 0.5 * math.log(2 * math.pi)).sum(-1)


def to_cube(y: Tensor) -> Tensor:
    """Map the whole space to the unit cube, the inverse of :func:`to_line`.

    Args:
        y: any shape.

    Returns:
        The normal distribution function of every element.
    """
    return torch.special.ndtr(y)


def bits_log_prob_bound(flow: Flow, x: Tensor, uniforms: Tensor) -> Tensor:
    """Estimate a lower bound on the log-probability of bits from one draw.

    With q the flow's density on the cube, the probability of x is that of
    its cell, whose volume is 2^-d:

        P(x) = integral of q over the cell = 2^-d E_u q((x + u) / 2).

    By Jensen's inequality log P(x) >= E_u log q((x + u) / 2) - d log 2,
    and what is returned has that mean: not each draw is a bound. The cells
    fill the cube, so the P(x) sum to 1.

    Args:
        flow: over d coordinates.
        x: zeros and ones, [n, d].
        uniforms: from 0 to 1, [n, d], of the type of ``x``.

    Returns:
        log q((x + u) / 2) - d log 2, [n], in nats.

    Raises:
        ValueError: as :func:`dequantized`, or if ``x`` is not [n, d].

    Source: L. Theis, A. van den Oord and M. Bethge, 2016, section 3.1.
    """
    y, log_det = to_line(dequantized(x, uniforms))
    return log_prob(flow, y) + log_det - flow.dimensions * math.log(2)


def bits_sample(flow: Flow, noise: Tensor) -> Tensor:
    """Draw bits: the cell of the cube in which a draw of the flow falls.

    Args:
        flow: over d coordinates.
        noise: standard normal draws, [n, d].

    Returns:
        Zeros and ones, [n, d]; x has the probability P(x) of
        :func:`bits_log_prob_bound`. No gradient passes the threshold.

    Raises:
        ValueError: as :func:`to_data`.
    """
    # The quantile of 1/2 is 0.
    return (to_data(flow, noise) > 0).to(noise.dtype)


def _rows(name: str, rows: Tensor, flow: Flow) -> Tensor:
    if rows.ndim != 2 or rows.shape[1] != flow.dimensions:
        raise ValueError(f"{name}: must be [n, {flow.dimensions}], got {tuple(rows.shape)}")
    require_finite(**{name: rows})
    return rows
