"""Where a soft prompt starts in the space of token embeddings, and where it has come to.

Source: B. Lester, R. Al-Rfou and N. Constant, 2021, "The power of scale for parameter-efficient
prompt tuning".
"""

import torch
from torch import Tensor, nn

from gradbook.checks import require, require_finite
from gradbook.priors.grids import require_sizes

# How many of the most frequent tokens Lester et al. sample from.
COMMON = 5000


def random_start(
    length: int,
    width: int,
    generator: torch.Generator,
    std: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw a prompt from a normal that knows nothing of the vocabulary.

    Args:
        length: p.
        width: e.
        generator: on the CPU. Draws are in float64, so that every type gets the same numbers,
            rounded.
        std: standard deviation, positive.
        dtype: of the prompt.
        device: of the prompt.

    Returns:
        [p, e].

    Raises:
        ValueError: if a size is below 1, or ``std`` is not positive and finite.
    """
    require_sizes(length=length, width=width)
    require_finite(std=std)
    if std <= 0:
        raise ValueError(f"std: must be positive, got {std}")
    drawn = torch.randn(length, width, generator=generator, dtype=torch.float64, device="cpu")
    return (std * drawn).to(device=device, dtype=dtype)


def vocabulary_start(
    table: Tensor, length: int, generator: torch.Generator, first: int | None = None
) -> Tensor:
    """Sample a prompt from the embeddings of frequent tokens, no token twice.

    Many tokenizers give small ids to frequent tokens; with another order, pass a sorted table.

    Args:
        table: the model's embeddings, [V, e].
        length: p.
        generator: on the CPU.
        first: how many of the first ids are sampled from; by default 5000, or the whole table.

    Returns:
        [p, e], of the table's type and on its device.

    Raises:
        ValueError: if the table is not a floating matrix, ``first`` is not from 1 to V, or p is
            not from 1 to ``first``.

    Source: Lester et al. 2021, section 2.1.
    """
    require_matrix(table=table)
    first = min(COMMON, len(table)) if first is None else first
    require_sizes(length=length, first=first)
    if first > len(table):
        raise ValueError(f"first: must be at most the table's {len(table)} rows, got {first}")
    if length > first:
        raise ValueError(f"length: must be at most {first}, the tokens to sample, got {length}")
    order = torch.randperm(first, generator=generator, device="cpu")
    return table.detach()[order[:length].to(table.device)]


def word_start(table: Tensor, ids: Tensor, length: int) -> Tensor:
    """Start from words, such as those of the classes, repeated in their order up to length p.

    Args:
        table: the model's embeddings, [V, e].
        ids: of the words, [n] int64.
        length: p, at least n.

    Returns:
        [p, e], of the table's type and on its device.

    Raises:
        ValueError: if the table is not a floating matrix, the ids are none or not of the table,
            or p is below 1 or n.

    Source: Lester et al. 2021, section 2.1, "class label".
    """
    require_sizes(length=length)
    require_matrix(table=table)
    require_ids(ids, table, "ids")
    if ids.ndim != 1 or not 1 <= len(ids) <= length:
        raise ValueError(f"ids: must be from 1 to {length} of them, got {list(ids.shape)}")
    places = torch.arange(length, device=ids.device) % len(ids)
    return table.detach()[ids[places].to(table.device)]


def nearest_tokens(vectors: Tensor, table: Tensor, k: int) -> Tensor:
    """Find the tokens whose embeddings point most nearly where learnt vectors do.

    Args:
        vectors: [p, e].
        table: the model's embeddings, [V, e].
        k: how many, from 1 to V.

    Returns:
        [p, k] int64, by falling cosine.

    Raises:
        ValueError: if types or widths differ, something is not finite, or k is out of range.

    Source: Lester et al. 2021, section 7.
    """
    require_matrix(vectors=vectors, table=table)
    require_finite(vectors=vectors, table=table)
    require_like(vectors, table, "vectors")
    if not 1 <= k <= len(table):
        raise ValueError(f"k: must be from 1 to {len(table)}, got {k}")
    unit = nn.functional.normalize
    tokens = unit(table.detach(), dim=-1)
    cosines = unit(vectors.detach(), dim=-1) @ tokens.T
    return cosines.topk(k, -1).indices


def require_matrix(**matrices: Tensor) -> None:
    """Raise unless matrices are floating and have rows and columns.

    Args:
        **matrices: under the names of the caller's arguments.

    Raises:
        ValueError: if one is not.
    """
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or not matrix.is_floating_point() or 0 in matrix.shape:
            got = f"{list(matrix.shape)} {matrix.dtype}"
            raise ValueError(f"{name}: must be a floating matrix with rows, got {got}")


def require_like(vectors: Tensor, table: Tensor, name: str) -> None:
    """Raise unless vectors have the width and the type of others.

    Args:
        vectors: [..., e].
        table: [..., e], the others.
        name: of ``vectors`` in the caller.

    Raises:
        ValueError: if they have not.
    """
    if vectors.shape[-1] != table.shape[-1] or vectors.dtype != table.dtype:
        want, got = (f"{x.shape[-1]} wide, {x.dtype}" for x in (table, vectors))
        raise ValueError(f"{name}: must be {want}, got {got}")


def require_ids(ids: Tensor, table: Tensor, name: str) -> None:
    """Raise unless ids are int64 and rows of a table.

    Args:
        ids: of any shape.
        table: [V, e].
        name: of ``ids`` in the caller.

    Raises:
        ValueError: if they are not.
    """
    if ids.dtype != torch.int64:
        raise ValueError(f"{name}: ids must be int64, got {ids.dtype}")
    require((ids >= 0) & (ids < len(table)), f"{name}: ids must be from 0 to {len(table) - 1}")
