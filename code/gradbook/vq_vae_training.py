"""What trainings of an autoencoder with discrete codes share: images, the start, the loop, measures.

A quantizer is made from the first vectors of a started encoder and a generator, so that a codebook
may start from the data: ``make_quantizer(vectors [N, D], generator)``. All randomness is drawn on
the CPU from the caller's seeds. Models of one seed start from the same networks and see the same
batches, whatever their quantizers.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from gradbook import vae_training, vq_vae
from gradbook.devices import device
from gradbook.vae_training import Curve
from gradbook.vq_vae import VQVAE, Output
from gradbook.vq_vae_measures import (
    Measures,
    Usage,
    code_usage,
    codes,
    evaluating,
    measures,
    psnr,
    vectors,
)

__all__ = [
    "Curve",
    "Measures",
    "Usage",
    "code_usage",
    "codes",
    "evaluating",
    "fit",
    "grey",
    "loss",
    "measures",
    "pace",
    "psnr",
    "started",
    "vectors",
]

BATCH = 32
WARM_UP = 100
# Images from which a start takes the scale of its vectors, and a codebook its first codes.
FIRST = 2_000
# A vector's coordinate that never moves has no scale.
LEAST_SCALE = 1e-6
MakeQuantizer = Callable[[Tensor, torch.Generator], nn.Module]


def grey(split: str, count: int | None = None) -> Tensor:
    """Read Fashion-MNIST as grey levels with a channel.

    Args:
        split: ``"train"`` or ``"test"``.
        count: how many of the first images; by default all.

    Returns:
        float32 [n, 1, 28, 28] from 0 to 1, on the book's device.
    """
    return vae_training.grey_images(split)[:count, None]


def started(
    make_quantizer: MakeQuantizer,
    images: Tensor,
    seed: int,
    width: int = 32,
    dim: int = 16,
    blocks: int = 1,
    halvings: int = 2,
) -> VQVAE:
    """Build a model whose first vectors have mean 0 and variance 1 in every coordinate.

    Args:
        make_quantizer: from the vectors [N, D] of the first 2000 images and
            a generator of the CPU.
        images: what it will be trained on, [n, C, H, W], n at least 1.
        seed: of the weights and, apart from it, of the quantizer.
        width: see :func:`gradbook.vq_vae.build`.
        dim: see :func:`gradbook.vq_vae.build`.
        blocks: see :func:`gradbook.vq_vae.build`.
        halvings: see :func:`gradbook.vq_vae.build`.

    Returns:
        A model on the book's device.

    Raises:
        ValueError: if there are no images, or as
            :func:`gradbook.vq_vae.build` and
            :class:`gradbook.vq_vae.VQVAE`.
    """
    if images.ndim != 4:
        raise ValueError(f"images: must be [n, C, H, W], got {tuple(images.shape)}")
    generator = torch.Generator().manual_seed(seed)
    sizes = (images.shape[1], width, dim, blocks)
    model = vq_vae.build(*sizes, nn.Identity(), generator, halvings).to(device())
    first = images[:FIRST]
    _standardize(model.encoder.last, vectors(model, first))
    generator = torch.Generator().manual_seed(seed + 10_000)
    model.quantizer = make_quantizer(vectors(model, first), generator).to(device())
    return model


@torch.no_grad()
def _standardize(last: nn.Conv2d, rows: Tensor) -> None:
    scale, mean = torch.std_mean(rows, 0, correction=0)
    scale = scale.clamp(min=LEAST_SCALE)
    last.weight /= scale[:, None, None, None]
    last.bias.sub_(mean).div_(scale)


def pace(step: int, steps: int) -> float:
    """Choose the share of the rate at a step: up in 100 steps, then down to nothing.

    A training of no more than 100 steps only rises.

    Args:
        step: how many steps came before.
        steps: of the whole training.

    Returns:
        From 0 to 1; linear both ways.
    """
    down = (steps - step) / max(steps - WARM_UP, 1)
    return min((step + 1) / WARM_UP, down)


def loss(output: Output, images: Tensor, variance: float) -> Tensor:
    """Compute the loss of a batch.

    Args:
        output: of the model.
        images: [B, C, H, W], the batch.
        variance: of the training pixels.

    Returns:
        The mean squared error of a pixel over that variance, and the quantizer's own terms.
    """
    error = (output.images - images).square().mean()
    return error / variance + output.quantized.loss


def fit(
    model: VQVAE,
    train: Tensor,
    seed: int,
    steps: int,
    rate: float,
    points: Collection[int] = (),
    measure: Callable[[VQVAE], Any] = lambda model: None,
    batch: int = BATCH,
) -> Curve:
    """Train a model in place by Adam, and measure it on the way.

    After every step of the optimizer the quantizer updates itself with the vectors of that step,
    which were computed before it. What needs no gradient is not trained. The model is left in
    evaluation mode.

    Args:
        model: on the book's device.
        train: images, [n, C, H, W].
        seed: of the order of the images and, apart from it, of the updates.
        steps: how many.
        rate: Adam's step size at its highest, see :func:`pace`.
        points: after how many steps to measure, each from 0 to ``steps``.
        measure: of a model, which is in evaluation mode meanwhile.
        batch: images of a step.

    Returns:
        The measures, and the mean seconds of a step without them.

    Raises:
        ValueError: if a point is not from 0 to ``steps``, the batch is larger than ``train``,
            or all pixels are equal.
    """
    if not 1 <= batch <= len(train):
        raise ValueError(f"batch: must be from 1 to {len(train)}, got {batch}")
    if any(not 0 <= point <= steps for point in points):
        raise ValueError(f"points: must be from 0 to {steps}, got {sorted(points)}")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    order = torch.Generator().manual_seed(seed)
    batches = vae_training.minibatches(len(train), batch, order)
    draws = torch.Generator().manual_seed(seed + 20_000)
    variance = train.var().item()
    if not variance > 0:
        raise ValueError("train: its pixels must not all be equal")
    values, seconds, done = [], 0.0, 0
    model.train()
    for point in sorted({*points, steps}):
        start = time.perf_counter()
        for step in range(done, point):
            optimizer.param_groups[0]["lr"] = rate * pace(step, steps)
            _step(model, optimizer, train[next(batches)], variance, draws)
        done = point
        seconds += time.perf_counter() - start
        if point in points:
            with evaluating(model):
                values.append(measure(model))
    model.eval()
    return Curve(values, seconds / max(done, 1))


def _step(
    model: VQVAE,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    variance: float,
    generator: torch.Generator,
) -> None:
    optimizer.zero_grad()
    output = model(images)
    loss(output, images, variance).backward()
    optimizer.step()
    rows = output.vectors.detach().flatten(0, 2)
    model.quantizer.update(rows, output.quantized.indices, generator)
