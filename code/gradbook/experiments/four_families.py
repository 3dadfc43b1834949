"""Four families of models on two sets of bits, with one number of parameters and of images seen.

One set has a density that is known exactly: the Ising model on 8 x 8 spins. The other is real:
Fashion-MNIST, pooled to 14 x 14 and drawn once from its grey levels. On each, a NADE, a VAE, a
real NVP on dequantized bits and a GAN are trained with as many parameters as each other and on as
many images; then each is asked for what it has: the log-probability of test images, draws, and
features of the images. What they do not share is time, which is recorded: seconds are a matter of
the machine and of who else uses it, images are not.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradbook import data, device, families, family_measures, ising
from gradbook.families import Model, Recipe
from gradbook.family_builders import adversarial, autoregressive, flow, latent_variable
from gradbook.family_measures import Bits, estimate
from gradbook.two_samples import mmd_squared

SEEDS = tuple(range(5))
FAMILIES = {
    "nade": autoregressive,
    "vae": partial(latent_variable, latents=16, draws=200),
    "flow": partial(flow, layers=6, draws=20),
    "gan": partial(adversarial, latents=16, temperature=0.5, penalty=1.0),
}
RECIPES = {
    "nade": Recipe(steps=3000, batch=100, rate=5e-3, betas=(0.9, 0.999)),
    "vae": Recipe(steps=3000, batch=100, rate=3e-3, betas=(0.9, 0.999)),
    "flow": Recipe(steps=3000, batch=100, rate=5e-3, betas=(0.9, 0.999)),
    "gan": Recipe(steps=3000, batch=100, rate=2e-3, betas=(0.5, 0.99)),
}
BUDGETS = {"ising": 20_000, "fashion": 60_000}
COUPLING, FIELD, SIDE = 0.4, 0.05, 8
BONDS = 2 * SIDE * (SIDE - 1)
ISING_IMAGES = (10_000, 10_000)
HELD_OUT = 5_000
LIKELIHOOD_IMAGES = 2_000
MMD_IMAGES = 2_000
BANDWIDTH_IMAGES = 1_000
PROBE_IMAGES = 2_000
PROBE_C = 0.1
RANDOM_FEATURES = 128
SHOWN = 16
SHORT_STEPS = 150
SHORT_IMAGES = (2_000, 1_000)
SHORT_FAMILIES = ("nade", "vae")


def data_digest() -> str:
    """Summarize the images and labels that a record depends on.

    Returns:
        A SHA-256 of the SHA-256 of the pixels and of the label files. The
        Ising model is drawn from what this file says.
    """
    labels = sorted(name for name in data.FASHION_MNIST_SHA256 if "labels" in name)
    parts = (data.FASHION_MNIST_PIXELS_SHA256, *map(data.FASHION_MNIST_SHA256.get, labels))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def reference() -> dict[str, float]:
    """Compute what the Ising model's draws should show, exactly.

    Returns:
        ``entropy`` in nats; ``bond``, the mean product of neighbouring spins; and
        ``magnetization_squared``, the mean of the squared mean of all spins.
    """
    coupling, field = (torch.tensor(v, dtype=torch.float64) for v in (COUPLING, FIELD))
    pair = coupling.requires_grad_(), field.requires_grad_()
    log_z = ising.log_partition(ising.Ising(*pair, SIDE, SIDE))
    bonds, spins = torch.autograd.grad(log_z, pair, create_graph=True)
    (variance,) = torch.autograd.grad(spins, pair[1])
    return {
        "entropy": ising.entropy(_ising()).item(),
        "bond": bonds.item() / BONDS,
        "magnetization_squared": (variance + spins.square()).item() / SIDE**4,
    }


def run(seed: int) -> dict[str, Any]:
    """Train every family on both sets from one seed.

    Args:
        seed: of the weights, the order of the images, the noise, and the Ising model's images.

    Returns:
        ``short``, as :func:`run_short`; ``ising`` and ``fashion``, as :func:`study`.
    """
    sets = {"ising": ising_bits(seed, *ISING_IMAGES), "fashion": fashion_bits(seed)}
    return {
        "short": run_short(seed),
        **{name: study(bits, BUDGETS[name], seed) for name, bits in sets.items()},
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: as for :func:`run`.

    Returns:
        By family, for the NADE and the VAE: the estimate of KL(p || q) on 1000 images after 150
        steps on 2000 images of the Ising model.
    """
    bits = ising_bits(seed, *SHORT_IMAGES)
    builders = {name: FAMILIES[name] for name in SHORT_FAMILIES}
    widths = families.sizes(builders, SIDE**2, BUDGETS["ising"])
    found = {}
    for name, width in widths.items():
        generator = torch.Generator().manual_seed(seed)
        model = builders[name](SIDE**2, width, generator)
        recipe = RECIPES[name]._replace(steps=SHORT_STEPS)
        families.train(model, bits.train, recipe, generator)
        found[name] = likelihood(model, bits, seed)["kl"]["value"]
    return found


