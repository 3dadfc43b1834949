"""A VAE whose prior is a normal around a learned mean of each class.

The encoder and the decoder are those of :mod:`gradbook.normal_vae` and see the image and the code
alone: the class acts through the divergence, which pulls an image's code to its class's mean.
"""

import torch
from torch import Tensor

from gradbook import normal_vae, vae_training
from gradbook.checks import require_finite
from gradbook.normal_vae import NormalVAE, Posterior
from gradbook.normal_vae_training import normals


def kl(
    posterior: Posterior,
    class_means: Tensor,
    labels: Tensor,
) -> Tensor:
    """Compute KL(q(z | x) || N(mean of the class, I)) per dimension.

    Args:
        posterior: means and logarithms of variances, [n, d].
        class_means: [classes, d].
        labels: the class of each image, integers [n].

    Returns:
        [n, d], in nats.

    Raises:
        ValueError: if a label has no class, the shapes do not fit, or a
            value is not finite.

    Source: J. Su, 2018, section "conditional VAE".
    """
    _check(posterior, class_means, labels)
    shifted = posterior.mean - class_means[labels]
    return normal_vae.kl(Posterior(shifted, posterior.log_variance))


def elbo(
    model: NormalVAE,
    class_means: Tensor,
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
) -> Tensor:
    """Estimate the ELBO of every image given its class from one code.

    Args:
        model: an encoder and a decoder.
        class_means: [classes, d].
        x: [n, pixels].
        labels: integers [n].
        noise: standard normal, [n, d].

    Returns:
        log p(x | z) - KL, [n], differentiable in the weights and in the
        means of the classes.

    Raises:
        ValueError: as :func:`kl` and :func:`gradbook.normal_vae.code`.
    """
    posterior = model.encoder(x)
    if noise.ndim != 2:
        raise ValueError(f"noise: must be [n, d], is {tuple(noise.shape)}")
    logits = model.decoder(normal_vae.code(posterior, noise))
    divergence = kl(posterior, class_means, labels).sum(-1)
    return normal_vae.log_likelihood(logits, x) - divergence


def fit(
    model: NormalVAE,
    images: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    steps: int,
    batch: int = 100,
    rate: float = 1e-3,
) -> Tensor:
    """Train a model in place by Adam, together with the means of the classes.

    Args:
        model: on the book's device.
        images: [n, pixels].
        labels: integers [n].
        classes: how many there are.
        seed: of the order of the images and, apart from it, of the noise.
        steps: of Adam.
        batch: images of a step.
        rate: Adam's step size.

    Returns:
        The means of the classes, [classes, d]; they start at zero.
    """
    latents = model.encoder(images[:1]).mean.shape[1]
    # The means travel much further than a weight does: their steps are ten times as long.
    means = images.new_zeros(classes, latents).requires_grad_()
    labels = labels.to(images.device)
    groups = [{"params": model.parameters()}, {"params": [means], "lr": 10 * rate}]
    optimizer = torch.optim.Adam(groups, lr=rate)
    batches = vae_training.minibatches(len(images), batch, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 10_000)
    for _ in range(steps):
        rows = next(batches)
        noise = normals(batch, latents, generator=generator)
        optimizer.zero_grad()
        (-elbo(model, means, images[rows], labels[rows], noise).mean()).backward()
        optimizer.step()
    return means.detach()


def _check(posterior: Posterior, class_means: Tensor, labels: Tensor) -> None:
    require_finite(class_means=class_means)
    n, d = posterior.mean.shape
    if class_means.ndim != 2 or class_means.shape[1] != d:
        raise ValueError(f"class_means: must be [classes, {d}], is {tuple(class_means.shape)}")
    if labels.shape != (n,):
        raise ValueError(f"labels: must be [{n}], is {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: must be integers, are {labels.dtype}")
    if labels.numel() and not 0 <= labels.min() <= labels.max() < len(class_means):
        raise ValueError(f"labels: must be from 0 to {len(class_means) - 1}")
