"""Orders in which a prior may visit the places of a grid.

An order is a permutation of the h w places, int64 [h w]: entry t is the place visited at step t, where
place i w + j is row i, column j. Priors work row by row; a grid whose codes were put into another
order, row by row, lets them follow that order.
"""

import torch
from torch import Tensor

from gradbook.checks import require
from gradbook.priors.grids import require_codes, require_noise, require_sizes
from gradbook.priors.transformer import CausalTransformer


def raster(height: int, width: int) -> Tensor:
    """Go row by row, each from left to right.

    Args:
        height: of the grid.
        width: of the grid.

    Returns:
        int64 [h w], on the CPU, as of all orders.

    Raises:
        ValueError: if a side is below 1.
    """
    require_sizes(height=height, width=width)
    return torch.arange(height * width, device="cpu")


def column(height: int, width: int) -> Tensor:
    """Go column by column, each from top to bottom; otherwise as :func:`raster`."""
    return _places(height, width).T.flatten()


def spiral(height: int, width: int) -> Tensor:
    """Go clockwise from the top left corner, from the border inward; otherwise as :func:`raster`."""
    rest, visited = _places(height, width), []
    while rest.numel():
        visited.append(rest[0])
        # Turned to the left, the column on the right becomes the top row.
        rest = rest[1:].rot90()
    return torch.cat(visited)


def reordered(grids: Tensor, order: Tensor) -> Tensor:
    """Put what stands in a grid into an order, row by row.

    Args:
        grids: [B, h, w, ...].
        order: int64 [h w].

    Returns:
        The same shape: at step t, row by row, stands what stood at place
        ``order[t]``.

    Raises:
        ValueError: if the order is no permutation of the places.
    """
    return _taken(grids, _checked(order, grids))


def restored(grids: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`reordered`.

    Args:
        grids: [B, h, w, ...].
        order: int64 [h w].

    Returns:
        The same shape: at place ``order[t]`` stands what stood at step t,
        row by row.

    Raises:
        ValueError: as :func:`reordered`.
    """
    return _taken(grids, _checked(order, grids).argsort())


class OrderedTransformer(CausalTransformer):
    """A causal transformer that visits the places of a grid in another order.

    An element's place is still the row and the column of the code that
    it predicts, so no order is told more of the grid than another.

    Args:
        order: int64 [h w].
        height: of a grid.
        width: of a grid.
        codes: how many different ones.
        dim: of a vector.
        layers: blocks of attention.
        heads: must divide ``dim``.
        generator: of the weights, of the CPU; they are float32, and those
            of a :class:`gradbook.priors.CausalTransformer`.
        prefix: how many conditioning vectors there are.

    Raises:
        ValueError: if the order is no permutation of the places, or as
            :class:`gradbook.priors.CausalTransformer`.

    Source: Esser, Rombach and Ommer 2021, appendix, "On the ordering of
    image representations"; their places are learnt vectors of steps.
    """

    order: Tensor

    def __init__(
        self,
        order: Tensor,
        height: int,
        width: int,
        codes: int,
        dim: int,
        layers: int,
        heads: int,
        generator: torch.Generator,
        prefix: int = 0,
    ):
        super().__init__(height, width, codes, dim, layers, heads, generator, prefix)
        _checked(order, torch.empty(0, height, width, device="cpu"))
        self.register_buffer("order", order.cpu().clone())

    def logits(self, codes: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Compute the logits of every code given those visited before it.

        Args:
            codes: int64 [B, h, w].
            prefix: conditioning vectors [B, P, D], where the model has any.

        Returns:
            [B, h, w, K].

        Raises:
            ValueError: as :meth:`gradbook.priors.CausalTransformer.logits`.
        """
        require_codes(codes, self.height, self.width, self.codes)
        logits = super().logits(reordered(codes, self.order), prefix)
        return restored(logits, self.order)

    @torch.no_grad()
    def sample(self, count: int, noise: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Draw grids code by code, with keys and values kept.

        Args:
            count: of the grids.
            noise: standard Gumbel draws [count, h, w, K], each for its
                place, whenever that is visited.
            prefix: conditioning vectors [count, P, D], where the model has
                any.

        Returns:
            Codes [count, h, w]; the same noise gives the same ones.

        Raises:
            ValueError: as :meth:`gradbook.priors.CausalTransformer.sample`.
        """
        require_noise(noise, count, self.height, self.width, self.codes)
        drawn = super().sample(count, reordered(noise, self.order), prefix)
        return restored(drawn, self.order)

    @torch.no_grad()
    def sample_without_cache(
        self, count: int, noise: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Draw the grids of :meth:`sample`, with the sequence so far processed anew for every code.

        The arguments are those of :meth:`sample`.
        """
        require_noise(noise, count, self.height, self.width, self.codes)
        drawn = super().sample_without_cache(count, reordered(noise, self.order), prefix)
        return restored(drawn, self.order)

    def _places(self) -> Tensor:
        return super()._places()[self.order]


def _places(height: int, width: int) -> Tensor:
    """The grid of its own places, [h, w]."""
    return raster(height, width).unflatten(0, (height, width))


def _checked(order: Tensor, grids: Tensor) -> Tensor:
    if grids.ndim < 3:
        raise ValueError(f"grids: must be [B, h, w, ...], are {tuple(grids.shape)}")
    places = grids.shape[1] * grids.shape[2]
    message = f"order: must be a permutation of {places} places"
    if order.dtype != torch.int64 or order.shape != (places,):
        raise ValueError(f"{message}, int64, is {order.dtype} {tuple(order.shape)}")
    order = order.to(grids.device)
    require(order.sort().values == torch.arange(places, device=grids.device), message)
    return order


def _taken(grids: Tensor, order: Tensor) -> Tensor:
    return grids.flatten(1, 2)[:, order].unflatten(1, grids.shape[1:3])
