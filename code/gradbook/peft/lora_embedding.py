"""LoRA beside an embedding: a product that changes the vectors of words.

An embedding is a linear layer whose inputs are one-hot: seen as [d, V], its column i is the vector
of word i.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradbook.peft.lora import LowRank, over_rank, require_factor, require_rank
from gradbook.peft.prompt_starts import require_ids


class LoRAEmbedding(LowRank):
    """An embedding E, and beside it scaling B A, which is zero at the start.

    A, [r, V], is zero, and B, [d, r], is standard normal: a word that never comes keeps its vector,
    since its column of A gets no gradient. With a linear layer it is the other way round.

    A table that an output layer shares stays as it is there until a merge, which changes both.

    Args:
        embedding: E, V words of d numbers; is frozen, with an output layer that shares its table.
            Its padding gets no gradient here either, and its ``scale_grad_by_freq`` holds for A,
            too.
        rank: r, from 1 to the smaller of V and d.
        alpha: positive.
        generator: of B, of the CPU; without one B is drawn by torch's own.
        scale: the factor of the product, of alpha and the rank.

    Raises:
        ValueError: if the rank is out of range, alpha or the factor is not positive and finite, or
            the layer is not a plain embedding: one that clips its vectors (``max_norm``) writes into its
            weights, one with sparse gradients has none for A, and one of another class may do
            more than look up.

    Source: Hu et al. 2021; both laws are those of its code, loralib.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
        scale: Callable[[float, int], float] = over_rank,
    ):
        _require_plain(embedding)
        weight = embedding.weight.T
        require_rank(rank, weight)
        require_factor(alpha=alpha)
        width, words = weight.shape
        shape = width, rank
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        zeros = weight.new_zeros(rank, words)
        super().__init__(embedding, zeros, drawn.to(weight), scale(alpha, rank))

    def weights(self) -> Tensor:
        """Look at the table as [d, V]; writing into it changes the embedding."""
        return self.layer.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        """Compute ``E[i] + scaling B A[:, i]``.

        Args:
            ids: of words, int64, of any shape [...].

        Returns:
            [..., d]; after a merge what E gives alone.

        Raises:
            ValueError: if the ids are not int64 or not of the table.
        """
        layer = self.layer
        require_ids(ids, layer.weight, "ids")
        if self.merged:
            return layer(ids)
        columns = functional.embedding(
            ids,
            self.A.T,
            layer.padding_idx,
            scale_grad_by_freq=layer.scale_grad_by_freq,
        )
        return layer(ids) + (self.scaling * columns) @ self.B.T


def _require_plain(layer: nn.Module) -> None:
    if getattr(type(layer), "forward", None) is not nn.Embedding.forward:
        raise ValueError(f"embedding: must be a torch.nn.Embedding, got {type(layer).__name__}")
    if not layer.weight.is_floating_point():
        raise ValueError(f"embedding: must have floating weights, got {layer.weight.dtype}")
    if layer.max_norm is not None or layer.sparse:
        raise ValueError("embedding: must have neither max_norm nor sparse gradients")
