"""A VQ-VAE on colour photographs: 512 bits for a patch of 32 by 32 pixels, and JPEG beside it.

Five photographs give the patches of training, two others are held out whole. A patch becomes 8 by 8
codes out of 256, 48 times fewer bits than its pixels. The networks are convolutional, so that a
whole photograph is coded by the same weights, at half a bit for a pixel. A causal transformer then
learns which codes follow which. PSNR is that of the networks' output for patches, as for the other
experiments, and that of 8-bit levels for whole photographs, as for JPEG.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradbook import photographs, pictures, priors, vae_training, vq_vae, vq_vae_training
from gradbook.quantizers import RestartedCodebook
from gradbook.vae_training import Curve
from gradbook.vq_vae import VQVAE

SEEDS = tuple(range(5))
CODES, DIM, WIDTH, BLOCKS = 256, 16, 48, 1
STEPS, RATE = 1_000, 2e-3
POINTS = (0, 100, 200, 400, 600, 800, 1_000)
# Training patches for what is measured beside the held-out ones.
MEASURED = 1_000
# Numbers of a vector, blocks, heads.
PRIOR_SIZES = (64, 3, 4)
PRIOR_STEPS, PRIOR_RATE, PRIOR_BATCH = 600, 2e-3, 64
PRIOR_POINTS = (0, 100, 200, 400, 600)
SMOOTHING = 1.0
SHORT_STEPS = 150
SHOWN, SAMPLES = 8, 16
# Rows and columns of coffee that are kept as a picture: the spoon.
CROP = slice(220, 348), slice(320, 448)
QUALITIES = (2, 5, 8, 10, 15, 20, 22, 30, 50, 75, 90)

data_digest = photographs.digest


def run(seed: int) -> dict[str, Any]:
    """Train one model and its prior.

    Args:
        seed: of the weights, the codebook, the order of the patches and the samples.

    Returns:
        ``short``, as :func:`run_short`; ``bits_in`` and ``bits_out`` of a patch; of the first
        thousand training patches, ``train``, and of the ``held_out`` ones: ``curve``, the PSNR
        after ``steps``, and ``final``, as :func:`run_short`; ``photographs``, by name as
        :func:`coded_whole`; of the same two parts the bits of a patch: ``bits``, as
        :func:`table_bits`, and ``prior_curve``, under the transformer after ``steps``; ``seconds``
        of a step of both trainings; for the first seed ``pictures``, as :func:`drawn`.
    """
    train, held_out = training_images(), held_out_images()
    model = started(train, seed)
    parts = {"train": train[:MEASURED], "held_out": held_out}

    def measure(model: VQVAE) -> dict[str, float]:
        return {part: vq_vae_training.psnr(model, images) for part, images in parts.items()}

    curve = vq_vae_training.fit(model, train, seed, STEPS, RATE, POINTS, measure)
    grids = [vq_vae_training.codes(model, images) for images in (train, held_out)]
    prior, prior_curve = fitted_prior(*grids, seed)
    final = {part: vq_vae_training.measures(model, parts[part])._asdict() for part in parts}
    rate = vq_vae.compression(*held_out.shape[2:], held_out.shape[1], grids[0].shape[1:], CODES)
    kept = {"pictures": drawn(model, prior, held_out, seed)} if seed == SEEDS[0] else {}
    return {
        "short": run_short(seed),
        **rate._asdict(),
        "curve": columns(POINTS, curve),
        "final": final,
        "photographs": {name: coded_whole(model, name) for name in photographs.HELD_OUT},
        "bits": table_bits(*grids),
        "prior_curve": columns(PRIOR_POINTS, prior_curve),
        "seconds": {"model": curve.seconds, "prior": prior_curve.seconds},
        **kept,
    }


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of the weights, the codebook and the order of the patches.

    Returns:
        After 150 steps, which have their own fall of the rate, over the held-out patches: ``psnr``
        in decibels, how many codes are ``used``, their ``perplexity``, and the mean ``norm`` of the
        encoder's vectors.
    """
    train, held_out = training_images(), held_out_images()
    model = started(train, seed)
    vq_vae_training.fit(model, train, seed, SHORT_STEPS, RATE)
    return vq_vae_training.measures(model, held_out)._asdict()


