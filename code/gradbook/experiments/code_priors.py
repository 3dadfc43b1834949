"""Priors over the codes of Fashion-MNIST: tables, PixelCNN and a causal transformer at equal cost.

A VQ-VAE first turns each image into 7 by 7 codes of 128: a codebook of moving averages whose unused
codes start again. PixelCNN and the transformer have about 120 000 weights and are trained on the
codes of 20 000 training images with one budget of floating-point operations, counted by formula; the
same transformer with the same budget also learns 14 by 14 mean pixels of 16 grey levels. Everything
is measured on 2000 test images. A prior's bits, added to those of the grey levels given the codes,
bound the length of an image.
"""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradbook import pictures, priors, vae_training, vq_vae_training
from gradbook.devices import device
from gradbook.gumbel import gumbel_max
from gradbook.quantizers import RestartedCodebook
from gradbook.vq_vae import VQVAE

SEEDS = tuple(range(5))
PIXELS, SIDE, CODES = 784, 7, 128
STAGE_STEPS, STAGE_RATE = 1_000, 2e-3
GRIDS, TEST_IMAGES = 20_000, 2_000
CHANNELS, GATED_LAYERS = 30, 6
DIM, BLOCKS, HEADS = 64, 2, 4
STEPS, BATCH, RATE = 1_300, 64, 1e-2
SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
ALPHA = 1.0
# Mean pixels, and all pixels: the side of an image, and its grey levels.
POOLED, WHOLE = (14, 16), (28, 256)
SCALE_IMAGES = 2_000
DRAWN, SHOWN = 64, 16
SHORT_IMAGES = 6_000, 1_000
SHORT_STAGE, SHORT_STEPS = 200, 100

data_digest = vae_training.data_digest


class Stage(NamedTuple):
    """A trained autoencoder, and the codes of training and of test images, [n, 7, 7]."""

    model: VQVAE
    train: Tensor
    test: Tensor


