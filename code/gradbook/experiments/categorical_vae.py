"""The article's experiment: a VAE with 32 latents of 10 classes, trained by Gumbel-Softmax.

Thirty epochs of RMSprop on the grey levels of Fashion-MNIST, in batches of 100, while the
temperature falls from 1 to 0.01. The loss is the article's up to a constant, 32 log 10: the summed
cross entropy plus the divergence of the categorical variables from their uniform prior. Beside it
stand what the article leaves out: the loss with hard codes, and the divergence of the relaxed
variables themselves.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gradbook import device, gumbel, vae, vae_gradients, vae_training
from gradbook.vae import CategoricalVAE

SEEDS = tuple(range(5))
LATENTS = 32
CLASSES = 10
BATCH = 100
EPOCHS = 30
EPOCH_STEPS = 600
SHORT_STEPS = 60
SHORT_IMAGES = 1_000
CHUNK = 500
KL_EPOCHS = (1, 2, 5, 10, 20, 30)
KL_IMAGES = 1_000
KL_DRAWS = 16
IN_USE = 0.05
GRID = 15
SHOWN = 8
GREYS = 32

data_digest = vae_training.data_digest


class Training:
    """A model in training: its optimizer, its generator and how many batches it has seen."""

    def __init__(self, seed: int, images: Tensor):
        self.generator = torch.Generator().manual_seed(seed)
        self.model = vae.build(LATENTS, CLASSES, self.generator).to(device())
        # What Keras calls rmsprop: its decay is torch's alpha.
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
        self.images = images
        self.batches = vae_training.minibatches(len(images), BATCH, self.generator)
        self.steps = 0

    def temperature(self) -> float:
        """Say the temperature of the next step."""
        return vae_gradients.temperature_schedule(self.steps)

    def advance(self, steps: int) -> float:
        """Train on some batches and return their mean loss."""
        total = torch.zeros((), device=device())
        for _ in range(steps):
            batch = self.images[next(self.batches)]
            noise = vae_training.gumbels(len(batch), LATENTS, CLASSES, generator=self.generator)
            loss = vae_gradients.relaxed(self.model, batch, noise, self.temperature())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1
            total += loss.detach()
        return total.item() / steps


def run(seed: int) -> dict[str, Any]:
    """Train one model.

    Args:
        seed: of the weights, the order of the images and the noise.

    Returns:
        ``short``, as :func:`run_short`; ``epochs``, a list for each of ``train`` (mean loss of the
        epoch), ``temperature`` (after it), and over the test images ``relaxed`` (loss at that
        temperature), ``hard`` (loss with hard codes) and ``kl`` (categorical); ``divergences``, as
        :func:`divergences` after some epochs; ``latents``, as :func:`usage`; for the first seed
        ``pictures``, as :func:`pictures`.
    """
    test = vae_training.grey_images("test")
    training = Training(seed, vae_training.grey_images("train"))
    rows, measured = [], []
    for epoch in range(1, EPOCHS + 1):
        train = training.advance(EPOCH_STEPS)
        tau = training.temperature()
        losses = test_losses(training.model, test, tau, seed)
        rows.append({"train": train, "temperature": tau, **losses})
        if epoch in KL_EPOCHS:
            found = divergences(training.model, test[:KL_IMAGES], tau, seed)
            measured.append({"epoch": epoch, "temperature": tau, **found})
    drawn = {"pictures": pictures(training.model, test, seed)} if seed == SEEDS[0] else {}
    return {
        "short": run_short(seed),
        "epochs": _columns(rows),
        "divergences": _columns(measured),
        "latents": usage(training.model, test),
        **drawn,
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: as for :func:`run`, whose first batches these are.

    Returns:
        ``relaxed``, ``hard`` and ``kl`` of the first thousand test images after 60 batches.
    """
    test = vae_training.grey_images("test")[:SHORT_IMAGES]
    training = Training(seed, vae_training.grey_images("train"))
    training.advance(SHORT_STEPS)
    return test_losses(training.model, test, training.temperature(), seed)