def reference() -> dict[str, Any]:
    """Compress the held-out photographs by JPEG, as Pillow does it.

    Coffee comes as PNG. The rocket comes as JPEG: its pixels have been through this transform
    before, which is kind to JPEG.

    Returns:
        ``jpeg``, by photograph the ``quality``, the ``bits_per_pixel`` of the whole file and the
        ``psnr``; ``pictures``, the crop of coffee at the best quality within the codes' bits per
        pixel as ``coffee_jpeg``, and its ``bits_per_pixel``.
    """
    found = {
        name: pictures.jpeg_curve(photographs.cropped(name), QUALITIES)
        for name in photographs.HELD_OUT
    }
    limit = math.log2(CODES) / vq_vae.PATCH**2
    coffee = found["coffee"]
    rows = list(zip(coffee["quality"], coffee["bits_per_pixel"], strict=True))
    quality, rate = max((row for row in rows if row[1] <= limit), default=rows[0])
    _, tile = pictures.jpeg(photographs.cropped("coffee"), quality)
    kept = {"coffee_jpeg": pictures.encode(tile[CROP][None]), "bits_per_pixel": rate}
    return {"jpeg": found, "pictures": kept}


def training_images() -> Tensor:
    """Cut the photographs of training into patches, in one order that mixes them.

    Returns:
        float32 [n, 3, 32, 32] from 0 to 1, on the book's device.
    """
    cut = photographs.training_patches()
    generator = torch.Generator().manual_seed(0)
    return pictures.from_levels(cut[torch.randperm(len(cut), generator=generator, device="cpu")])


def held_out_images() -> Tensor:
    """Cut the held-out photographs into patches that do not overlap.

    Returns:
        float32 [n, 3, 32, 32] from 0 to 1, on the book's device.
    """
    return pictures.from_levels(photographs.held_out_patches())


def quantizer(vectors: Tensor, generator: torch.Generator) -> nn.Module:
    """Start a codebook of moving averages, with restarts, at vectors of the encoder.

    Args:
        vectors: [N, D], N at least 256.
        generator: of the choice, on the CPU.

    Returns:
        The quantizer.
    """
    chosen = torch.randperm(len(vectors), generator=generator, device="cpu")[:CODES]
    return RestartedCodebook(vectors[chosen.to(vectors.device)])


def started(train: Tensor, seed: int) -> VQVAE:
    """Build the model before training.

    Args:
        train: patches, [n, 3, 32, 32].
        seed: of the weights and the codebook.

    Returns:
        As :func:`gradbook.vq_vae_training.started`.
    """
    return vq_vae_training.started(quantizer, train, seed, WIDTH, DIM, BLOCKS)


def columns(steps: Sequence[int], curve: Curve) -> dict[str, list[float]]:
    """Turn a curve of dictionaries into lists.

    Args:
        steps: after which it was measured.
        curve: a value at each of them, all with the same keys.

    Returns:
        ``steps``, and the values by key.
    """
    rows = {key: [row[key] for row in curve.values] for key in curve.values[0]}
    return {"steps": list(steps), **rows}


def coded_whole(model: VQVAE, name: str) -> dict[str, float]:
    """Code a whole photograph and decode it again.

    Args:
        model: of patches, applied to all pixels at once.
        name: of the photograph.

    Returns:
        ``psnr`` of 8-bit levels; ``bits_per_pixel`` with all codes equally long; ``used`` codes.
    """
    original = photographs.cropped(name)
    codes, again = through_codes(model, original)
    bits = codes.numel() * math.log2(model.quantizer.codes)
    return {
        "psnr": pictures.psnr(original, again),
        "bits_per_pixel": bits / math.prod(original.shape[:2]),
        "used": len(codes.unique()),
    }


