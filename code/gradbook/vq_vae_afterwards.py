"""Codes put into a trained autoencoder afterwards: k-means on its vectors, then a tuned decoder.

The baseline of a quantized autoencoder: its encoder never heard of the codes.
"""

import copy

import torch
from torch import Tensor

from gradbook import vq_vae_training
from gradbook.codebook_starts import check_codebook
from gradbook.k_means import k_means, k_means_plus_plus
from gradbook.quantizers import Codebook
from gradbook.vae_training import Curve
from gradbook.vq_vae import VQVAE


class FixedCodebook(Codebook):
    """A codebook that nothing trains, and that has no loss.

    Args:
        codebook: [K, D] of finite numbers, K at least 1; it is copied.

    Raises:
        ValueError: if the codebook is not so.
    """

    def __init__(self, codebook: Tensor):
        super().__init__()
        check_codebook(codebook)
        self.register_buffer("codebook", codebook.detach().clone())

    def loss(self, z: Tensor, z_q: Tensor) -> Tensor:
        """Return 0."""
        return z.new_zeros(())


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
