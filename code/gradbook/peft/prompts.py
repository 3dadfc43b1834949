"""Soft prompts: learnt vectors that stand among a text's input embeddings; the model is frozen.

Whatever goes along with the embeddings moves with them: the mask, the labels and the positions. A
batch is B texts of T tokens, a prompt has p vectors, and each has the model's width e.

Source: B. Lester, R. Al-Rfou and N. Constant, 2021, "The power of scale for parameter-efficient
prompt tuning".
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.peft.prompt_starts import require_ids, require_like, require_matrix
from gradbook.priors.grids import require_sizes

IGNORED = -100


class SoftPrompt(nn.Module):
    """Hold learnt input embeddings; called without arguments, it gives them.

    Args:
        vectors: [p, e], copied.

    Attributes:
        vectors: the parameter, p e numbers.

    Raises:
        ValueError: if the vectors are not a floating matrix, are none, or are not finite.

    Source: Lester et al. 2021, section 2.
    """

    def __init__(self, vectors: Tensor):
        super().__init__()
        require_matrix(vectors=vectors)
        require_finite(vectors=vectors)
        self.vectors = nn.Parameter(vectors.detach().clone())

    def forward(self) -> Tensor:
        """Give the vectors, [p, e]."""
        return self.vectors


def prompt_parameters(length: int, width: int) -> int:
    """Count the numbers of a prompt: p e.

    Args:
        length: p.
        width: e.

    Returns:
        The count.

    Raises:
        ValueError: if one is below 1.
    """
    require_sizes(length=length, width=width)
    return length * width


def prepended(
    prompt: nn.Module,
    embeddings: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Put a prompt in front of every text of a batch.

    Args:
        prompt: called without arguments, gives [p, e].
        embeddings: of the tokens, [B, T, e], before positions are added.
        mask: [B, T], 1 at a token and 0 at padding.

    Returns:
        Embeddings [B, p + T, e] and mask [B, p + T]. The model counts its
        positions from the prompt on; where padding stands between, pass it
        :func:`positions` too.

    Raises:
        ValueError: if shapes, types or widths do not fit, or the mask holds
            another number.
    """
    vectors = prompt()
    _require_batch(vectors, embeddings, mask)
    front = vectors.expand(len(embeddings), -1, -1)
    seen = mask.new_ones(len(mask), len(vectors))
    longer = torch.cat([front, embeddings], 1)
    return longer, torch.cat([seen, mask], 1)


def positions(mask: Tensor) -> Tensor:
    """Number what is seen, from 0, as if padding were not there.

    Args:
        mask: [B, n], 1 at what is seen.

    Returns:
        [B, n] int64, for a model's ``position_ids``; padding gets a number that does not matter.

    Raises:
        ValueError: if the mask is not a matrix of zeros and ones.
    """
    _require_mask(mask)
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def shifted_labels(
    labels: Tensor,
    length: int,
    ignore: int = IGNORED,
) -> Tensor:
    """Move labels behind a prompt, at which nothing is to be predicted.

    A causal model compares the logits at place i with the label at i + 1.
    Token t (from 0) stands at p + t, so that the logits at p + t - 1
    predict it, the first token's from the end of the prompt.

    Args:
        labels: [B, T] int64, the ids of the tokens.
        length: p.
        ignore: the label that the loss passes over.

    Returns:
        [B, p + T].

    Raises:
        ValueError: if the labels are not an int64 matrix, or p is below 1.
    """
    require_sizes(length=length)
    if labels.ndim != 2 or labels.dtype != torch.int64:
        got = f"{list(labels.shape)} {labels.dtype}"
        raise ValueError(f"labels: must be [B, T] int64, got {got}")
    nothing = labels.new_full((len(labels), length), ignore)
    return torch.cat([nothing, labels], 1)


