"""Compacter: adapters whose matrices are sums of Kronecker products with shared factors.

A matrix [in, out] is sum_i A_i (x) s_i t_i, with the n small matrices A_i [n, n] shared by the
whole model, and a column s_i [in/n, r] and a row t_i [r, out/n] of its own.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.peft.adapters import ENDS_ATTENTION, ENDS_FEED_FORWARD, Serial, innermost
from gradbook.peft.injection import Injection, Where, inject, matrix


def kronecker_sum(a: Tensor, b: Tensor) -> Tensor:
    """Compute the sum over i of the Kronecker products of a_i and b_i.

    Args:
        a: [n, p, q].
        b: [n, r, s].

    Returns:
        [p r, q s].

    Raises:
        ValueError: if the arguments have not three axes and one n.
    """
    if a.ndim != 3 or b.ndim != 3 or len(a) != len(b):
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise ValueError(f"a: must be [n, p, q] beside b, [n, r, s], got {shapes}")
    blocks = torch.einsum("ipq,irs->prqs", a, b)
    rows, columns = a.shape[1] * b.shape[1], a.shape[2] * b.shape[2]
    return blocks.reshape(rows, columns)


class PHM(nn.Module):
    """A linear layer with a matrix of few numbers: x -> x W + b, W = sum_i A_i (x) s_i t_i.

    The forward pass forms W, as the authors' code does: that costs little
    beside the product with many rows, and keeps W's own size in memory.
    So numbers to train and to store are saved, and time is not.

    At the start the entries of W have mean 0 and standard deviation
    ``std``, if those of A have variance 1/n, as :func:`shared_factors`
    draws them: s and t are normal of variance ``std / sqrt(r)``. This is
    not the authors' start, and makes it comparable with
    :class:`gradbook.peft.adapters.Bottleneck`. The bias starts at zero.

    Args:
        inputs: of the layer; n divides it.
        outputs: of the layer; n divides it.
        shared: A, [n, n, n], the same parameter in all layers.
        generator: of s and t, on the CPU.
        rank: r, of every s_i t_i.
        std: of an entry of W at the start.

    Attributes:
        shared: A, [n, n, n].
        left: s, [n, inputs / n, r].
        right: t, [n, r, outputs / n].
        bias: b, [outputs].

    Raises:
        ValueError: if n does not divide a size, or as
            :func:`phm_parameters`.

    Source: Zhang et al. 2021, "Beyond fully-connected layers with
    quaternions", section 3; Karimi Mahabadi et al. 2021, section 4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shared: nn.Parameter,
        generator: torch.Generator,
        rank: int = 1,
        std: float = 1e-2,
    ):
        super().__init__()
        if shared.ndim != 3 or len(set(shared.shape)) > 1:
            raise ValueError(f"shared: must be [n, n, n], got {list(shared.shape)}")
        n = len(shared)
        phm_parameters(inputs, outputs, n, rank)
        if not 0 <= std < math.inf:
            raise ValueError(f"std: must be finite and not negative, got {std}")
        to = {"dtype": shared.dtype, "device": shared.device}
        each = (std / rank**0.5) ** 0.5
        self.inputs, self.shared = inputs, shared
        self.left = nn.Parameter((each * _normal(generator, n, inputs // n, rank)).to(**to))
        self.right = nn.Parameter((each * _normal(generator, n, rank, outputs // n)).to(**to))
        self.bias = nn.Parameter(torch.zeros(outputs, **to))

    def weight(self) -> Tensor:
        """Form the matrix.

        Returns:
            W, [inputs, outputs].
        """
        return kronecker_sum(self.shared, self.left @ self.right)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: [..., inputs].

        Returns:
            [..., outputs].

        Raises:
            ValueError: if the last axis of x is not ``inputs`` long.
        """
        if x.shape[-1:] != (self.inputs,):
            raise ValueError(f"x: must be [..., {self.inputs}], got {list(x.shape)}")
        return x @ self.weight() + self.bias


class PHMBottleneck(nn.Module):
    """An adapter as :class:`gradbook.peft.adapters.Bottleneck`, of two :class:`PHM` layers.

    Args:
        width: d; n divides it.
        size: m; n divides it.
        shared: A, [n, n, n].
        generator: of the layers' own factors, on the CPU.
        rank: of both.
        activation: elementwise.

    Attributes:
        down: d to m.
        up: m to d.

    Raises:
        ValueError: as :class:`PHM`.

    Source: Karimi Mahabadi et al. 2021, section 4.
    """

    def __init__(
        self,
        width: int,
        size: int,
        shared: nn.Parameter,
        generator: torch.Generator,
        rank: int = 1,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
    ):
        super().__init__()
        self.activation = activation
        self.down = PHM(width, size, shared, generator, rank)
        self.up = PHM(size, width, shared, generator, rank)

    def branch(self, h: Tensor) -> Tensor:
        """Compute what is added to h, [..., d]; raises as :meth:`PHM.forward`."""
        return self.up(self.activation(self.down(h)))

    def forward(self, h: Tensor) -> Tensor:
        """Adapt hidden states, [..., d]; raises as :meth:`PHM.forward`."""
        return h + self.branch(h)


def shared_factors(
    n: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Parameter:
    """Draw the matrices that all layers share.

    Args:
        n: how many, and their sides.
        generator: of the CPU.
        dtype: of the result.
        device: of the result.

    Returns:
        A, [n, n, n], normal of variance 1/n.

    Raises:
        ValueError: if n is not positive.
    """
    if n < 1:
        raise ValueError(f"n: must be positive, got {n}")
    return nn.Parameter((_normal(generator, n, n, n) / n**0.5).to(device, dtype))


def phm_parameters(inputs: int, outputs: int, n: int, rank: int = 1) -> int:
    """Count a layer's own numbers, without what is shared: r (in + out) + out.

    Args:
        inputs: of the layer.
        outputs: of the layer.
        n: divides both; the count does not depend on it.
        rank: r.

    Returns:
        The count.

    Raises:
        ValueError: if a number is not positive or n does not divide a
            size.
    """
    sizes = {"inputs": inputs, "outputs": outputs, "n": n, "rank": rank}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}: must be positive, got {value}")
    if inputs % n or outputs % n:
        raise ValueError(f"n: must divide {inputs} and {outputs}, got {n}")
    return rank * (inputs + outputs) + outputs


def compacter_parameters(width: int, size: int, n: int, adapters: int, rank: int = 1) -> int:
    """Count what is trained: n^3 + adapters (2 r (d + m) + d + m).

    Args:
        width: d.
        size: m.
        n: as for :func:`phm_parameters`.
        adapters: how many the model has; 2 in a block.
        rank: r.

    Returns:
        The count.

    Raises:
        ValueError: as :func:`phm_parameters`, or if there are no adapters.
    """
    if adapters < 1:
        raise ValueError(f"adapters: must be positive, got {adapters}")
    own = phm_parameters(width, size, n, rank) + phm_parameters(size, width, n, rank)
    return n**3 + adapters * own


def compacter(
    model: nn.Module,
    size: int,
    n: int,
    generator: torch.Generator,
    attention: Where = ENDS_ATTENTION,
    feed_forward: Where = ENDS_FEED_FORWARD,
) -> Injection:
    """Put two adapters of rank 1 into every block, in the places of Houlsby.

    The LayerNorms stay frozen, unlike
    :func:`gradbook.peft.adapters.houlsby`.

    Args:
        model: changed in place.
        size: m, of every adapter.
        n: divides the size and the model's width.
        generator: of the weights, on the CPU.
        attention: chooses the linear layers that end attention.
        feed_forward: chooses the linear layers that end the feed-forward
            branch.

    Returns:
        What was done; the shared matrices count once.

    Raises:
        ValueError: if a chosen layer is not linear, or as
            :func:`shared_factors`, :class:`PHM` and
            :func:`gradbook.peft.injection.inject`.

    Source: Karimi Mahabadi et al. 2021, section 4.
    """

    def where(name: str, module: nn.Module) -> bool:
        return attention(name, module) or feed_forward(name, module)

    # Drawn for the first layer, in its type, and the same for all that have this type.
    shared = cache(partial(shared_factors, n, generator))

    def make(layer: nn.Module) -> nn.Module:
        weight = matrix(innermost(layer))
        factors = shared(weight.dtype, weight.device)
        return Serial(layer, PHMBottleneck(weight.shape[0], size, factors, generator))

    return inject(model, where, make)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
