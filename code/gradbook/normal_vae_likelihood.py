"""The probability of test images under a trained VAE with a normal latent, and samples from it.

Two routes to log p(x): importance sampling from the encoder, and, for two latents, a sum over a
grid of codes that asks nothing of the encoder. Images are flattened, [n, pixels]; all is in nats.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradbook import normal_vae, normal_vae_training, vae_training
from gradbook.checks import require_finite
from gradbook.devices import device
from gradbook.normal_vae import NormalVAE
from gradbook.normals import Normal

# Codes that are decoded at once: their logits stay within some 16 MB.
CODES = 5_000


@torch.no_grad()
def log_weights(model: NormalVAE, images: Tensor, draws: int, seed: int) -> Tensor:
    """Draw importance weights log p(x, z) - log q(z | x), a few codes at a time.

    Args:
        model: an encoder and a decoder.
        images: [n, pixels], n at least 1.
        draws: codes of each image, K.
        seed: of the noise.

    Returns:
        [K, n], as :func:`gradbook.normal_vae.log_weights`.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = model.encoder(images[:1]).mean.shape[1]
    step = max(1, CODES // len(images))
    counts = [min(step, draws - start) for start in range(0, draws, step)]
    rows = [
        normal_vae_training.normals(count, len(images), latents, generator=generator)
        for count in counts
    ]
    return torch.cat([normal_vae.log_weights(model, images, noise) for noise in rows])


def bounds_by_draws(log_weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Estimate the importance-weighted bound for several K from the same weights.

    Every weight is used at every K: they are cut into groups of K, whose bounds are averaged.

    Args:
        log_weights: [draws, n].
        sizes: the values of K, each a divisor of the number of draws.

    Returns:
        [sizes, n].

    Raises:
        ValueError: if a size is not positive or does not divide the draws.

    Source: Burda, Grosse and Salakhutdinov 2016, equation 8.
    """
    draws = len(log_weights)
    if any(k < 1 or draws % k for k in sizes):
        raise ValueError(f"sizes: must divide {draws} draws, got {tuple(sizes)}")
    groups = ([normal_vae.iwae_bound(group) for group in log_weights.split(k)] for k in sizes)
    return torch.stack([torch.stack(bounds).mean(0) for bounds in groups])


def grid(side: int, reach: float) -> tuple[Tensor, Tensor]:
    """Lay a rule for expectations under a standard normal in two dimensions.

    Args:
        side: points along an axis, at least 2.
        reach: of the square, from -reach to reach.

    Returns:
        The points [side^2, 2] and the logarithms of their weights
        [side^2], which sum to one.
    """
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64, device=device())
    points = torch.cartesian_prod(axis, axis)
    return points.float(), (-0.5 * points.square().sum(1)).log_softmax(0).float()


@torch.no_grad()
def marginal_log_likelihood(
    model: NormalVAE, images: Tensor, codes: Tensor, log_probs: Tensor
) -> Tensor:
    """Compute the log-probability of images when the code is one of a list.

    With the points of :func:`grid` this is log p(x) of a model of two
    latents, by quadrature; it asks nothing of the encoder.

    Args:
        model: has a decoder.
        images: [n, pixels].
        codes: [S, d].
        log_probs: of the codes, [S].

    Returns:
        [n].

    Raises:
        ValueError: if a number of the codes is not finite.
    """
    require_finite(codes=codes, log_probs=log_probs)
    total = images.new_full((len(images),), -torch.inf)
    for some, share in zip(codes.split(CODES), log_probs.split(CODES), strict=True):
        logits = model.decoder(some)
        blank = -nn.functional.logsigmoid(-logits).sum(1)
        rows = images @ logits.T - blank + share
        total = torch.logaddexp(total, rows.logsumexp(1))
    return total


def code_normal(model: nn.Module, images: Tensor) -> Normal:
    """Fit a normal to the means of the posteriors: a prior for a plain autoencoder.

    Args:
        model: has an encoder.
        images: [n, pixels], more than the code has dimensions.

    Returns:
        The normal with the codes' mean and covariance.
    """
    codes = normal_vae_training.posteriors(model, images).mean
    return Normal(codes.mean(0), torch.linalg.cholesky(codes.T.cov(correction=0)))


def aggregate_normal(model: nn.Module, images: Tensor) -> Normal:
    """Fit a normal to the aggregate posterior, the mixture of the posteriors of all images.

    Args:
        model: has an encoder.
        images: [n, pixels], more than the code has dimensions.

    Returns:
        The normal with the mixture's mean and covariance: that of the means, and the mean of the
        posteriors' own.
    """
    mean, log_variance = normal_vae_training.posteriors(model, images)
    covariance = mean.T.cov(correction=0) + log_variance.exp().mean(0).diag()
    return Normal(mean.mean(0), torch.linalg.cholesky(covariance))


@torch.no_grad()
def samples(model: NormalVAE, codes: Tensor, generator: torch.Generator) -> Tensor:
    """Draw binary images from codes.

    Args:
        model: has a decoder.
        codes: [n, d].
        generator: of the pixels, of the CPU.

    Returns:
        Zeros and ones [n, pixels], on the codes' device.
    """
    chunks = [model.decoder(chunk).sigmoid().cpu() for chunk in codes.split(CODES)]
    return vae_training.binarized(torch.cat(chunks), generator).to(codes.device)
