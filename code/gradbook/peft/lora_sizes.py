"""How many numbers the family of LoRA adds, from the shapes of the matrices it adds them to.

A shape is (out, in).
"""

from collections.abc import Iterable

from torch import nn

from gradbook.peft.injection import Where, matrix, places
from gradbook.transformer_sizes import Shape, require_sizes, terms

Sizes = tuple[int, int]


def lora_parameters(shapes: Iterable[Sizes], rank: int) -> int:
    """Count the numbers of LoRA: r (out + in) for each matrix.

    Args:
        shapes: (out, in) of each matrix that gets a product.
        rank: r.

    Returns:
        The count.

    Raises:
        ValueError: if there is no matrix, a size is not a positive
            integer, or the rank is not from 1 to the smallest side.

    Source: Hu et al. 2021, section 5.1.
    """
    checked = _checked(shapes, rank)
    return sum(rank * (out + inputs) for out, inputs in checked)


def dora_parameters(shapes: Iterable[Sizes], rank: int) -> int:
    """Count those of DoRA: LoRA's, and a magnitude for each output.

    Args:
        shapes: as for :func:`lora_parameters`.
        rank: r.

    Returns:
        The count.

    Raises:
        ValueError: as there.

    Source: Liu et al. 2024, "DoRA: weight-decomposed low-rank adaptation", section 4.
    """
    checked = _checked(shapes, rank)
    return lora_parameters(checked, rank) + sum(out for out, _ in checked)


def adalora_parameters(shapes: Iterable[Sizes], rank: int) -> int:
    """Count those of AdaLoRA: LoRA's, and r singular values for each matrix.

    Args:
        shapes: as for :func:`lora_parameters`.
        rank: the first one; what is pruned later stays in memory, at zero.

    Returns:
        The count.

    Raises:
        ValueError: as there.

    Source: Zhang et al. 2023, "Adaptive budget allocation for parameter-efficient fine-tuning",
    section 3.1.
    """
    checked = _checked(shapes, rank)
    return lora_parameters(checked, rank) + rank * len(checked)


def decoder_matrices(shape: Shape, names: Iterable[str]) -> list[Sizes]:
    """List the shapes of some matrices of all layers of a decoder.

    Args:
        shape: of the decoder; keys and values may have fewer heads.
        names: of q, k, v, o, gate, up and down, each at most once.

    Returns:
        (out, in) of each, layer by layer.

    Raises:
        ValueError: if the shape is not one, or a name is unknown, comes
            twice, or there is none.
    """
    terms(shape)
    d, f = shape.width, shape.feed_forward
    kv = d // shape.heads * shape.key_value_heads
    sizes = {
        "q": (d, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, d),
        "gate": (f, d),
        "up": (f, d),
        "down": (d, f),
    }
    chosen = list(names)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(sizes):
        raise ValueError(f"names: must be some of {list(sizes)}, each once, got {chosen}")
    return [sizes[name] for name in chosen] * shape.layers


def model_matrices(model: nn.Module, where: Where) -> list[Sizes]:
    """List the shapes of some linear layers of a model.

    Args:
        model: is not changed; it may be on the meta device.
        where: as for :func:`gradbook.peft.injection.inject`.

    Returns:
        (out, in) of each, in the order of the model; a layer that stands in several places once.

    Raises:
        ValueError: if it holds for no layer, or for one that is not linear.
    """
    layers = dict.fromkeys(place.module for place in places(model, where))
    return [tuple(matrix(layer).shape) for layer in layers]


def _checked(shapes: Iterable[Sizes], rank: int) -> list[Sizes]:
    """Take the shapes once, since they may be an iterator."""
    listed = list(shapes)
    if not listed:
        raise ValueError("shapes: must be at least one")
    for shape in listed:
        if len(shape) != 2:
            raise ValueError(f"shapes: must be pairs (out, in), got {shape}")
        require_sizes(**{"shapes: out": shape[0], "shapes: in": shape[1]})
    require_sizes(rank=rank)
    smallest = min(map(min, listed))
    if rank > smallest:
        raise ValueError(f"rank: must be at most {smallest}, got {rank}")
    return listed
