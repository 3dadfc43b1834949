"""Compute the bytes that a training needs, and what fits on a card.

*Model states* are what there is for each parameter: weights, gradients, optimizer states. A
*recipe* says how many bytes of each part a parameter has. The activations, of
:mod:`gradbook.activation_memory`, come on top, and so does what libraries, buffers and a broken-up
memory take.
"""

import math
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import NamedTuple

from gradbook.transformer_sizes import require_sizes

Recipe = Mapping[str, int | Fraction]

# float32 throughout: what torch.optim.Adam holds for a float32 model.
FLOAT32_ADAM: Recipe = {"weights": 4, "gradients": 4, "first moments": 4, "second moments": 4}
MIXED_ADAM: Recipe = {
    "weights": 2,
    "gradients": 2,
    "master weights": 4,
    "first moments": 4,
    "second moments": 4,
}
# Gradients are summed and kept in float32.
MIXED_ADAM_FLOAT32_GRADIENTS: Recipe = {**MIXED_ADAM, "gradients": 4}
# The 16-bit gradients stay beside their float32 copies.
MIXED_ADAM_TWO_GRADIENTS: Recipe = {**MIXED_ADAM, "master gradients": 4}
PURE_16_BIT_ADAM: Recipe = {"weights": 2, "gradients": 2, "first moments": 2, "second moments": 2}
MIXED_SGD: Recipe = {"weights": 2, "gradients": 2, "master weights": 4}
MIXED_SGD_MOMENTUM: Recipe = {**MIXED_SGD, "first moments": 4}
FROZEN_16_BIT: Recipe = {"frozen weights": 2}
# 4 bits, 8 bits of scale for 64 weights, 32 bits for 256 scales: 4.127 bits.
NF4_BITS = 4 + Fraction(8, 64) + Fraction(32, 64 * 256)
FROZEN_4_BIT: Recipe = {"frozen weights": NF4_BITS / 8}
MOMENTS = ("first moments", "second moments")

# The stage of ZeRO from which a part is split; every other part belongs to the optimizer.
_SPLIT_FROM = {"weights": 3, "frozen weights": 3, "gradients": 2}


class Placed(NamedTuple):
    """Bytes by part, on the card and in the host's memory."""

    card: dict[str, int]
    host: dict[str, int]


def eight_bit_adam(block: int = 2048) -> Recipe:
    """Make the recipe of mixed precision whose two moments are kept in 8 bits.

    Each moment has one float32 constant, its largest size, for every
    block. Blocks that a tensor does not fill, small tensors that stay in
    32 bits and the table of the 256 values come on top.

    Args:
        block: numbers that share a constant: 2048 in the paper, 256 in
            bitsandbytes 0.48.

    Returns:
        10 bytes, and those of the constants.

    Raises:
        ValueError: if ``block`` is less than 1.

    Source: Dettmers et al. 2022, section 2.
    """
    require_sizes(block=block)
    moments = {"first moments": 1, "second moments": 1}
    return {**MIXED_ADAM, **moments, "block constants": Fraction(2 * 4, block)}


def model_states(parameters: int, recipe: Recipe) -> dict[str, int]:
    """Compute the bytes of the model states on one device.

    Args:
        parameters: how many.
        recipe: bytes of a parameter, by part.

    Returns:
        Bytes by part, each rounded up to a whole one.

    Raises:
        ValueError: if there are fewer than 0 parameters, or the recipe is
            empty or has a negative number.
    """
    return zero_states(parameters, recipe, 0, 1)