def ising_bits(seed: int, train: int, test: int) -> Bits:
    """Draw images of the Ising model.

    Args:
        seed: of the draw.
        train: how many to train on.
        test: how many to measure on.

    Returns:
        Images of 64 bits, which know their log-probability.
    """
    generator = torch.Generator().manual_seed(seed + 1_000)
    shape = train + test, SIDE
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    images = ising.sample(_ising(), uniforms).flatten(1).float().to(device())

    def log_prob(x: Tensor) -> Tensor:
        return ising.log_prob(_ising(), x.double().unflatten(1, (SIDE, SIDE)))

    return Bits(images[:train], images[train:], None, log_prob)


def fashion_bits(seed: int) -> Bits:
    """Read Fashion-MNIST, pooled by the mean of 2 x 2 grey levels and drawn once from them.

    Args:
        seed: of the order of the test images alone.

    Returns:
        Images of 196 bits with labels.
    """
    generator, shuffle = (torch.Generator().manual_seed(s) for s in (0, seed + 1_000))
    splits = {split: data.fashion_mnist(split) for split in ("train", "test")}
    train, test = (family_measures.pooled(one.images, generator) for one in splits.values())
    order = torch.randperm(len(test), generator=shuffle, device="cpu")
    labels = splits["train"].labels, splits["test"].labels[order]
    return Bits(train.to(device()), test[order].to(device()), labels, None)


def study(bits: Bits, budget: int, seed: int) -> dict[str, Any]:
    """Train every family on one set and measure it.

    Args:
        bits: the set.
        budget: how many parameters each is to have.
        seed: of the weights, the order of the images and the noise.

    Returns:
        By family, a row: ``parameters``, ``width``, ``seconds`` of training; ``likelihood`` as
        :func:`likelihood`, ``draws`` as :func:`quality` and, where there are labels, ``probe``,
        the accuracy of :func:`probe`. Also ``data``, with the ``draws`` of fresh images of the set
        itself; ``independent``, the ``likelihood`` of pixels that know nothing of each other;
        ``bandwidth``; where there are labels ``probes``, as :func:`yardsticks`; and for the first
        seed ``pictures``, sixteen draws of each family and sixteen images, packed.
    """
    held, fresh = bits.test[:HELD_OUT], bits.test[HELD_OUT : 2 * HELD_OUT]
    bandwidth = torch.pdist(held[:BANDWIDTH_IMAGES]).median().item()
    rows, drawn = {}, {"data": fresh}
    for name, width in families.sizes(FAMILIES, bits.train.shape[1], budget).items():
        generator = torch.Generator().manual_seed(seed)
        model = FAMILIES[name](bits.train.shape[1], width, generator)
        seconds = families.train(model, bits.train, RECIPES[name], generator)
        drawn[name] = draw(model, seed)
        rows[name] = {
            "parameters": families.parameter_count(model),
            "width": width,
            "seconds": seconds,
            "likelihood": likelihood(model, bits, seed),
        }
        if bits.labels is not None:
            rows[name]["probe"] = probe(model.features, bits)
    independent = likelihood(family_measures.independent(bits), bits, seed)
    rows |= {"data": {}, "independent": {"likelihood": independent}}
    for name, x in drawn.items():
        rows[name]["draws"] = quality(x, held, bandwidth, bits)
    if bits.labels is not None:
        rows["probes"] = yardsticks(bits, seed)
    if seed == SEEDS[0]:
        rows["pictures"] = {name: families.packed(x[:SHOWN]) for name, x in drawn.items()}
    return {"bandwidth": bandwidth, **rows}


