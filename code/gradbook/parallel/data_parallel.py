"""One gradient from many ranks, each of which sees its own share of a batch.

A batch has n images, each with noise of its own: an image is then the same summand wherever it is
computed. A rank with m of the images sums their losses and takes p / n of that. The mean over the p
ranks is the mean loss of the whole batch, and so are the gradients, whatever the shares' sizes. Equal
shares need no more than the mean of each rank's own mean, because p / n = 1 / m then.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook import normal_vae
from gradbook.normal_vae import NormalVAE

AllReduce = Callable[[list[Tensor]], Sequence[Tensor]]


class Batch(NamedTuple):
    """Images [n, pixels], and the noise [n, d] that draws their codes."""

    images: Tensor
    noise: Tensor


class Losses(nn.Module):
    """A model together with its loss, as `DistributedDataParallel` wants it: all in ``forward``.

    Args:
        model: a VAE.
    """

    def __init__(self, model: NormalVAE):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Compute minus the bound of every image.

        Args:
            images: [n, pixels].
            noise: [n, d].

        Returns:
            [n], in nats.

        Raises:
            ValueError: as `gradbook.normal_vae.elbo`.
        """
        return -normal_vae.elbo(self.model, images, noise)


def shares(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Hand a batch out to ranks.

    Args:
        batch: of n images.
        sizes: how many each rank gets, one after the other; 0 is allowed.

    Returns:
        A batch for each rank; images keep their noise.

    Raises:
        ValueError: if the sizes do not add up to n, or n is 0, or there is
            not one row of noise to an image.
    """
    n = len(batch.images)
    if n == 0 or len(batch.noise) != n:
        raise ValueError(
            f"batch: must have a row of noise to each image, and one at least; "
            f"got {n} images and {len(batch.noise)} rows"
        )
    sizes = list(sizes)
    wrong = any(type(m) is not int or m < 0 for m in sizes)
    if wrong or sum(sizes) != n:
        raise ValueError(f"sizes: must be at least 0 and add up to {n}, got {sizes}")
    parts = zip(batch.images.split(sizes), batch.noise.split(sizes), strict=True)
    return [Batch(*part) for part in parts]


def image_weight(sizes: Sequence[int]) -> float:
    """Weigh a loss so that a mean over ranks is one over images.

    Args:
        sizes: how many images each of p ranks has, n in all.

    Returns:
        p / n.

    Raises:
        ValueError: if no rank has an image.
    """
    n = sum(sizes)
    if n == 0:
        raise ValueError("sizes: must be an image at least, got none")
    return len(sizes) / n


def share_loss(module: nn.Module, part: Batch, weight: float) -> Tensor:
    """Compute a rank's part of the loss.

    Args:
        module: gives the losses of images, as `Losses` does.
        part: the rank's share.
        weight: of an image, as `image_weight` gives it.

    Returns:
        A single number; the mean of all ranks' is the loss.
    """
    return weight * module(*part).sum()


def gradient(model: NormalVAE, batch: Batch, weight: float) -> Tensor:
    """Compute the gradient of a rank's part of the loss.

    Args:
        model: a VAE.
        batch: the rank's share.
        weight: of an image, p / n; 1 / n for one rank alone.

    Returns:
        [N], for all parameters in the model's order.
    """
    loss = share_loss(Losses(model), batch, weight)
    return packed(torch.autograd.grad(loss, list(model.parameters())))


def averaged(
    model: NormalVAE, parts: Sequence[Batch], all_reduce: AllReduce
) -> list[Tensor]:  # fmt: skip
    """Compute what every rank holds once gradients have been averaged.

    Args:
        model: that all ranks hold.
        parts: the share of every rank.
        all_reduce: from one tensor per rank to their mean at every rank.

    Returns:
        For every rank, the gradient [N] of the whole batch's mean loss.

    Raises:
        ValueError: if no rank has an image.
    """
    weight = image_weight([len(part.images) for part in parts])
    return list(all_reduce([gradient(model, part, weight) for part in parts]))


def packed(tensors: Iterable[Tensor]) -> Tensor:
    """Copy tensors into one with a single axis.

    Args:
        tensors: of one type and device, at least one.

    Returns:
        [N], without gradient.

    Raises:
        ValueError: if their types or devices differ.
    """
    tensors = list(tensors)
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) != 1:
        # torch would round all of them to one type without a word.
        raise ValueError(f"tensors: must be of one type and device, got {kinds}")
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def unpack_(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy one tensor with a single axis into many; undoes `packed`.

    Args:
        tensors: to be overwritten.
        flat: [N].

    Raises:
        ValueError: if N is not their number of elements.
    """
    sizes = [tensor.numel() for tensor in tensors]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"flat: must be [{sum(sizes)}], is {list(flat.shape)}")
    for tensor, part in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(part.view(tensor.shape))