def zero_states(parameters: int, recipe: Recipe, stage: int, devices: int) -> dict[str, int]:
    """Compute the bytes of the model states on each of several devices.

    Every device has a copy of what is not split. Stage 1 splits what the
    optimizer holds, stage 2 the gradients too, stage 3 the weights too.

    Args:
        parameters: of the whole model.
        recipe: bytes of a parameter, by part.
        stage: 0 to 3.
        devices: how many share what is split.

    Returns:
        Bytes by part on the device with the largest share.

    Raises:
        ValueError: as :func:`gradbook.training_memory.model_states`, or
            if the stage is not 0 to 3 or there is no device.

    Source: Rajbhandari et al. 2020, section 5.
    """
    if stage not in range(4):
        raise ValueError(f"stage: must be 0, 1, 2 or 3, got {stage}")
    if type(parameters) is not int or parameters < 0:
        raise ValueError(f"parameters: must be an integer from 0, got {parameters!r}")
    _require_recipe(recipe)
    require_sizes(devices=devices)
    share = -(-parameters // devices)
    held = {}
    for part, size in recipe.items():
        split = stage >= _SPLIT_FROM.get(part, 1)
        held[part] = math.ceil((share if split else parameters) * size)
    return held


def efficient_states(
    frozen: int,
    trained: int,
    recipe: Recipe,
    base: Recipe = FROZEN_16_BIT,
) -> dict[str, int]:
    """Compute the bytes where most weights are frozen and few are trained.

    Frozen weights have no gradients and no optimizer states.

    Args:
        frozen: parameters that stay as they are.
        trained: parameters that are tuned.
        recipe: of the trained ones.
        base: of the frozen ones.

    Returns:
        Bytes by part.

    Raises:
        ValueError: as :func:`gradbook.training_memory.model_states`, or
            if the recipes share a part.
    """
    if set(base) & set(recipe):
        raise ValueError(f"base: shares parts with recipe: {sorted(set(base) & set(recipe))}")
    return model_states(frozen, base) | model_states(trained, recipe)


def paged(states: Mapping[str, int], parts: Collection[str] = MOMENTS) -> Placed:
    """Move parts of the model states to the host's memory, as a paged optimizer may.

    The bytes are the same, elsewhere. A real one moves pages only when
    the card is full, and brings them back for the step: this is what the
    card holds at least.

    Args:
        states: bytes by part.
        parts: what moves; by default Adam's moments.

    Returns:
        Bytes by part in both places.

    Source: Dettmers et al. 2023, section 3.
    """
    card = {part: size for part, size in states.items() if part not in parts}
    host = {part: size for part, size in states.items() if part in parts}
    return Placed(card, host)


def left(card_bytes: int, *needs: Mapping[str, int]) -> int:
    """Compute what a card has left.

    Args:
        card_bytes: of its memory.
        *needs: bytes by part: states, activations, buffers.

    Returns:
        Bytes; negative where the needs do not fit.

    Raises:
        ValueError: if the card has no memory.
    """
    require_sizes(card_bytes=card_bytes)
    return card_bytes - sum(sum(need.values()) for need in needs)


def fits(card_bytes: int, *needs: Mapping[str, int]) -> bool:
    """Say whether a training fits on a card.

    Args:
        card_bytes: of its memory.
        *needs: bytes by part: states, activations, buffers.

    Returns:
        True if nothing is missing, down to the last byte.

    Raises:
        ValueError: if the card has no memory.
    """
    return left(card_bytes, *needs) >= 0


def largest_model(card_bytes: int, recipe: Recipe, *needs: Mapping[str, int]) -> int:
    """Find the most parameters whose states fit on a card beside other needs.

    Args:
        card_bytes: of its memory.
        recipe: bytes of a parameter, by part, in sum more than 0.
        *needs: bytes by part: activations, buffers.

    Returns:
        How many; 0 where not even the needs fit.

    Raises:
        ValueError: if the card has no memory or the recipe no bytes.
    """
    _require_recipe(recipe)
    if sum(recipe.values()) == 0:
        raise ValueError("recipe: must have bytes")
    room = left(card_bytes, *needs)
    most = max(0, math.floor(room / Fraction(sum(recipe.values()))))
    # Parts are rounded up one by one.
    while most and not fits(room, model_states(most, recipe)):
        most -= 1
    return most


def _require_recipe(recipe: Recipe) -> None:
    if not recipe or not all(0 <= size < math.inf for size in recipe.values()):
        raise ValueError("recipe: must have parts, each from 0 bytes")
