"""The article's VAE on Fashion-MNIST with 2, 10 and 20 latents, beside plain autoencoders.

Images are binary: pixels drawn once from the grey levels of all 60 000 pictures. Both networks have
one hidden layer of 256 units. The VAE and the autoencoder of one size and seed start from the same
weights and see the same batches; the autoencoder has no noise and no divergence. At the end: log
p(x) of test images by importance sampling, by quadrature where there are two latents, and samples
against test images; the latter two with the standard normal as the prior of the code, and with a
normal fitted to the codes of the training images. A split of the divergence is that of 1000 test
images: the information is at most log 1000, 6.9 nats.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import normal_vae, normals, two_samples, vae_terms, vae_training
from gradbook import normal_vae_likelihood as likelihood
from gradbook import normal_vae_training as training
from gradbook.devices import device
from gradbook.normal_vae import NormalVAE
from gradbook.normals import Normal

SEEDS = tuple(range(5))
LATENTS = (2, 10, 20)
EPOCHS = (0, 0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 6)
EPOCH = 600
TEST_IMAGES = 2_000
# For what costs a decoder's pass to each draw.
FEW_IMAGES = 500
DRAWS = (1, 5, 50, 500)
GRID_SIDE, GRID_REACH = 300, 5.0
SPLIT_IMAGES, SPLIT_DRAWS = 1_000, 8
SAMPLES = 500
# A typical distance of two test images.
BANDWIDTH = 16.0
SHORT_STEPS = 200
SHORT_IMAGES = (6_000, 1_000)

data_digest = vae_training.data_digest


def run(seed: int) -> dict[str, Any]:
    """Train a VAE and an autoencoder of each size from one seed.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``epochs``, after which the curves are sampled; ``vae`` and
        ``autoencoder``, by number of latents, as :func:`study`; ``mmd_of_data``, between training
        and test images, what perfect samples would have.
    """
    train = training.flat_images("train")
    test = training.flat_images("test", TEST_IMAGES)
    few = train[:SAMPLES], test[:SAMPLES]
    found = {
        name: {str(latents): study(name, latents, train, test, seed) for latents in LATENTS}
        for name in METHODS
    }
    return {
        "short": run_short(seed),
        "epochs": list(EPOCHS),
        "mmd_of_data": two_samples.mmd_squared(*few, BANDWIDTH).item(),
        **found,
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        After 200 steps on 6000 images with two latents, means over 1000 test images: the VAE's
        ``elbo``, ``reconstruction`` and ``kl``, its mean ``sigma``, and the ``autoencoder``'s
        log-likelihood at its code.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (training.flat_images(*split) for split in splits)
    models = {name: training.started(2, seed) for name in METHODS}
    for name, model in models.items():
        vae_training.fit(model, METHODS[name].loss, train, seed, (SHORT_STEPS,), lambda model: 0.0)
    row = progress(models["vae"], test, seed)
    plain = training.reconstruction(models["autoencoder"], test)
    return {
        "elbo": row["elbo"],
        "reconstruction": row["reconstruction"],
        "kl": sum(row["kl"]),
        "sigma": sum(row["sigma"]) / 2,
        "autoencoder": plain.log_likelihood,
    }


def study(name: str, latents: int, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Train one model and measure it.

    Args:
        name: one of ``METHODS``.
        latents: of the code.
        train: images to train on, [n, 784].
        test: images to measure on, [n, 784].
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``curve``, by measure, a value at each of ``EPOCHS``, as :func:`progress` or
        :func:`plain_progress`; ``seconds`` of a step; at the end, ``at_mean`` as
        :func:`plain_progress`; by prior, ``mmd`` of samples and, where there are two latents,
        ``quadrature``; for the VAE, ``weights`` as :func:`by_draws` and ``split`` as
        :func:`gradbook.normal_vae_training.split`.
    """
    model, method = training.started(latents, seed), METHODS[name]
    points = [round(EPOCH * epoch) for epoch in EPOCHS]
    measure = partial(method.progress, images=test, seed=seed + 20_000)
    curve = vae_training.fit(model, method.loss, train, seed, points, measure)
    laws = {"standard": standard(latents), "fitted": method.fitted(model, train)}
    found = {
        "curve": {key: [row[key] for row in curve.values] for key in curve.values[0]},
        "seconds": curve.seconds,
        "at_mean": plain_progress(model, test, seed),
        "mmd": {key: sampled_mmd(model, prior, test, seed) for key, prior in laws.items()},
    }
    few = test[:FEW_IMAGES]
    if latents == 2:
        found["quadrature"] = {key: quadrature(model, prior, few) for key, prior in laws.items()}
    if name == "vae":
        found["weights"] = by_draws(model, few, seed)
        found["split"] = training.split(model, test[:SPLIT_IMAGES], SPLIT_DRAWS, seed + 50_000)
    return found