@torch.no_grad()
def test_losses(
    model: CategoricalVAE, images: Tensor, temperature: float, seed: int
) -> dict[str, float]:
    """Measure the loss with relaxed and with hard codes of the same noise.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        temperature: of the relaxed codes.
        seed: of the noise, which is the same after every epoch.

    Returns:
        ``relaxed`` and ``hard``, and their common ``kl``, in nats per image.
    """
    generator = torch.Generator().manual_seed(seed + 1_000)
    total = torch.zeros(3, dtype=torch.float64)
    for chunk in images.split(CHUNK):
        logits = model.encoder(chunk)
        noise = vae_training.gumbels(*logits.shape, generator=generator)
        codes = (
            gumbel.gumbel_softmax(logits, temperature, noise),
            vae.hard_codes(logits, noise),
        )
        kl = vae.categorical_kl(logits).sum().item()
        parts = [kl - vae.log_likelihood(model.decoder(c), chunk).sum().item() for c in codes]
        total += torch.tensor([*parts, kl], dtype=torch.float64)
    return dict(zip(("relaxed", "hard", "kl"), (total / len(images)).tolist(), strict=True))


@torch.no_grad()
def divergences(
    model: CategoricalVAE, images: Tensor, temperature: float, seed: int
) -> dict[str, float]:
    """Compare the divergence in the loss with that of the relaxed variables, in float64.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].
        temperature: of the relaxed variables.
        seed: of the noise.

    Returns:
        ``categorical``, in closed form; ``relaxed``, a mean over draws, with its ``stderr`` for
        these images; all in nats per image.
    """
    generator = torch.Generator().manual_seed(seed + 2_000)
    logits = torch.cat([model.encoder(chunk) for chunk in images.split(CHUNK)]).double()
    draws = []
    for _ in range(KL_DRAWS):
        noise = gumbel.gumbel_noise(tuple(logits.shape), generator, torch.float64)
        draws.append(vae.relaxed_kl(logits, temperature, noise.to(device())))
    variance, mean = torch.var_mean(torch.stack(draws), 0)
    return {
        "categorical": vae.categorical_kl(logits).mean().item(),
        "relaxed": mean.mean().item(),
        "stderr": (variance.mean() / (KL_DRAWS * len(images))).sqrt().item(),
    }


@torch.no_grad()
def usage(model: CategoricalVAE, images: Tensor) -> dict[str, Any]:
    """Measure what each latent tells about the images.

    Args:
        model: an encoder and a decoder.
        images: [n, 28, 28].

    Returns:
        By latent, in nats: ``kl``, the mean divergence from the prior, and ``information``, the
        mutual information of the latent and the image, which is less by the divergence of the mean
        of q. ``in_use`` counts the latents with more than 0.05 nats of information.
    """
    logits = torch.cat([model.encoder(chunk) for chunk in images.split(CHUNK)]).double()
    kl = vae.categorical_kl(logits[:, :, None]).mean(0)
    # A class that no image uses has probability 0 in floating point.
    overall = logits.softmax(-1).mean(0).clamp(min=1e-300).log()
    information = kl - vae.categorical_kl(overall[:, None])
    return {
        "kl": kl.tolist(),
        "information": information.tolist(),
        "in_use": int((information > IN_USE).sum()),
    }


@torch.no_grad()
def pictures(model: CategoricalVAE, images: Tensor, seed: int) -> dict[str, str]:
    """Draw samples from the prior, and images with their reconstructions.

    Args:
        model: an encoder and a decoder.
        images: at least eight [n, 28, 28].
        seed: of the codes.

    Returns:
        PNG files in base64: ``samples``, a square of 15 rows, each from a code whose latents are
        uniform; ``reconstructions``, eight images above the means of their pixels given one hard
        code each.
    """
    generator = torch.Generator().manual_seed(seed + 3_000)
    index = torch.randint(CLASSES, (GRID**2, LATENTS), generator=generator, device="cpu")
    prior = gumbel.one_hot(index.to(device()), CLASSES, torch.float32)
    logits = model.encoder(images[:SHOWN])
    noise = vae_training.gumbels(*logits.shape, generator=generator)
    again = model.decoder(vae.hard_codes(logits, noise)).sigmoid()
    return {
        "samples": _png(model.decoder(prior).sigmoid().unflatten(0, (GRID, GRID))),
        "reconstructions": _png(torch.stack([images[:SHOWN], again])),
    }


def _png(tiles: Tensor) -> str:
    """Lay out tiles [rows, columns, height, width] of values from 0 to 1, in 32 greys."""
    page = tiles.transpose(1, 2).flatten(2).flatten(0, 1)
    page = ((page * (GREYS - 1)).round() * (255 / (GREYS - 1))).round().byte().cpu()
    file = io.BytesIO()
    Image.fromarray(page.numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