def run(seed: int) -> dict[str, Any]:
    """Train a VQ-VAE and every prior from one seed.

    Args:
        seed: of all weights, orders and noise.

    Returns:
        ``short``, as :func:`run_short`; ``stage``, as
        :func:`gradbook.vq_vae_training.measures` of the VQ-VAE; ``shares`` of a training, after which
        its ``curve`` is sampled; ``networks``, by name, as :func:`study`; ``bits`` of a code, by
        prior, and ``pooled_bits``, of a mean pixel; ``images``, as :func:`image_bits`; ``megaflops``
        of the transformer's forward pass, as :func:`sequence_costs`; ``seconds``, as
        :func:`sampling_seconds`; and, of the first seed alone, ``pictures``, as :func:`sheets`.
    """
    train, test = vq_vae_training.grey("train"), vq_vae_training.grey("test", TEST_IMAGES)
    stage = first_stage(train, test, seed, STAGE_STEPS)
    small = priors.pooled(train[:GRIDS], *POOLED), priors.pooled(test, *POOLED)
    models = {
        "pixelcnn": pixelcnn(seed),
        "transformer": transformer(seed),
        "pooled": transformer(seed, *POOLED),
    }
    networks = {
        name: study(name, model, *(small if name == "pooled" else stage[1:]), seed)
        for name, model in models.items()
    }
    bits = priors.table_bits(stage.train, stage.test, CODES, ALPHA)
    bits |= {name: networks[name]["curve"][-1] for name in ("pixelcnn", "transformer")}
    pooled_bits = priors.table_bits(*small, POOLED[1], ALPHA)
    pooled_bits["transformer"] = networks["pooled"]["curve"][-1]
    found = {
        "short": run_short(seed),
        "stage": vq_vae_training.measures(stage.model, test)._asdict(),
        "shares": list(SHARES),
        "networks": networks,
        "bits": bits,
        "pooled_bits": pooled_bits,
        "images": image_bits(stage, train, test, bits),
        "megaflops": {name: cost / 1e6 for name, cost in sequence_costs().items()},
        "seconds": sampling_seconds(models | {"whole": transformer(seed, *WHOLE)}, seed),
    }
    return found | ({"pictures": sheets(stage, models, test, seed)} if seed == SEEDS[0] else {})


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of all weights, orders and noise.

    Returns:
        After 200 steps of the VQ-VAE on 6000 images and 100 steps of the transformer on their codes,
        bits of a code over 1000 test images: of the ``transformer``, and as
        :func:`gradbook.priors.counting.table_bits`.
    """
    splits = zip(("train", "test"), SHORT_IMAGES, strict=True)
    train, test = (vq_vae_training.grey(*split) for split in splits)
    stage = first_stage(train, test, seed, SHORT_STAGE)
    model = transformer(seed)
    priors.fit(model, stage.train, seed, SHORT_STEPS, RATE, BATCH, (), lambda model: None)
    bits = {"transformer": priors.bits_per_code(model, stage.test)}
    return bits | priors.table_bits(stage.train, stage.test, CODES, ALPHA)


def first_stage(train: Tensor, test: Tensor, seed: int, steps: int) -> Stage:
    """Train a VQ-VAE and encode images.

    Args:
        train: images to train on, [n, 1, 28, 28]; the codes of the first 20 000 are kept.
        test: images, [m, 1, 28, 28].
        seed: of the weights and the order of the images.
        steps: of the training.

    Returns:
        The model and both sets of codes.
    """
    model = vq_vae_training.started(restarted, train, seed)
    vq_vae_training.fit(model, train, seed, steps, STAGE_RATE)
    return Stage(model, *(vq_vae_training.codes(model, x) for x in (train[:GRIDS], test)))


def restarted(vectors: Tensor, generator: torch.Generator) -> nn.Module:
    """Make a codebook that starts at vectors of the data.

    Args:
        vectors: [N, D], N at least K.
        generator: of the CPU.

    Returns:
        A quantizer.
    """
    chosen = torch.randperm(len(vectors), generator=generator, device="cpu")[:CODES]
    return RestartedCodebook(vectors[chosen.to(vectors.device)])


def pixelcnn(seed: int) -> priors.PixelCNN:
    """Build PixelCNN on the book's device.

    Args:
        seed: of the weights.

    Returns:
        A prior over 7 by 7 codes.
    """
    generator = torch.Generator().manual_seed(seed + 30_000)
    return priors.PixelCNN(SIDE, SIDE, CODES, CHANNELS, GATED_LAYERS, generator).to(device())


def transformer(seed: int, side: int = SIDE, codes: int = CODES) -> priors.CausalTransformer:
    """Build the transformer on the book's device.

    Args:
        seed: of the weights.
        side: of a grid.
        codes: how many different ones.

    Returns:
        A prior over grids of that size.
    """
    generator = torch.Generator().manual_seed(seed + 30_000)
    sizes = (side, side, codes, DIM, BLOCKS, HEADS)
    return priors.CausalTransformer(*sizes, generator).to(device())


def sequence_costs() -> dict[str, int]:
    """Count the transformer's forward pass over codes, mean pixels and all pixels.

    Returns:
        Floating-point operations of one grid, by what it holds.
    """
    grids = {"codes": (SIDE, CODES), "pooled": POOLED, "whole": WHOLE}
    return {
        name: priors.transformer_flops(side, side, count, DIM, BLOCKS)
        for name, (side, count) in grids.items()
    }


def study(name: str, model: nn.Module, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Train a network on the budget that the transformer over codes has.

    Args:
        name: ``"pixelcnn"``, ``"transformer"`` or ``"pooled"``.
        model: of that kind.
        train: grids to train on, [n, h, w].
        test: grids to measure on, [m, h, w].
        seed: of the order of the grids.

    Returns:
        ``curve``, bits of a code at each of ``SHARES``; ``steps``; ``seconds`` of a step; the number
        of ``weights``; ``megaflops`` of a forward pass over a grid; and ``teraflops``, 10^12
        operations of the whole training.
    """
    gated = priors.pixelcnn_flops(SIDE, SIDE, CODES, CHANNELS, GATED_LAYERS)
    costs = sequence_costs()
    cost = {"pixelcnn": gated, "transformer": costs["codes"], "pooled": costs["pooled"]}[name]
    budget = STEPS * BATCH * priors.training_flops(costs["codes"])
    steps = priors.steps_for(budget, priors.training_flops(cost), BATCH)
    points = [round(steps * share) for share in SHARES]

    def measure(model: nn.Module) -> float:
        return priors.bits_per_code(model, test)

    curve = priors.fit(model, train, seed, steps, RATE, BATCH, points, measure)
    return {
        "curve": curve.values,
        "steps": steps,
        "seconds": curve.seconds,
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "megaflops": cost / 1e6,
        "teraflops": steps * BATCH * priors.training_flops(cost) / 1e12,
    }


