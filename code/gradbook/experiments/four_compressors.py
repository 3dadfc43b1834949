"""Four compressors of one size: by pixels, by features, against a critic, and with beta reversed.

All four code a colour patch of 32 by 32 pixels as 8 by 8 codes out of 256, in the networks of
:mod:`gradbook.experiments.colour_patches`. They start from an autoencoder that was trained by
pixels, without codes; k-means on its vectors gives the codes, and the loss trains them. They see
the same batches at the same rates. Up to the start of the game the second and the third are the
same; the fourth has the third's loss, but for beta, which is on the codebook's term.

The distances in features, also the Fréchet distance, are measured in the network whose features the
last three were trained on: they are at home there. The measure of detail knows no network. Measured
patches of the two held-out photographs overlap.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import (
    efficientnet,
    photographs,
    pictures,
    vq_vae_training,
    vqgan,
    vqgan_losses,
    vqgan_measures,
    vqgan_networks,
    vqgan_training,
)
from gradbook.codebook_starts import k_means_start
from gradbook.devices import device
from gradbook.experiments import colour_patches
from gradbook.patch_gan import PatchGAN
from gradbook.quantizer_variants import Identity
from gradbook.quantizers import LossCodebook
from gradbook.vq_vae import VQVAE
from gradbook.vqgan_training import Setting, Training

SEEDS = tuple(range(3))
CODES, BETA = 256, 0.25
# Vectors and steps of the codebook's start.
ROWS, LLOYD = 10_000, 10
# Of the distance in features, beside an absolute error in units of the pixels' deviation.
WEIGHT = 0.3
# Of the norm of the reconstruction's gradient: less than the published one in trainings this short,
# and the published one where the start of a game is studied.
SHARE, PUBLISHED = 0.3, 0.8
# A critic whose scores see 16 by 16 pixels each.
LAYERS = 1
# Of the held-out patches; a curve is measured on one in so many of them.
STRIDE, FEW = 14, 12
WATCHING = 200  # Steps, before a game that shall not start cold.
SHOWN, CROP = 8, colour_patches.CROP

data_digest = photographs.digest


class Scale(NamedTuple):
    """How large a run is.

    Attributes:
        width: channels of the networks.
        dim: numbers of a vector.
        blocks: residual blocks of each network.
        filters: of the critic.
        setting: of the training.
        before: steps without codes, before these.
        start: the first step of the game.
        points: after how many steps to measure.
        after: after how many steps of the game to measure what its start does.
    """

    width: int
    dim: int
    blocks: int
    filters: int
    setting: Setting
    before: int
    start: int
    points: tuple[int, ...]
    after: tuple[int, ...]


POINTS, AFTER = (0, 200, 400, 450, 500, 600, 800), (0, 1, 2, 5, 10, 20, 50, 100)
SMALL = Scale(48, 16, 1, 32, Setting(800, 16, 2e-3, 1e-3), 100, 400, POINTS, AFTER)
_FAR = tuple(25 * point for point in POINTS)
FULL = Scale(128, 32, 2, 64, Setting(20_000, 64, 1e-3, 1e-3), 2_000, 10_000, _FAR, AFTER)
SHORT = SMALL._replace(setting=Setting(60, 16, 2e-3, 1e-3), before=20, start=30)


class Data(NamedTuple):
    """Patches [n, 3, 32, 32] from 0 to 1, the variance of those to train on, and the judge."""

    train: Tensor
    held_out: Tensor
    variance: float
    judge: efficientnet.EfficientNetLite0


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train four compressors, and the switch to the game twice.

    Args:
        seed: of the weights, the codebook and the order of the patches.
        scale: how large.

    Returns:
        ``short``, as :func:`run_short`; by name, as :func:`study`, the ``compressors``; ``switch``,
        as :func:`switched`; for the first seed ``pictures``, as :func:`drawn`.
    """
    data = loaded()
    models, found = {}, {}
    for name, plan in plans(data, scale).items():
        training = started(*plan, data, seed, scale)
        found[name] = study(training, data, scale)
        models[name] = training.players.model
    kept = {"pictures": drawn(models, data)} if seed == SEEDS[0] else {}
    switch = switched(data, seed, scale)
    return {"short": run_short(seed), "compressors": found, "switch": switch, **kept}


def run_short(seed: int) -> dict[str, dict[str, float]]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the codebook and the order of the patches.

    Returns:
        After 60 steps, all of them in the rise of the rate, of the first two compressors by name, a
        :class:`gradbook.vqgan_measures.Progress`.
    """
    data, found = loaded(), {}
    for name, plan in list(plans(data, SHORT).items())[:2]:
        training = started(*plan, data, seed, SHORT)
        vqgan_training.fit(training, data.train, SHORT.setting.steps)
        found[name] = measuring(data)(training.players.model)
    return found


def loaded() -> Data:
    """Read the patches and the network of the features, all on the book's device."""
    train = colour_patches.training_images()
    held_out = pictures.from_levels(photographs.held_out_patches(stride=STRIDE))
    return Data(train, held_out, train.var().item(), efficientnet.pretrained())


def by_features(data: Data) -> vqgan_losses.Reconstruction:
    """Choose the absolute error and the distance in features."""
    units = {"deviation": data.variance**0.5, "weight": WEIGHT}
    return partial(vqgan_losses.perceptual_loss, features=data.judge.features, **units)


