"""What tells whether an image obeys a condition: its edges, and a network that tells its class."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook import vae_training, vq_vae
from gradbook.checks import require
from gradbook.devices import device
from gradbook.priors import layers
from gradbook.priors.training import rate_factor

RATE, BATCH, WIDTH = 2e-3, 64, 32
CHUNK = 500


def edges(images: Tensor) -> Tensor:
    """Compute the size of the gradient of grey images.

    Args:
        images: [n, 1, H, W] from 0 to 1.

    Returns:
        The same shape, from 0 to 1: Sobel's filters, so that 1 is a step
        from black to white along an axis, and what is steeper.

    Raises:
        ValueError: if the images have another shape or range.
    """
    _require_grey(images)
    down = images.new_tensor([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]) / 4
    kernels = torch.stack([down, down.T])[:, None]
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernels).norm(dim=1, keepdim=True).clamp(max=1)


def judge(images: Tensor, labels: Tensor, classes: int, seed: int, steps: int) -> nn.Module:
    """Train a network that tells the classes of images.

    Args:
        images: [n, 1, H, W] from 0 to 1, n at least 64, the sides
            multiples of 4, on the book's device.
        labels: int64 [n], from 0 to ``classes`` - 1.
        classes: how many.
        seed: of the weights and the order of the images.
        steps: how many, of 64 images.

    Returns:
        The encoder of :mod:`gradbook.vq_vae` and a linear layer, which map
        images [B, 1, H, W] to logits [B, classes].

    Raises:
        ValueError: if an argument is not so.
    """
    _require_grey(images)
    _require_labels(images, labels, classes)
    generator = torch.Generator().manual_seed(seed + 10_000)
    encoder = vq_vae.build(1, WIDTH, WIDTH, 1, nn.Identity(), generator).encoder
    inputs = WIDTH * images[0].numel() // vq_vae.PATCH**2
    last = layers.linear(inputs, classes, 0.01, generator)
    network = nn.Sequential(encoder, nn.ReLU(), nn.Flatten(), last).to(device())
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    batches = vae_training.minibatches(len(images), BATCH, order)
    for step in range(steps):
        rows = next(batches)
        optimizer.param_groups[0]["lr"] = RATE * rate_factor(step, steps)
        optimizer.zero_grad()
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def quality(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure how clear the classes of images are, and how much images of a class differ.

    Args:
        network: maps images to logits of classes.
        images: [n, C, H, W], n at least 1.
        labels: int64 [n].

    Returns:
        ``accuracy`` of the network; and ``spread``, the mean squared
        distance of a pixel from its mean over the images of the class.

    Raises:
        ValueError: if there are no images, or other than n labels.
    """
    if not len(images) or len(labels) != len(images):
        raise ValueError(f"labels: must be {len(images)}, at least 1, are {len(labels)}")
    picked = torch.cat([network(chunk).argmax(-1) for chunk in images.split(CHUNK)])
    classes = [images[labels == label].double() for label in labels.unique()]
    spread = sum((own - own.mean(0)).square().sum().item() for own in classes) / images.numel()
    return {"accuracy": (picked == labels).double().mean().item(), "spread": spread}


def _require_grey(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images: must be [n, 1, H, W], got {tuple(images.shape)}")
    require((images >= 0) & (images <= 1), "images: must be from 0 to 1")


def _require_labels(images: Tensor, labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"labels: must be int64 [{len(images)}], are {found}")
    require((labels >= 0) & (labels < classes), f"labels: must be from 0 to {classes - 1}")
