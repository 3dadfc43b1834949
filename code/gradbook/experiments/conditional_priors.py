"""Priors over the codes of Fashion-MNIST that are told a class or edges, and what sampling leaves out.

A VQ-VAE turns each image into 7 by 7 codes of 128, as for the priors of the chapter before; a second
one codes its edges, the size of the gradient, in the same way. One transformer learns the codes of
20 000 training images without a condition, given the class, or given the codes of the edges; without
a condition also in other orders, and from 2000 images with some of the codes that it sees replaced.
Bits are those of 2000 test images. A network that was trained on real images judges samples.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradbook import data, orders, pictures, priors, vae_training, vq_vae_training
from gradbook.conditional_prior import ClassPrefix, CodePrefix, ConditionalPrior
from gradbook.conditional_prior_training import bits_per_code, fit, possible_share
from gradbook.devices import device
from gradbook.experiments import code_priors
from gradbook.experiments.code_priors import CODES, SIDE, Stage
from gradbook.image_judges import edges, judge, quality
from gradbook.sampling import Filter, nucleus, sample_grids, tempered, top_k

SEEDS = tuple(range(3))
CLASSES, TEST_IMAGES, FOLLOWED, SHOWN, AGAIN = 10, 2_000, 500, 8, 3
# "none" is a class that all images share.
CONDITIONS = ("none", "class", "edges")
ORDERS = ("raster", "column", "spiral")
KEEPS = (1.0, 0.9, 0.5)
FILTERS: dict[str, Filter] = {
    "all": lambda logits: logits,
    "tempered": partial(tempered, temperature=0.5),
    "top_k": partial(top_k, k=8),
    "nucleus": partial(nucleus, p=0.7),
}
SHORT_IMAGES, SHORT_STAGE, SHORT_STEPS = (6_000, 1_000), 150, 80

Numbers, Models = dict[str, float], dict[str, ConditionalPrior]
data_digest = vae_training.data_digest


class Scale(NamedTuple):
    """Sizes of a run: steps of a VQ-VAE (``stage``), of a prior and of the ``judge``, and others.

    ``few`` images and ``few_steps`` serve the comparison of corrupted codes; ``rate`` and ``batch``
    all priors, whose ``network`` has numbers of a vector, blocks and heads.
    """

    stage: int
    steps: int
    few: int
    few_steps: int
    judge: int
    rate: float
    batch: int
    network: tuple[int, int, int]
    drawn: int


SMALL = Scale(1_000, 400, 2_000, 600, 400, 1e-2, 64, (64, 2, 4), 100)
FULL = Scale(5_000, 10_000, 2_000, 10_000, 4_000, 1e-3, 128, (256, 6, 8), 500)


class Part(NamedTuple):
    """A part of the data: codes [n, 7, 7], and conditions by name, n of each."""

    codes: Tensor
    conditions: dict[str, Tensor]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Give the codes, and the conditions of one name."""
        return self.codes, self.conditions[name]


