"""Images larger than the training size: a window of codes slides over a panorama.

A VQ-VAE of colour patches codes the five photographs of training whole. Two transformers learn
windows of 8 by 8 codes that are cut from them: a ``blind`` one, and a ``placed`` one that is told
where in its photograph a window lies. They are measured on the held-out photographs, at the edges
and inside. Both draw panoramas of 8 by 64 codes, 32 by 256 pixels, eight times as wide as a window,
and tall images of 64 by 8; ``tiles`` are panoramas of windows that know nothing of each other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gradbook import photographs, pictures, priors, vq_vae_training
from gradbook import window_priors as windowed
from gradbook.experiments import colour_patches
from gradbook.vq_vae import PATCH, VQVAE
from gradbook.window_priors import WindowPrior, Windows

SEEDS = tuple(range(3))
SIDE, LONG = 8, 64
MAKERS = {"blind": windowed.blind, "placed": windowed.placed}
RATE = 5e-3
# From one of the windows inside a held-out photograph to the next.
STRIDE = 4
BANDS = 8


class Scale(NamedTuple):
    """How large the networks are, and how long they are trained.

    Attributes:
        width: channels of the autoencoder.
        stage_steps: of its training.
        sizes: numbers of a vector, blocks and heads of a prior.
        steps: of a prior.
        each: windows of a step from each photograph.
        drawn: how many large images each prior draws.
    """

    width: int
    stage_steps: int
    sizes: tuple[int, int, int]
    steps: int
    each: int
    drawn: int


SMALL = Scale(48, 500, (64, 3, 4), 400, 12, 8)
FULL = Scale(128, 5_000, (256, 8, 8), 10_000, 50, 64)
SHORT = Scale(48, 50, (64, 2, 4), 150, 10, 16)
SHORT_NAMES = ("astronaut", "chelsea")

data_digest = photographs.digest


def run(seed: int, scale: Scale = SMALL) -> dict[str, Any]:
    """Train an autoencoder and priors of its codes, and draw large images.

    Args:
        seed: of all weights, orders and noise.
        scale: of networks and trainings.

    Returns:
        ``short``, as :func:`run_short`; ``bits``, as :func:`bits_of`, of the photographs of
        ``train`` and of those ``held_out``; ``panoramas``, by kind and of ``tiles``, as
        :func:`measures`; ``bands``, as :func:`brightness`, of the ``photographs`` of training and
        of tall samples by kind; ``seconds`` of a step by kind; for the first seed ``pictures``:
        panoramas by kind and of ``tiles``.
    """
    model = compressor(seed, scale)
    train, held_out = (
        [coded(model, name) for name in names]
        for names in (photographs.TRAINING, photographs.HELD_OUT)
    )
    models, seconds = trained(train, seed, scale)
    wide, tall = {}, {}
    for kind, prior in models.items():
        wide[kind] = windowed.drawn(prior, SIDE, LONG, scale.drawn, seed + 3_000)
        tall[kind] = windowed.drawn(prior, LONG, SIDE, scale.drawn, seed + 3_000)
    wide["tiles"] = tiles(models["blind"], scale.drawn, seed)
    images = {kind: priors.decoded(model, codes) for kind, codes in wide.items()}
    bands = {kind: brightness(priors.decoded(model, codes)) for kind, codes in tall.items()}
    found = {
        "short": run_short(seed),
        "bits": {"train": bits_of(models, train), "held_out": bits_of(models, held_out)},
        "panoramas": {kind: measures(wide[kind], images[kind]) for kind in wide},
        "bands": {"photographs": photograph_brightness(), **bands},
        "seconds": seconds,
    }
    return found | ({"pictures": sheets(images)} if seed == SEEDS[0] else {})


def run_short(seed: int) -> dict[str, float]:
    """Run one short seed, as a page does live.

    Args:
        seed: of all weights, orders and noise.

    Returns:
        After 50 steps of the autoencoder and 150 of a smaller blind prior on two photographs, of
        16 panoramas: ``seam`` and ``elsewhere``, as :func:`measures`, and both of ``tiles``, as
        ``tiles_seam`` and ``tiles_elsewhere``.
    """
    model = compressor(seed, SHORT)
    train = [coded(model, name) for name in SHORT_NAMES]
    prior = windowed.blind(SIDE, colour_patches.CODES, SHORT.sizes, seed + 40_000)
    windowed.fit(prior, train, seed, SHORT.steps, RATE, SHORT.each)
    wide = windowed.drawn(prior, SIDE, LONG, SHORT.drawn, seed + 3_000)
    found = {}
    for prefix, codes in (("", wide), ("tiles_", tiles(prior, SHORT.drawn, seed))):
        steps = measures(codes, priors.decoded(model, codes))
        found |= {f"{prefix}{part}": steps[part] for part in ("seam", "elsewhere")}
    return found


def compressor(seed: int, scale: Scale) -> VQVAE:
    """Train the autoencoder of :mod:`gradbook.experiments.colour_patches`.

    Args:
        seed: of the weights, the codebook and the order of the patches.
        scale: has ``width`` and ``stage_steps``.

    Returns:
        The model, on the book's device.
    """
    train = colour_patches.training_images()
    sizes = (scale.width, colour_patches.DIM, colour_patches.BLOCKS)
    model = vq_vae_training.started(colour_patches.quantizer, train, seed, *sizes)
    vq_vae_training.fit(model, train, seed, scale.stage_steps, colour_patches.RATE)
    return model


def coded(model: VQVAE, name: str) -> Tensor:
    """Code a whole photograph.

    Args:
        model: of patches.
        name: of the photograph.

    Returns:
        int64 [1, H / 4, W / 4].
    """
    return vq_vae_training.codes(model, pictures.from_levels(photographs.cropped(name)[None]))


def trained(
    grids: Sequence[Tensor], seed: int, scale: Scale
) -> tuple[dict[str, WindowPrior], dict[str, float]]:
    """Train both priors of windows.

    Args:
        grids: codes of whole photographs, each [1, H, W].
        seed: of the weights and, apart from it, of the windows, which both priors share.
        scale: of priors and trainings.

    Returns:
        The priors, and the mean seconds of a step, by kind.
    """
    sizes = (SIDE, colour_patches.CODES, scale.sizes, seed + 40_000)
    models = {kind: make(*sizes) for kind, make in MAKERS.items()}
    settings = (grids, seed, scale.steps, RATE, scale.each)
    return models, {kind: windowed.fit(model, *settings) for kind, model in models.items()}


def tiles(model: WindowPrior, count: int, seed: int) -> Tensor:
    """Draw panoramas whose windows know nothing of each other.

    Args:
        model: a blind one, of windows.
        count: of panoramas.
        seed: of the noise.

    Returns:
        Codes [count, 8, 64]: independent windows side by side.
    """
    across = LONG // SIDE
    noise = priors.grid_noise(model.transformer, count * across, seed + 4_000)
    rows = model.transformer.sample(count * across, noise)
    return rows.unflatten(0, (count, across)).transpose(1, 2).flatten(2)


def edge_windows(codes: Tensor) -> dict[str, Windows]:
    """Cut all windows at the edges of a photograph, and a lattice of those inside.

    Args:
        codes: of a whole photograph, int64 [1, H, W], the sides at least 24.

    Returns:
        ``border``: every window that touches an edge; ``interior``: every fourth, down and to the
        right, that is at least a window away from all edges.
    """
    height, width = codes.shape[1:]
    last = (height - SIDE, width - SIDE)
    tops, lefts = (
        axis.flatten()
        for axis in torch.meshgrid(
            *(torch.arange(n + 1, device=codes.device) for n in last), indexing="ij"
        )
    )
    gap = torch.stack([tops, lefts, last[0] - tops, last[1] - lefts]).amin(0)
    chosen = {
        "border": gap == 0,
        "interior": (gap >= SIDE) & (tops % STRIDE == 0) & (lefts % STRIDE == 0),
    }
    return {
        name: windowed.cut(codes, torch.zeros_like(tops[own]), tops[own], lefts[own], SIDE)
        for name, own in chosen.items()
    }


def bits_of(models: dict[str, WindowPrior], grids: Sequence[Tensor]) -> dict[str, Any]:
    """Measure the priors on photographs that count alike.

    Args:
        models: by kind.
        grids: codes of whole photographs, each [1, H, W].

    Returns:
        For windows at the ``border`` and in the ``interior``, mean bits of a code by kind, and
        ``turned``, of the placed prior when it is told the place across the middle.
    """
    cuts = [edge_windows(codes) for codes in grids]
    found = {}
    for part in cuts[0]:
        true = [windows[part] for windows in cuts]
        across = [Windows(codes, 1 - places) for codes, places in true]
        cases = {kind: (model, true) for kind, model in models.items()}
        cases["turned"] = models["placed"], across
        found[part] = {
            name: sum(windowed.bits_per_code(model, rows) for rows in windows) / len(windows)
            for name, (model, windows) in cases.items()
        }
    return found


def measures(codes: Tensor, images: Tensor) -> dict[str, float]:
    """Look for seams and for drift.

    Args:
        codes: of panoramas, [n, 8, 64].
        images: decoded, [n, 3, 32, 256].

    Returns:
        Mean difference of neighbouring pixels across columns of codes: at each ``seam``, where a
        window's width ends, and ``elsewhere``; perplexity of the codes of the ``left`` and the
        ``right`` half; ``shift``, the total variation between their frequencies.
    """
    steps = images.diff(dim=3).abs().mean((0, 1, 2))[PATCH - 1 :: PATCH]
    seam = torch.arange(1, len(steps) + 1, device=steps.device) % SIDE == 0
    halves = [half.flatten() for half in codes.chunk(2, 2)]
    most = int(codes.max()) + 1
    left, right = (half.bincount(minlength=most) / len(half) for half in halves)
    return {
        "seam": steps[seam].mean().item(),
        "elsewhere": steps[~seam].mean().item(),
        "left": vq_vae_training.code_usage(halves[0]).perplexity,
        "right": vq_vae_training.code_usage(halves[1]).perplexity,
        "shift": (left - right).abs().sum().item() / 2,
    }


def brightness(images: Tensor) -> list[float]:
    """Measure the mean brightness by eighths of the height.

    Args:
        images: [n, C, H, W].

    Returns:
        Eight means, from the top.
    """
    return adaptive_avg_pool2d(images, (BANDS, 1)).mean((0, 1, 3)).tolist()


def photograph_brightness() -> list[float]:
    """Measure the photographs of training, each counting alike.

    Returns:
        As :func:`brightness`.
    """
    rows = [
        brightness(pictures.from_levels(photographs.cropped(name)[None]))
        for name in photographs.TRAINING
    ]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").mean(0).tolist()


def sheets(images: dict[str, Tensor]) -> dict[str, str]:
    """Keep images one below the other.

    Args:
        images: by name, each [n, 3, H, W].

    Returns:
        Texts for :func:`gradbook.pictures.decode`.
    """
    return {name: pictures.encode(pictures.to_levels(rows), 1) for name, rows in images.items()}
