"""LoRA+: B learns faster than A.

Source: S. Hayou, N. Ghosh and B. Yu, 2024, "LoRA+: efficient low rank adaptation of large models".
"""

import torch
from torch import nn

from gradbook.checks import require_finite
from gradbook.language import descent
from gradbook.peft.lora import LowRank
from gradbook.peft.lora_embedding import LoRAEmbedding


def adamw(model: nn.Module, rate: float, ratio: float) -> torch.optim.AdamW:
    """Build AdamW with a larger step size for B.

    :func:`gradbook.language.tuning.fit` keeps the ratio while it raises and
    lowers the rate.

    Args:
        model: as for :func:`groups`.
        rate: likewise.
        ratio: likewise.

    Returns:
        AdamW of the :func:`groups`.

    Raises:
        ValueError: as :func:`groups`.
    """
    return torch.optim.AdamW(groups(model, rate, ratio), lr=rate)


def groups(model: nn.Module, rate: float, ratio: float) -> list[dict]:
    """Put what trains into groups, and give B a larger step size.

    AdamW's decay is a share of the step size, so that B decays faster too.

    Args:
        model: of which the parameters with ``requires_grad`` train. B's are
            those of every layer of LoRA or DoRA; of an embedding's LoRA,
            where A starts at zero and B does not, both are among the rest.
        rate: the step size of A, and of everything else.
        ratio: that of B over it; 1 is LoRA.

    Returns:
        The groups of :func:`gradbook.language.descent.groups`, with B's in
        groups of their own.

    Raises:
        ValueError: if the rate or the ratio is not positive and finite, or
            no B trains.

    Source: Hayou et al. 2024, section 4. The library peft gives vectors,
    such as biases, the larger step size too; this does not.
    """
    _require_positive(rate=rate, ratio=ratio)
    fast = {id(module.B) for module in model.modules() if _has_b(module)}
    found = []
    for group in descent.groups(model, rate):
        parts = group["params"]
        rest = [p for p in parts if id(p) not in fast]
        bs = [p for p in parts if id(p) in fast]
        found.append(group | {"params": rest})
        found.append(group | {"params": bs, "lr": ratio * rate})
    if not any(group["params"] for group in found[1::2]):
        raise ValueError("model: must have a layer of LoRA whose B trains")
    return [group for group in found if group["params"]]


def _has_b(module: nn.Module) -> bool:
    return isinstance(module, LowRank) and not isinstance(module, LoRAEmbedding)


def _require_positive(**numbers: float) -> None:
    require_finite(**numbers)
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name}: must be positive, got {number}")