def through_codes(model: VQVAE, image: Tensor) -> tuple[Tensor, Tensor]:
    """Keep nothing of a photograph but its codes.

    Args:
        model: of patches.
        image: uint8 [H, W, 3], the sides multiples of 4.

    Returns:
        Codes [H / 4, W / 4], and the decoded image, uint8 [H, W, 3], on the CPU.
    """
    with vq_vae_training.evaluating(model):
        codes = model.codes(pictures.from_levels(image[None]))
        return codes[0], pictures.to_levels(model.decode(codes))[0].cpu()


def fitted_prior(train: Tensor, held_out: Tensor, seed: int) -> tuple[nn.Module, Curve]:
    """Train a transformer on the codes of the training patches.

    Args:
        train: grids of codes, int64 [n, 8, 8].
        held_out: other grids, int64 [m, 8, 8].
        seed: of the weights and the order of the grids.

    Returns:
        The prior, and its curve: bits of a patch by part.
    """
    generator = torch.Generator().manual_seed(seed + 40_000)
    sizes = (*train.shape[1:], CODES, *PRIOR_SIZES)
    prior = priors.CausalTransformer(*sizes, generator).to(train.device)
    settings = (PRIOR_STEPS, PRIOR_RATE, PRIOR_BATCH, PRIOR_POINTS)
    parts = {"train": train[:MEASURED], "held_out": held_out}
    positions = math.prod(train.shape[1:])

    def measure(prior: nn.Module) -> dict[str, float]:
        return {part: positions * priors.bits_per_code(prior, parts[part]) for part in parts}

    return prior, priors.fit(prior, train, seed, *settings, measure)


def table_bits(train: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Count the bits of a patch without a network.

    Args:
        train: grids of codes, int64 [n, 8, 8].
        held_out: other grids, int64 [m, 8, 8].

    Returns:
        ``uniform``, for all codes equally likely; ``frequencies``, with one table for all
        positions, from the training grids with one more count for each code, of ``train``, the
        first thousand, and of ``held_out``.
    """
    table = priors.frequencies(train, CODES, SMOOTHING)
    parts = {"train": train[:MEASURED], "held_out": held_out}
    return {
        "uniform": priors.mean_bits(priors.uniform_log_prob(held_out, CODES), 1),
        "frequencies": {
            part: priors.mean_bits(priors.table_log_prob(grids, table), 1)
            for part, grids in parts.items()
        },
    }


@torch.no_grad()
def drawn(model: VQVAE, prior: nn.Module, held_out: Tensor, seed: int) -> dict[str, str]:
    """Keep pictures of the reconstructions and of samples.

    Args:
        model: of patches.
        prior: of its codes.
        held_out: patches, [m, 3, 32, 32], m at least 8.
        seed: of the samples.

    Returns:
        Texts for :func:`gradbook.pictures.decode`: ``patches``, eight held-out patches and then
        their reconstructions; ``samples``, 16 decoded samples of the prior; ``coffee``, a crop of
        the photograph and the same crop of it coded whole.
    """
    chosen = held_out[:: len(held_out) // SHOWN][:SHOWN]
    patches = torch.cat([chosen, model.decode(model.codes(chosen))])
    generator = torch.Generator().manual_seed(seed + 3_000)
    grid = model.codes(chosen[:1]).shape[1:]
    noise = vae_training.gumbels(SAMPLES, *grid, CODES, generator=generator)
    samples = model.decode(prior.sample(SAMPLES, noise))
    coffee = photographs.cropped("coffee")
    crops = torch.stack([coffee[CROP], through_codes(model, coffee)[1][CROP]])
    return {
        "patches": pictures.encode(pictures.to_levels(patches), SHOWN),
        "samples": pictures.encode(pictures.to_levels(samples), SHOWN),
        "coffee": pictures.encode(crops, 2),
    }