def progress(model: NormalVAE, images: Tensor, seed: int) -> dict[str, Any]:
    """Measure a VAE during training.

    Args:
        model: an encoder and a decoder.
        images: [n, 784].
        seed: of the noise.

    Returns:
        Means over images: ``elbo``, its ``reconstruction`` term, and for each latent ``kl``,
        ``sigma``, the posterior's standard deviation, and ``size``, the absolute value of its mean.
    """
    found = training.bound(model, images, seed)
    posterior = training.posteriors(model, images)
    return {
        "elbo": found.elbo,
        **found._asdict(),
        "sigma": (0.5 * posterior.log_variance).exp().mean(0).tolist(),
        "size": posterior.mean.abs().mean(0).tolist(),
    }


def plain_progress(model: NormalVAE, images: Tensor, seed: int) -> dict[str, Any]:
    """Measure a model whose code is the posterior's mean.

    Args:
        model: an encoder and a decoder.
        images: [n, 784].
        seed: not used.

    Returns:
        Means over images: the ``reconstruction`` log p(x | z) at that code, the ``squared_error`` of
        a pixel, and for each latent the ``size``, the absolute value of the code.
    """
    found = training.reconstruction(model, images)
    return {
        "reconstruction": found.log_likelihood,
        "squared_error": found.squared_error,
        "size": training.posteriors(model, images).mean.abs().mean(0).tolist(),
    }


class Method(NamedTuple):
    """A loss, what to measure during training, and how to fit a prior to the codes."""

    loss: vae_training.Loss
    progress: Callable[..., dict[str, Any]]
    fitted: Callable[[NormalVAE, Tensor], Normal]


METHODS = {
    "vae": Method(
        training.descend(lambda log_p, kl, step: vae_terms.elbo_loss(log_p, kl)),
        progress,
        likelihood.aggregate_normal,
    ),
    "autoencoder": Method(training.autoencoder, plain_progress, likelihood.code_normal),
}


def standard(latents: int) -> Normal:
    """Make the prior that the VAE is trained with.

    Args:
        latents: of the code.

    Returns:
        The standard normal, on the book's device.
    """
    factor = torch.eye(latents, dtype=torch.float32, device=device())
    return Normal(torch.zeros_like(factor[0]), factor)


def sampled_mmd(model: NormalVAE, prior: Normal, test: Tensor, seed: int) -> float:
    """Compare samples with test images.

    Args:
        model: has a decoder.
        prior: of the codes.
        test: images, [n, 784].
        seed: of the samples.

    Returns:
        The squared maximum mean discrepancy, estimated without bias.
    """
    generator = torch.Generator().manual_seed(seed + 30_000)
    noise = training.normals(SAMPLES, len(prior.mean), generator=generator)
    drawn = likelihood.samples(model, normals.sample(prior, noise), generator)
    return two_samples.mmd_squared(drawn, test[:SAMPLES], BANDWIDTH).item()


def quadrature(model: NormalVAE, prior: Normal, images: Tensor) -> dict[str, float]:
    """Compute the mean log p(x) of a model with two latents on a grid.

    Args:
        model: has a decoder.
        prior: of the codes, in two dimensions.
        images: [n, 784].

    Returns:
        ``log_likelihood``, and what it is with ``half`` as many points along an axis.
    """
    found = []
    for side in (GRID_SIDE, GRID_SIDE // 2):
        noise, log_probs = likelihood.grid(side, GRID_REACH)
        codes = normals.sample(prior, noise)
        rows = likelihood.marginal_log_likelihood(model, images, codes, log_probs)
        found.append(rows.double().mean().item())
    return dict(zip(("log_likelihood", "half"), found, strict=True))


def by_draws(model: NormalVAE, images: Tensor, seed: int) -> dict[str, Any]:
    """Estimate the importance-weighted bounds of images, and log p(x) by the largest.

    Args:
        model: an encoder and a decoder.
        images: [n, 784], n at least 2.
        seed: of the noise.

    Returns:
        The numbers of ``draws``; the mean ``bound`` at each; the ``stderr`` of that over images;
        ``error``, the mean over images of the standard error of log p(x) from the largest number,
        by the delta method; and the ``gap`` from the first bound, the ELBO, to the last.
    """
    weights = likelihood.log_weights(model, images, DRAWS[-1], seed + 40_000)
    bounds = likelihood.bounds_by_draws(weights, DRAWS).double()
    _, error = normal_vae.log_prob_estimate(weights)
    return {
        "draws": list(DRAWS),
        "bound": bounds.mean(1).tolist(),
        "stderr": (bounds.std(1) / math.sqrt(len(images))).tolist(),
        "error": error.mean().item(),
        "gap": (bounds[-1] - bounds[0]).mean().item(),
    }