def plans(data: Data, scale: Scale) -> dict[str, tuple[type[LossCodebook], dict[int, vqgan.Step]]]:
    """Plan the four trainings.

    Args:
        data: the patches and the judge.
        scale: says when the game starts.

    Returns:
        By name, the kind of the codebook and the kinds of steps.
    """
    pixels = partial(vqgan_losses.squared_loss, variance=data.variance)
    features = by_features(data)
    watching = min(WATCHING, scale.start)
    game = vqgan.against(features, scale.start, watching, SHARE)
    return {
        "mse": (LossCodebook, vqgan.alone(pixels)),
        "perceptual": (LossCodebook, vqgan.alone(features)),
        "adversarial": (LossCodebook, game),
        "reversed": (vqgan.ReversedCodebook, game),
    }


def started(
    kind: type[LossCodebook],
    phases: Mapping[int, vqgan.Step],
    data: Data,
    seed: int,
    scale: Scale,
) -> Training:
    """Build the players: an autoencoder that was trained without codes, then codes by k-means.

    Args:
        kind: of the codebook.
        phases: kinds of steps by the first step of each.
        data: the patches.
        seed: of the weights, the codebook and the order of the patches.
        scale: how large.

    Returns:
        The training at step 0.
    """
    train, rate = data.train, scale.setting.rate
    sizes = (scale.width, scale.dim, scale.blocks)
    model = vqgan_networks.started(lambda vectors, draws: Identity(), train, seed, *sizes)
    vq_vae_training.fit(model, train, seed + 40_000, scale.before, rate, batch=scale.setting.batch)
    rows = vq_vae_training.vectors(model, train[: vq_vae_training.FIRST])
    generator = torch.Generator().manual_seed(seed + 10_000)
    chosen = torch.randperm(len(rows), generator=generator, device="cpu")[:ROWS]
    codebook = k_means_start(rows[chosen.to(rows.device)], CODES, generator, LLOYD)
    model.quantizer = kind(codebook, BETA)
    generator = torch.Generator().manual_seed(seed + 30_000)
    critic = PatchGAN(train.shape[1], scale.filters, LAYERS, generator).to(device())
    critic.to(memory_format=torch.channels_last)
    return Training(model, critic, phases, scale.setting, len(train), seed)


def measuring(data: Data) -> Callable[[VQVAE], dict[str, float]]:
    """Choose what is measured on the way, on one in twelve of the held-out patches.

    Args:
        data: the patches and the judge.

    Returns:
        A function of a model, with the numbers of :class:`gradbook.vqgan_measures.Progress`.
    """
    images = data.held_out[::FEW]
    return lambda model: vqgan_measures.progress(model, images, data.judge)._asdict()


def study(training: Training, data: Data, scale: Scale) -> dict[str, Any]:
    """Train one compressor and measure it.

    Args:
        training: at its start; it is at its end then.
        data: the patches and the judge.
        scale: says after which steps to measure.

    Returns:
        ``final``, a :class:`gradbook.vqgan_measures.Verdict`; ``curve``, columns of
        :class:`gradbook.vqgan_measures.Progress` by ``steps``; ``trace`` and ``seconds`` of a step,
        as :func:`gradbook.vqgan_training.fit`.
    """
    settings, model = (scale.setting.steps, scale.points, measuring(data)), training.players.model
    course = vqgan_training.fit(training, data.train, *settings)
    return {
        "final": vqgan_measures.verdict(model, data.held_out, data.judge)._asdict(),
        "curve": colour_patches.columns(scale.points, course),
        "trace": course.trace,
        "seconds": course.seconds,
    }


def switched(data: Data, seed: int, scale: Scale) -> dict[str, Any]:
    """Start the game with a critic that never learned, and with one that watched.

    Both go on from one checkpoint of the second compressor, with the published share.

    Args:
        data: the patches and the judge.
        seed: of the weights, the codebook and the order of the patches.
        scale: says when the game starts.

    Returns:
        ``cold`` and ``warmed``, each with its ``curve``, columns of
        :class:`gradbook.vqgan_measures.Progress` by ``steps`` since the start of the game, and its
        ``trace`` of every step, as :func:`gradbook.vqgan_training.fit`.
    """
    features, watching = by_features(data), min(WATCHING, scale.start)
    first = started(LossCodebook, vqgan.alone(features), data, seed, scale)
    vqgan_training.fit(first, data.train, scale.start - watching)
    state, found = copy.deepcopy(first.state_dict()), {}
    for name, steps in {"cold": 0, "warmed": watching}.items():
        phases = vqgan.against(features, scale.start, steps, PUBLISHED)
        training = started(LossCodebook, phases, data, seed, scale)
        training.load_state_dict(state)
        points = [scale.start + step for step in scale.after]
        settings = (points[-1], points, measuring(data), 1)
        course = vqgan_training.fit(training, data.train, *settings)
        curve = colour_patches.columns(scale.after, course)
        found[name] = {"curve": curve, "trace": course.trace}
    return found


def drawn(models: Mapping[str, VQVAE], data: Data) -> dict[str, str]:
    """Keep pictures of what came in and what came back.

    Args:
        models: by name.
        data: has the held-out patches, at least 8.

    Returns:
        Texts for :func:`gradbook.pictures.decode`: ``patches``, eight held-out ones and then their
        reconstructions, model after model; ``coffee``, a crop of the photograph, and that of it
        coded whole, model after model.
    """
    chosen = data.held_out[:: len(data.held_out) // SHOWN][:SHOWN]
    again = [vqgan_measures.again(model, chosen) for model in models.values()]
    patches = torch.cat([chosen, *again])
    coffee = photographs.cropped("coffee")
    coded = [colour_patches.through_codes(model, coffee)[1] for model in models.values()]
    crops = torch.stack([image[CROP] for image in (coffee, *coded)])
    return {
        "patches": pictures.encode(pictures.to_levels(patches), SHOWN),
        "coffee": pictures.encode(crops, len(crops)),
    }