class World(NamedTuple):
    """What all priors share: both autoencoders, and the data in codes."""

    images: Stage
    edges: Stage
    train: Part
    test: Part


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train both autoencoders and every prior from one seed.

    Args:
        seed: of all weights, orders and noise.
        scale: of the networks and trainings.

    Returns:
        ``short``, as :func:`run_short`; ``stages``, as
        :func:`gradbook.vq_vae_training.measures` of the autoencoders of ``images`` and ``edges``;
        ``bits`` of a code by condition, with each image's ``own`` and with that of the ``other``, the
        next image; ``orders``, bits of a code by order, without a condition; ``keeps``, as
        :func:`keep_bits`; ``samples``, as :func:`judged`; ``followed``, as :func:`followed`; and, of
        the first seed alone, ``pictures``, as :func:`sheets`.
    """
    train, test = vq_vae_training.grey("train"), vq_vae_training.grey("test", TEST_IMAGES)
    world = coded(train, test, seed, scale.stage)
    models = {name: trained(world, name, seed, scale) for name in CONDITIONS}
    bits = {name: own_and_other(model, *world.test.pair(name)) for name, model in models.items()}
    coders = {"images": (world.images.model, test), "edges": (world.edges.model, edges(test))}
    found = {
        "short": run_short(seed),
        "stages": {name: vq_vae_training.measures(*one)._asdict() for name, one in coders.items()},
        "bits": bits,
        "orders": order_bits(world, seed, scale, {"raster": bits["none"]["own"]}),
        "keeps": keep_bits(world, seed, scale),
        "samples": judged(world, models["class"], train, test, seed, scale),
        "followed": followed(world, models, test, seed),
    }
    return found | ({"pictures": sheets(world, models, test, seed)} if seed == SEEDS[0] else {})


def run_short(seed: int) -> Numbers:
    """Run one short seed, as a page does live.

    Args:
        seed: of all weights, orders and noise.

    Returns:
        After 150 steps of the autoencoder on 6000 images and 80 steps of the prior given the class,
        bits of a code over 1000 test images, as :func:`own_and_other`.
    """
    images = [vq_vae_training.grey(*x) for x in zip(("train", "test"), SHORT_IMAGES, strict=True)]
    stage = code_priors.first_stage(*images, seed, SHORT_STAGE)
    prior, given = started("class", seed, SMALL), labels("train", stage.train)
    fit(prior, stage.train, given, seed, SHORT_STEPS, SMALL.rate, SMALL.batch)
    return own_and_other(prior, stage.test, labels("test", stage.test))


def coded(train: Tensor, test: Tensor, seed: int, steps: int) -> World:
    """Train both autoencoders, and encode images and their edges.

    Args:
        train: images to train on, [n, 1, 28, 28], the first of their split.
        test: images, [m, 1, 28, 28], the first of theirs.
        seed: of the weights and the order of the images.
        steps: of each training.
    """
    images = code_priors.first_stage(train, test, seed, steps)
    lines = code_priors.first_stage(edges(train), edges(test), seed + 50_000, steps)
    parts = []
    for split in ("train", "test"):
        codes, condition = getattr(images, split), getattr(lines, split)
        kinds = labels(split, codes)
        parts.append(Part(codes, {"none": 0 * kinds, "class": kinds, "edges": condition}))
    return World(images, lines, *parts)


def labels(split: str, codes: Tensor) -> Tensor:
    """Read the classes of the images that grids stand for, the first of their split."""
    return data.fashion_mnist(split).labels[: len(codes)].to(codes.device)


def started(name: str, seed: int, scale: Scale, order: str = "raster") -> ConditionalPrior:
    """Build a prior on the book's device.

    Args:
        name: of the condition.
        seed: of the weights.
        scale: of the network.
        order: of the places.
    """
    dim = scale.network[0]
    generator = torch.Generator().manual_seed(seed + 60_000)
    if name == "edges":
        prefix = CodePrefix(CODES, SIDE**2, dim, generator)
    else:
        prefix = ClassPrefix(CLASSES if name == "class" else 1, dim, generator)
    generator = torch.Generator().manual_seed(seed + 30_000)
    sizes = (SIDE, SIDE, CODES, *scale.network, generator, prefix.vectors)
    transformer = orders.OrderedTransformer(getattr(orders, order)(SIDE, SIDE), *sizes)
    return ConditionalPrior(prefix, transformer).to(device())


def trained(
    world: World, name: str, seed: int, scale: Scale, order: str = "raster"
) -> ConditionalPrior:
    """Train a prior on all grids; the arguments are those of :func:`started`, and the data."""
    prior = started(name, seed, scale, order)
    fit(prior, *world.train.pair(name), seed, scale.steps, scale.rate, scale.batch)
    return prior


def own_and_other(prior: ConditionalPrior, codes: Tensor, condition: Tensor) -> Numbers:
    """Measure bits of a code with true conditions, ``own``, and the next image's, ``other``."""
    given = {"own": condition, "other": condition.roll(-1, 0)}
    return {kind: bits_per_code(prior, codes, values) for kind, values in given.items()}


def order_bits(world: World, seed: int, scale: Scale, known: Numbers) -> Numbers:
    """Measure bits of a code without a condition, in every order that is not ``known`` yet."""
    found = dict(known)
    for order in [order for order in ORDERS if order not in known]:
        prior = trained(world, "none", seed, scale, order)
        found[order] = bits_per_code(prior, *world.test.pair("none"))
    return found