def ensembled(
    prompts: Sequence[nn.Module],
    embeddings: Tensor,
    mask: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Average what N prompts of one model say, in one pass of N B texts.

    Args:
        prompts: N of them, of equal length; each gives [p, e].
        embeddings: [B, T, e].
        mask: [B, T].
        predict: the model, from embeddings [N B, p + T, e] and mask [N B, p + T] to logits
            [N B, C].

    Returns:
        Probabilities, [B, C].

    Raises:
        ValueError: if there is no prompt, their lengths differ, or as :func:`prepended`.

    Source: Lester et al. 2021, section 6; they take the majority's vote.
    """
    if not prompts:
        raise ValueError("prompts: must be at least one")
    parts = [prepended(prompt, embeddings, mask) for prompt in prompts]
    if len({part.shape for part, _ in parts}) > 1:
        raise ValueError("prompts: must be equally long")
    together = [torch.cat(kind) for kind in zip(*parts, strict=True)]
    logits = predict(*together)
    each = logits.unflatten(0, (len(prompts), len(embeddings)))
    return each.softmax(-1).mean(0)


class Filled(NamedTuple):
    """A template's embeddings [B, n, e], and of each piece the places where it stands."""

    embeddings: Tensor
    places: tuple[Tensor, ...]


def template(table: Tensor, pieces: Sequence[Tensor]) -> Filled:
    """Fill a template: soft vectors and real tokens, in any order.

    Args:
        table: the model's embeddings, [V, e].
        pieces: each is soft vectors [k, e] (floating), anchors [k] or texts [B, T] (int64 ids).
            What is not a text is the same in every row.

    Returns:
        The embeddings, with B = 1 where no piece is a text, and the places of every piece.

    Raises:
        ValueError: if there is no piece, or one has the wrong shape or type, ids that are not of
            the table, or another number of texts.

    Source: Liu et al. 2021, "GPT understands, too", section 3.
    """
    require_matrix(table=table)
    if not pieces:
        raise ValueError("pieces: must be at least one")
    parts = [_embedded(table, piece) for piece in pieces]
    counts = {len(piece) for piece in pieces if _is_text(piece)}
    if len(counts) > 1:
        raise ValueError(f"pieces: must have equally many texts, got {sorted(counts)}")
    rows = counts.pop() if counts else 1
    embeddings = torch.cat([part.expand(rows, -1, -1) for part in parts], 1)
    lengths = [part.shape[1] for part in parts]
    places = torch.arange(sum(lengths), device=table.device)
    return Filled(embeddings, places.split(lengths))


def template_mask(filled: Filled, piece: int, mask: Tensor) -> Tensor:
    """Make the mask of a template in which one piece is padded.

    Args:
        filled: what :func:`template` gave.
        piece: which of the pieces is the padded text.
        mask: of that text, [B, T].

    Returns:
        [B, n]; everything else is seen.

    Raises:
        ValueError: if there is no such piece, or the mask does not fit it.
    """
    if not 0 <= piece < len(filled.places):
        raise ValueError(f"piece: must be from 0 to {len(filled.places) - 1}, got {piece}")
    _require_mask(mask)
    places = filled.places[piece]
    rows, length, _ = filled.embeddings.shape
    if mask.shape != (rows, len(places)):
        got = list(mask.shape)
        raise ValueError(f"mask: must be [{rows}, {len(places)}], got {got}")
    whole = mask.new_ones(rows, length)
    whole[:, places] = mask
    return whole


def _is_text(piece: Tensor) -> bool:
    return piece.ndim == 2 and not piece.is_floating_point()


def _embedded(table: Tensor, piece: Tensor) -> Tensor:
    """Turn a piece into embeddings, [1 or B, k, e]."""
    if piece.is_floating_point():
        if piece.ndim != 2:
            raise ValueError(f"pieces: soft vectors must be [k, e], got {list(piece.shape)}")
        require_like(piece, table, "pieces")
        return piece[None]
    require_ids(piece, table, "pieces")
    if piece.ndim not in (1, 2):
        raise ValueError(f"pieces: ids must be [k] or [B, T], got {list(piece.shape)}")
    return table[torch.atleast_2d(piece).to(table.device)]


def _require_mask(mask: Tensor) -> None:
    if mask.ndim != 2:
        raise ValueError(f"mask: must be a matrix, got {list(mask.shape)}")
    require((mask == 0) | (mask == 1), "mask: must hold zeros and ones")


def _require_batch(vectors: Tensor, embeddings: Tensor, mask: Tensor) -> None:
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings: must be [B, T, e], got {list(embeddings.shape)}")
    require_like(embeddings, vectors, "embeddings")
    _require_mask(mask)
    if mask.shape != embeddings.shape[:2]:
        want, got = list(embeddings.shape[:2]), list(mask.shape)
        raise ValueError(f"mask: must be {want}, got {got}")
