"""Start a prefix from real words: the keys and values that a frozen network computes for them.

Source: X. L. Li and P. Liang, 2021, "Prefix-tuning: optimizing continuous prompts for generation",
section 7.4 (initialization by activations of words).
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradbook.peft.injection import Where
from gradbook.peft.prefix import IS_SELF_ATTENTION, layer_order


@torch.no_grad()
def word_prefix(
    model: nn.Module, inputs: dict[str, Tensor], where: Where = IS_SELF_ATTENTION
) -> Tensor:
    """Read the keys and values of a text in every attention layer of BERT's kind.

    Args:
        model: has attention layers with ``key`` and ``value``, without a prefix.
        inputs: what the model is called with; one text of n tokens.
        where: chooses the attention layers.

    Returns:
        [L, 2, n, d], as :func:`gradbook.peft.prefix.put` takes it.

    Raises:
        ValueError: if ``where`` holds for no module, for one without ``key`` and ``value``, or for
            one that the model does not call, or the text is not one.
    """
    chosen = list(layer_order(model, where))
    if not all(hasattr(layer, part) for layer in chosen for part in ("key", "value")):
        raise ValueError("where: must hold for layers with key and value")
    maps = [part for layer in chosen for part in (layer.key, layer.value)]
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        found[module] = output

    handles: list[RemovableHandle] = [part.register_forward_hook(keep) for part in maps]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < len(maps):
        raise ValueError("where: holds for a layer that is not used")
    if found[maps[0]].shape[:-2].numel() != 1:
        raise ValueError("inputs: must be one text")
    rows = torch.stack([found[part].flatten(0, -2) for part in maps])
    return rows.unflatten(0, (len(chosen), 2))
