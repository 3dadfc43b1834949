"""Codes put into a trained autoencoder afterwards: k-means on its vectors, then a tuned decoder.

The baseline of a quantized autoencoder: its encoder never heard of the codes.
"""

import copy

import torch
from torch import Tensor, nn

from gradbook import vq_vae_training
from gradbook.checks import require_finite
from gradbook.codebooks import require_indices
from gradbook.gumbel import straight_through
from gradbook.k_means import k_means, k_means_plus_plus
from gradbook.nearest import nearest_code
from gradbook.quantizers import Quantized
from gradbook.vae_training import Curve
from gradbook.vq_vae import VQVAE


class FixedCodebook(nn.Module):
    """A codebook that nothing trains.

    Args:
        codebook: [K, D], K at least 1.

    Raises:
        ValueError: if the codebook is empty, no matrix or not finite.
    """

    def __init__(self, codebook: Tensor):
        super().__init__()
        if codebook.ndim != 2 or len(codebook) < 1:
            raise ValueError(f"codebook: must be [K, D], got {tuple(codebook.shape)}")
        require_finite(codebook=codebook)
        self.register_buffer("codebook", codebook.detach().clone())
        self.codes = len(codebook)

    def forward(self, z: Tensor) -> Quantized:
        """Replace every row by the nearest code.

        Args:
            z: [N, D].

        Returns:
            The codes, with the gradient of ``z``; a loss of 0.

        Raises:
            ValueError: as :func:`gradbook.nearest.nearest_code`.
        """
        indices = nearest_code(z.detach(), self.codebook)
        return Quantized(straight_through(self.decode(indices), z), z.new_zeros(()), indices)

    def update(self, z: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        """Do nothing.

        Args:
            z: not used.
            indices: not used.
            generator: not used.
        """

    def decode(self, indices: Tensor) -> Tensor:
        """Look codes up.

        Args:
            indices: [N].

        Returns:
            [N, D].

        Raises:
            ValueError: if an index is no code.
        """
        require_indices(indices, self.codes)
        return self.codebook[indices]


def k_means_afterwards(
    model: VQVAE,
    vectors: Tensor,
    k: int,
    generator: torch.Generator,
    steps: int,
) -> VQVAE:
    """Quantize a trained autoencoder by k-means on its vectors.

    Args:
        model: trained without quantization; it stays as it is.
        vectors: of training images, [N, D], N at least ``k``.
        k: how many codes.
        generator: of the CPU, for the start by k-means++.
        steps: of k-means.

    Returns:
        A copy of the model, whose quantizer is a fixed codebook.

    Raises:
        ValueError: as the two functions of :mod:`gradbook.k_means`.
    """
    codebook = k_means(vectors, k_means_plus_plus(vectors, k, generator), steps)
    quantizer = FixedCodebook(codebook)
    return VQVAE(copy.deepcopy(model.encoder), copy.deepcopy(model.decoder), quantizer)


def tune_decoder(
    model: VQVAE,
    train: Tensor,
    seed: int,
    steps: int,
    rate: float,
) -> tuple[VQVAE, Curve]:
    """Train the decoder alone on, with the codes of every image fixed.

    Args:
        model: with a :class:`FixedCodebook`; it stays as it is.
        train: images, [n, C, H, W].
        seed: see :func:`gradbook.vq_vae_training.fit`.
        steps: see there.
        rate: see there.

    Returns:
        A copy of the model, whose encoder needs no gradient, and the curve, without measures.
    """
    tuned = copy.deepcopy(model)
    tuned.encoder.requires_grad_(False)
    return tuned, vq_vae_training.fit(tuned, train, seed, steps, rate)