@torch.no_grad()
def draw(model: Model, seed: int) -> Tensor:
    """Draw as many images as are held out.

    Args:
        model: of any family.
        seed: of the noise.

    Returns:
        [5000, n].
    """
    return model.sample(HELD_OUT, torch.Generator().manual_seed(seed + 2_000))


def likelihood(model: Model, bits: Bits, seed: int) -> dict[str, Any] | None:
    """Measure as :func:`gradbook.family_measures.likelihood`, by the first 2000 images of a split.

    Args:
        model: of any family.
        bits: the set.
        seed: of the noise.

    Returns:
        What that function returns.
    """
    generator = torch.Generator().manual_seed(seed + 3_000)
    return family_measures.likelihood(model, bits, LIKELIHOOD_IMAGES, generator)


def probe(features: Callable[[Tensor], Tensor], bits: Bits) -> float:
    """Measure as :func:`gradbook.family_measures.probe`, by the first 2000 images of a split.

    Args:
        features: from bits [N, n] to [N, f].
        bits: a set with labels.

    Returns:
        The accuracy on test images.
    """
    return family_measures.probe(features, bits, PROBE_IMAGES, PROBE_C)


def quality(x: Tensor, held: Tensor, bandwidth: float, bits: Bits) -> dict[str, Any]:
    """Measure draws of a model.

    Args:
        x: the draws, [N, n].
        held: images of the set, [M, n].
        bandwidth: of the kernel, the median distance of two images held out.
        bits: the set.

    Returns:
        ``mmd_squared``, without bias; where the density p is known ``cross_entropy``, the mean of
        -log p, ``bond`` and ``magnetization_squared`` as in :func:`reference`, each an estimate.
    """
    sample, target = x[:MMD_IMAGES].double(), held[:MMD_IMAGES].double()
    found = {"mmd_squared": mmd_squared(sample, target, bandwidth).item()}
    if bits.log_prob is not None:
        bonds, spins = ising.statistics(x.double().unflatten(1, (SIDE, SIDE)))
        found["cross_entropy"] = estimate(-bits.log_prob(x))
        found["bond"] = estimate(bonds / BONDS)
        found["magnetization_squared"] = estimate((spins / SIDE**2).square())
    return found


def yardsticks(bits: Bits, seed: int) -> dict[str, float]:
    """Probe features that no training made.

    Args:
        bits: a set with labels.
        seed: of the random features.

    Returns:
        The accuracy of :func:`probe` for ``pixels``; ``untrained``, rectified random projections of
        the pixels; and ``noise``, random numbers that know nothing of the image.
    """
    generator = torch.Generator().manual_seed(seed + 4_000)
    shape = bits.train.shape[1], RANDOM_FEATURES
    normal = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    weights = normal(shape).to(bits.train)

    def noise(x: Tensor) -> Tensor:
        return normal((len(x), RANDOM_FEATURES))

    return {
        "pixels": probe(lambda x: x, bits),
        "untrained": probe(lambda x: ((2 * x - 1) @ weights).relu(), bits),
        "noise": probe(noise, bits),
    }


def _ising() -> ising.Ising:
    return ising.Ising(COUPLING, FIELD, SIDE, SIDE)