def keep_bits(world: World, seed: int, scale: Scale) -> dict[str, list[float]]:
    """Train priors without a condition on few grids, some of whose codes are replaced.

    Returns:
        ``keep``, the probabilities; and bits of a code at each, measured without corruption: of the
        grids that were trained on, ``train``, and of ``test``.
    """
    few = [values[: scale.few] for values in world.train.pair("none")]
    found: dict[str, list[float]] = {"keep": list(KEEPS), "train": [], "test": []}
    for keep in KEEPS:
        prior = started("none", seed, scale)
        fit(prior, *few, seed, scale.few_steps, scale.rate, scale.batch, keep)
        found["train"].append(bits_per_code(prior, *few))
        found["test"].append(bits_per_code(prior, *world.test.pair("none")))
    return found


def judged(
    world: World, prior: ConditionalPrior, train: Tensor, test: Tensor, seed: int, scale: Scale
) -> dict[str, Numbers]:
    """Draw codes for each class, and judge the decoded images.

    Args:
        world: the data and the decoder.
        prior: given the class.
        train: images for the judge; the first are those of the training codes.
        test: images, those of the test codes.
        seed: of the judge and the noise.
        scale: of the judge's training, and how many samples of a class.

    Returns:
        As :func:`gradbook.image_judges.quality`, of the ``test`` images, their ``reconstructions``
        and, by filter, samples; by filter also the share of test grids that are ``possible``.
    """
    classes = world.train.conditions["class"]
    network = judge(train[: len(classes)], classes, CLASSES, seed, scale.judge)
    again = priors.decoded(world.images.model, world.test.codes)
    found = {
        name: quality(network, images, world.test.conditions["class"])
        for name, images in (("test", test), ("reconstructions", again))
    }
    wanted = torch.arange(CLASSES, device=device()).repeat_interleave(scale.drawn)
    noise = priors.grid_noise(prior, len(wanted), seed + 40_000)
    for name, filter in FILTERS.items():
        drawn = sample_grids(prior, len(wanted), noise, filter, wanted)
        found[name] = quality(network, priors.decoded(world.images.model, drawn), wanted)
        found[name]["possible"] = possible_share(prior, *world.test.pair("class"), filter)
    return found


def followed(world: World, models: Models, test: Tensor, seed: int) -> Numbers:
    """Measure how far the edges of samples are from those of the test images.

    Args:
        world: the data and the decoder.
        models: the priors, by condition.
        test: images, those of the test codes.
        seed: of the noise, which all samplers share.

    Returns:
        The mean absolute difference of a pixel of the edges: ``reconstructions``, and samples by
        condition, against the first 500 test images, whose conditions the samples have.
    """
    few = slice(min(len(test), FOLLOWED))
    noise = priors.grid_noise(models["none"], few.stop, seed + 40_000)
    grids = {"reconstructions": world.test.codes[few]}
    for name, prior in models.items():
        grids[name] = prior.sample(few.stop, noise, world.test.conditions[name][few])
    found = {}
    for name, codes in grids.items():
        images = priors.decoded(world.images.model, codes).clamp(0, 1)
        found[name] = (edges(images) - edges(test[few])).abs().mean().item()
    return found


def sheets(world: World, models: Models, test: Tensor, seed: int) -> dict[str, str]:
    """Draw pictures.

    The arguments are those of :func:`followed`.

    Returns:
        As :func:`gradbook.pictures.encode`, in rows of 8: for each filter ``classes_`` and its name,
        a row of samples for each class; of 8 test images ``test``, their ``edges``, the decoded codes
        of these, ``coded_edges``, and ``from_edges``, 3 rows of samples for these codes.
    """
    wanted = torch.arange(CLASSES, device=device()).repeat_interleave(SHOWN)
    noise = priors.grid_noise(models["class"], len(wanted), seed + 80_000)
    grids = {
        f"classes_{name}": sample_grids(models["class"], len(wanted), noise, filter, wanted)
        for name, filter in FILTERS.items()
    }
    lines = world.edges.test[:SHOWN].repeat(AGAIN, 1, 1)
    noise = priors.grid_noise(models["edges"], len(lines), seed + 80_000)
    grids["from_edges"] = models["edges"].sample(len(lines), noise, lines)
    images = {name: priors.decoded(world.images.model, codes) for name, codes in grids.items()}
    images |= {"test": test[:SHOWN], "edges": edges(test[:SHOWN])}
    images["coded_edges"] = priors.decoded(world.edges.model, world.edges.test[:SHOWN])
    return {name: pictures.encode(pictures.to_levels(tiles)) for name, tiles in images.items()}
