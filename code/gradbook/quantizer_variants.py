"""Quantizers beside the plain codebooks: other gradients, other codes, and none at all.

All have the interface of :mod:`gradbook.quantizers`. Weights and codes start from the caller's
generator, in float32 on the CPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.checks import require_finite
from gradbook.codebooks import require_indices
from gradbook.gumbel import gumbel_max, gumbel_softmax, one_hot, straight_through
from gradbook.noise import gumbel_noise
from gradbook.quantizers import EmaCodebook, Quantized
from gradbook.residual import ResidualCodebook
from gradbook.rotation import rotate
from gradbook.scalar_quantization import (
    finite_scalar_quantize,
    number_of_codes,
    scalar_codes,
    scalar_indices,
)

__all__ = [
    "GumbelCodebook",
    "Identity",
    "ResidualCodebook",
    "RotatedCodebook",
    "ScalarQuantizer",
    "normal_codebook",
]


class GradientTrained(nn.Module):
    """What a quantizer without averages inherits: an update that has nothing to do."""

    def update(
        self,
        z: Tensor,
        indices: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        """Do nothing: the optimizer has moved all there is.

        Args:
            z: not used.
            indices: not used.
            generator: not used.
        """


class Identity(GradientTrained):
    """No quantization: what makes a plain autoencoder of the model.

    Attributes:
        codes: 1, since the only index tells nothing.
    """

    codes = 1

    def forward(self, z: Tensor) -> Quantized:
        """Pass vectors on.

        Args:
            z: [N, D].

        Returns:
            The vectors themselves, no loss, and indices 0.

        Raises:
            ValueError: if z is not floating [N, D] or not finite.
        """
        _require_rows(z)
        indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return Quantized(z, z.new_zeros(()), indices)

    def decode(self, indices: Tensor) -> Tensor:
        """Refuse: an index says nothing about the vector.

        Args:
            indices: any.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a plain autoencoder has no codes to decode")


class RotatedCodebook(EmaCodebook):
    """A codebook of moving averages whose gradient turns with the vector.

    The arguments are those of :class:`gradbook.quantizers.EmaCodebook`.

    Source: Fifty et al. 2024, section 4.
    """

    def forward(self, z: Tensor) -> Quantized:
        """Replace every vector by the nearest code.

        Args:
            z: [N, D], of the codebook's type and device.

        Returns:
            The codes, with the gradient of
            :func:`gradbook.rotation.rotate`; the loss is beta times the
            commitment.

        Raises:
            ValueError: if z has another shape or type or is not finite.
        """
        quantized = super().forward(z)
        return quantized._replace(values=rotate(z, quantized.values.detach()))


class ScalarQuantizer(GradientTrained):
    """Finite scalar quantization between two linear maps.

    Args:
        dim: D, numbers of a vector.
        levels: of each coordinate between the maps.
        generator: of the CPU; draws the maps' weights.

    Raises:
        ValueError: if ``dim`` is not positive, or the levels are not as
            in :func:`gradbook.scalar_quantization.finite_scalar_quantize`.

    Source: Mentzer et al. 2024, section 3.1.
    """

    def __init__(self, dim: int, levels: Sequence[int], generator: torch.Generator):
        super().__init__()
        self.codes = number_of_codes(levels)
        _require_positive(dim=dim)
        self.levels = tuple(levels)
        self.down = _linear(dim, len(levels), generator)
        self.up = _linear(len(levels), dim, generator)

    def forward(self, z: Tensor) -> Quantized:
        """Map down, round, and map up.

        Args:
            z: [N, D], of the maps' type and device.

        Returns:
            Values [N, D], no loss, and the codes' indices.

        Raises:
            ValueError: if z is not floating [N, D] or not finite.
        """
        _require_rows(z, self.down.in_features)
        low = finite_scalar_quantize(self.down(z), self.levels)
        return Quantized(self.up(low), z.new_zeros(()), scalar_indices(low, self.levels))

    def decode(self, indices: Tensor) -> Tensor:
        """Find the vectors of codes.

        Args:
            indices: integers [...].

        Returns:
            [..., D].

        Raises:
            ValueError: if an index is no code.
        """
        return self.up(scalar_codes(indices, self.levels, self.up.weight.dtype))