def image_bits(stage: Stage, train: Tensor, test: Tensor, bits: dict[str, float]) -> dict[str, Any]:
    """Add the bits of the grey levels given the codes to those of the codes.

    Args:
        stage: the autoencoder and the codes.
        train: images to fit the scale of the logistic law on, [n, 1, 28, 28].
        test: images to measure on, those of the test codes.
        bits: of a code, by prior.

    Returns:
        ``scale`` and ``bits`` of a pixel given the codes, as
        :func:`gradbook.priors.images.level_bits`; and ``total`` bits of a pixel, by prior.
    """
    few = stage.train[:SCALE_IMAGES], train[: len(stage.train)][:SCALE_IMAGES]
    levels = priors.level_bits(stage.model, few, (stage.test, test))
    share = SIDE**2 / PIXELS
    total = {name: levels.bits + share * value for name, value in bits.items()}
    return {**levels._asdict(), "total": total}


def sampling_seconds(models: dict[str, nn.Module], seed: int) -> dict[str, float]:
    """Time the drawing of 64 grids.

    Args:
        models: the priors, by name; the time does not depend on their training.
        seed: of the noise.

    Returns:
        Seconds by name, with keys and values kept, and ``without_cache`` of the transformer over
        codes.
    """
    draws = {name: (model, model.sample) for name, model in models.items()}
    slow = models["transformer"]
    draws["without_cache"] = (slow, slow.sample_without_cache)
    found = {}
    for name, (model, draw) in draws.items():
        noise = priors.grid_noise(model, DRAWN, seed + 40_000)
        start = time.perf_counter()
        # A copy on the CPU waits for the device.
        draw(DRAWN, noise).cpu()
        found[name] = time.perf_counter() - start
    return found


def sheets(stage: Stage, models: dict[str, nn.Module], test: Tensor, seed: int) -> dict[str, str]:
    """Draw pictures.

    Args:
        stage: the autoencoder and the codes.
        models: has ``pixelcnn`` and ``transformer``.
        test: images.
        seed: of the noise, which all samplers share.

    Returns:
        Of 16 pictures each, as :func:`gradbook.pictures.encode`: ``test`` images, their
        ``reconstructions``, and codes drawn from each prior: ``uniform``, ``positions``,
        ``pixelcnn`` and ``transformer``.
    """
    noise = priors.grid_noise(models["transformer"], SHOWN, seed + 40_000)
    table = priors.position_frequencies(stage.train, CODES, ALPHA)
    drawn = {
        "reconstructions": stage.test[:SHOWN],
        "uniform": noise.argmax(-1),
        "positions": gumbel_max(table.log(), noise),
        **{name: models[name].sample(SHOWN, noise) for name in ("pixelcnn", "transformer")},
    }
    images = {"test": test[:SHOWN]}
    images |= {name: priors.decoded(stage.model, codes) for name, codes in drawn.items()}
    return {name: pictures.encode(pictures.to_levels(rows)) for name, rows in images.items()}
