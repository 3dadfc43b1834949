"""The linear VAE, whose bound is exact: its decoder is probabilistic PCA.

The encoder is q(z | x) = N(A x, diag v). Data are centred and enter by their covariance S, [D, D],
alone, as in :mod:`gradbook.ppca`; bounds and gaps are means per datum, in nats, without sampling.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradbook.checks import require_finite
from gradbook.ppca import (
    Ppca,
    maximum_likelihood,
    precision,
    projection,
    require_covariance,
    require_model,
)


class LinearVAE(NamedTuple):
    """A linear decoder and a linear encoder with a diagonal covariance.

    Attributes:
        weight: W, [D, k].
        log_noise: log s, a scalar.
        encoder: A, [k, D].
        log_variance: log v, [k], the same for every datum.
    """

    weight: Tensor
    log_noise: Tensor
    encoder: Tensor
    log_variance: Tensor


def best_encoder(ppca: Ppca) -> tuple[Tensor, Tensor]:
    """Compute the encoder with the best bound for a given decoder.

    Its mean is that of the true posterior; its variances are one over
    the diagonal of the true precision, so they are too small unless the
    columns of the weight are orthogonal.

    Args:
        ppca: the decoder.

    Returns:
        The encoder, [k, D], and the log variance, [k].

    Raises:
        ValueError: if the decoder is not one.

    Source: Lucas et al. 2019.
    """
    return projection(ppca), -precision(ppca).diagonal().log()


def elbo(vae: LinearVAE, covariance: Tensor) -> Tensor:
    """Compute the mean ELBO of a datum without sampling.

    Args:
        vae: decoder and encoder.
        covariance: S, [D, D].

    Returns:
        A scalar, differentiable in the VAE.

    Raises:
        ValueError: if S is not a covariance, or the VAE does not fit it.

    Source: Lucas et al. 2019.
    """
    _check(vae, covariance)
    weight, noise_variance = decoder(vae)
    encoder, variance = vae.encoder, vae.log_variance.exp()
    size, latents = weight.shape
    identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
    residual = identity - weight @ encoder
    error = ((residual @ covariance) * residual).sum()
    error = error + (variance * weight.square().sum(0)).sum()
    constant = size * (math.log(2 * math.pi) + vae.log_noise)
    codes = ((encoder @ covariance) * encoder).sum()
    kl = codes + (variance - vae.log_variance).sum() - latents
    return -0.5 * (constant + error / noise_variance + kl)


def gap(vae: LinearVAE, covariance: Tensor) -> Tensor:
    """Compute the mean KL(q(z | x) || p(z | x)) of a datum.

    Args:
        vae: decoder and encoder.
        covariance: S, [D, D].

    Returns:
        A scalar: what the ELBO lacks to the log-likelihood.

    Raises:
        ValueError: if S is not a covariance, or the VAE does not fit it.
    """
    _check(vae, covariance)
    sharpness = precision(decoder(vae))
    shift = vae.encoder - projection(decoder(vae))
    moved = (sharpness * (shift @ covariance @ shift.T)).sum()
    spread = (sharpness.diagonal() * vae.log_variance.exp()).sum()
    log_dets = torch.logdet(sharpness) + vae.log_variance.sum()
    return 0.5 * (moved + spread - len(sharpness) - log_dets)


def decoder(vae: LinearVAE) -> Ppca:
    """Take the model of the data from a linear VAE.

    Args:
        vae: decoder and encoder.

    Returns:
        Its weight and its noise variance.
    """
    return Ppca(vae.weight, vae.log_noise.exp())


def fit(
    covariance: Tensor,
    k: int,
    generator: torch.Generator,
    steps: int = 2000,
) -> LinearVAE:
    """Maximize the exact ELBO from a random start by L-BFGS.

    Args:
        covariance: S, [D, D].
        k: how many latent coordinates, from 1 to D - 1.
        generator: of the CPU; draws the start.
        steps: at most how many iterations.

    Returns:
        The VAE in float64, on the covariance's device.

    Raises:
        ValueError: as :func:`gradbook.ppca.maximum_likelihood`.
    """
    covariance = covariance.double()
    # Refuses what has no optimum.
    maximum_likelihood(covariance, k)
    size, unit = len(covariance), covariance.diagonal().mean()
    start = torch.randn(2, size, k, generator=generator, dtype=torch.double, device="cpu")
    weight, encoder = start.to(covariance) / math.sqrt(size)
    zeros = weight.new_zeros(k + 1)
    vae = LinearVAE(weight, zeros[0], encoder.T, zeros[1:])
    leaves = [part.contiguous().requires_grad_() for part in vae]
    # On data of unit variance every parameter is of order 1.
    scaled = covariance / unit
    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=steps,
        max_eval=4 * steps,
        history_size=50,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -elbo(LinearVAE(*leaves), scaled)
        loss.backward()
        return loss

    optimizer.step(closure)
    weight, log_noise, encoder, log_variance = (p.detach() for p in leaves)
    deviation = unit.sqrt()
    return LinearVAE(weight * deviation, log_noise + unit.log(), encoder / deviation, log_variance)


def _check(vae: LinearVAE, covariance: Tensor) -> None:
    require_covariance(covariance)
    require_model(decoder(vae), len(covariance))
    size, k = vae.weight.shape
    if vae.encoder.shape != (k, size):
        raise ValueError(f"encoder: must be [{k}, {size}], is {tuple(vae.encoder.shape)}")
    if vae.log_variance.shape != (k,):
        raise ValueError(f"log_variance: must be [{k}], is {tuple(vae.log_variance.shape)}")
    require_finite(encoder=vae.encoder, log_variance=vae.log_variance)