class GumbelCodebook(GradientTrained):
    """Codes drawn from logits, with the gradient of the Concrete distribution.

    The noise comes from a generator of the module's own, which a copy of
    the module copies too.

    Args:
        dim: D, numbers of a vector.
        codes: how many there are.
        temperature: of the Concrete distribution; may be set between
            steps.
        kl_weight: of the divergence from the uniform distribution.
        generator: of the CPU; draws the weights, the codes, and the seed
            of the noise.

    Raises:
        ValueError: if an argument is not positive, or the weight is
            negative.

    Source: Jang, Gu and Poole 2017; Ramesh et al. 2021, section 2.1. As
    in ``GumbelQuantize`` of taming-transformers, but evaluation takes the
    most probable code where that draws one.
    """

    def __init__(
        self,
        dim: int,
        codes: int,
        temperature: float,
        kl_weight: float,
        generator: torch.Generator,
    ):
        super().__init__()
        _require_positive(dim=dim, codes=codes, temperature=temperature)
        if not 0 <= kl_weight < math.inf:
            raise ValueError(f"kl_weight: must be finite and not negative, got {kl_weight}")
        self.codes, self.temperature, self.kl_weight = codes, temperature, kl_weight
        self.logits = _linear(dim, codes, generator)
        self.codebook = nn.Parameter(normal_codebook(codes, dim, generator))
        seed = torch.randint(2**62, (), generator=generator, device="cpu").item()
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def forward(self, z: Tensor) -> Quantized:
        """Draw a code for every vector; in evaluation, take the most probable one.

        Args:
            z: [N, D], of the weights' type and device.

        Returns:
            The codes; the loss is the mean divergence of their
            distributions from the uniform one, times its weight.

        Raises:
            ValueError: if z is not floating [N, D] or not finite.
        """
        _require_rows(z, self.logits.in_features)
        logits = self.logits(z)
        noise = self._noise(logits)
        indices = gumbel_max(logits, noise)
        hard = one_hot(indices, self.codes, logits.dtype)
        chosen = straight_through(hard, gumbel_softmax(logits, self.temperature, noise))
        loss = self.kl_weight * _divergence_from_uniform(logits)
        return Quantized(chosen @ self.codebook, loss, indices)

    def decode(self, indices: Tensor) -> Tensor:
        """Look the vectors of codes up.

        Args:
            indices: int64 [...].

        Returns:
            [..., D].

        Raises:
            ValueError: if an index is no code.
        """
        require_indices(indices, self.codes)
        return self.codebook[indices]

    def _noise(self, logits: Tensor) -> Tensor:
        if not self.training:
            return torch.zeros_like(logits)
        return gumbel_noise(tuple(logits.shape), self.generator, logits.dtype, logits.device)


def normal_codebook(codes: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draw codes from the standard normal distribution.

    Args:
        codes: how many.
        dim: numbers of each.
        generator: of the CPU.

    Returns:
        float32 [codes, dim] on the CPU.

    Raises:
        ValueError: if a size is not positive.
    """
    _require_positive(codes=codes, dim=dim)
    return torch.randn(codes, dim, generator=generator, dtype=torch.float32, device="cpu")


def _divergence_from_uniform(logits: Tensor) -> Tensor:
    """The mean over rows of KL(softmax || uniform) in nats; of no rows, 0."""
    log_q = functional.log_softmax(logits, -1)
    divergences = (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])
    return divergences.sum() / max(len(logits), 1)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    # torch's own initialization would draw from its global generator.
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device="cpu", dtype=torch.float32)
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def _require_positive(**sizes: float) -> None:
    for name, size in sizes.items():
        if not 0 < size < math.inf:
            raise ValueError(f"{name}: must be positive, got {size}")


def _require_rows(z: Tensor, dim: int | None = None) -> None:
    shaped = z.ndim == 2 and z.shape[1] == (dim or z.shape[1])
    if not shaped or not z.is_floating_point():
        raise ValueError(f"z: must be floating [N, {dim or 'D'}], got {z.dtype} {tuple(z.shape)}")
    require_finite(z=z)
