"""PiSSA: LoRA started from the largest singular values of the matrix; what is left is frozen.

Source: F. Meng, Z. Wang and M. Zhang, 2024, "PiSSA: principal singular values and singular vectors
adaptation of large language models".
"""

import torch
from torch import Tensor

from gradbook.checks import require, require_finite
from gradbook.delta_svd import truncated
from gradbook.peft.lora import LoRALinear


@torch.no_grad()
def principal(module: LoRALinear) -> LoRALinear:
    """Move the largest singular triplets of W into A and B.

    With W = U S V^T cut off at the rank, B = U S^(1/2) and A = S^(1/2) V^T,
    each over the root of the scaling s. W becomes the rest, W - s B A, so
    that the outputs stay, up to rounding. Signs are as the decomposition
    gives them; B A does not depend on them. A triplet whose singular value
    is zero has no gradient and never moves.

    As it writes into W, a layer that shares its weights with another
    changes both. Where :func:`gradbook.peft.injection.inject` may refuse a
    later layer, put LoRA in first and call this afterwards; merge before
    ``Injection.undo``, which brings the layer back and not its weights.

    Args:
        module: new, with B = 0; changed in place, with the weights of its
            layer.

    Returns:
        The same module. Merging it before training restores W.

    Raises:
        ValueError: if it is merged, its B is not zero, it is not LoRA's own
            layer, or W is not finite.

    Source: Meng et al. 2024, section 3; their A is our B.
    """
    _require_plain(module)
    require(module.B == 0, "module: must be new, with B = 0")
    weight, rank = module.weights(), len(module.A)
    require(weight.isfinite(), "module: must have a layer of finite weights")
    # The decomposition is not made for halves.
    wide = torch.promote_types(weight.dtype, torch.float32)
    cut = truncated(weight.to(wide), rank)
    root = (cut.values / module.scaling).sqrt()
    module.B.copy_(cut.left * root)
    module.A.copy_(root[:, None] * cut.right.T)
    weight.sub_(module.delta())
    return module


@torch.no_grad()
def converted(module: LoRALinear, first: Tensor, second: Tensor) -> LoRALinear:
    """Turn a trained PiSSA into a LoRA of twice the rank on the first weights.

    Training added s (B A - B0 A0) to W, which is s [B, -B0] [A; A0].

    Args:
        module: trained. Its layer gets the weights W back, up to rounding.
            It is marked as merged, so that it cannot be converted again,
            and gives W x + bias, without what was learnt: only the new one
            is of use, and a model must get it in the old one's place.
        first: A0, A at the start of the training, [r, in].
        second: B0, B at that time, [out, r].

    Returns:
        A new module over the same layer, of rank 2 r and the scaling s,
        trained where A and B were.

    Raises:
        ValueError: if the module is merged or not LoRA's own layer, A0 or B0
            have not the shape and type of A and B or are not finite, or 2 r
            is above the smaller side of W.

    Source: the conversion in peft, by the authors of Meng et al. 2024.
    """
    _require_plain(module)
    _require_like(module.A, first=first)
    _require_like(module.B, second=second)
    a = torch.cat([module.A, first])
    b = torch.cat([module.B, -second], 1)
    lora = LoRALinear.of(module.layer, a, b, module.scaling)
    lora.A.requires_grad_(module.A.requires_grad)
    lora.B.requires_grad_(module.B.requires_grad)
    module.weights().add_(second @ first, alpha=module.scaling)
    module.merged = True
    return lora.train(module.training)


def _require_plain(module: LoRALinear) -> None:
    # What is built upon LoRA may compute something else of A and B.
    if type(module) is not LoRALinear:
        raise ValueError(f"module: must be a LoRALinear, got {type(module).__name__}")
    if module.merged:
        raise ValueError("module: must not be merged")


def _require_like(other: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            want, got = (f"{list(t.shape)} {t.dtype}" for t in (other, tensor))
            raise ValueError(f"{name}: must be {want}, got {got}")
    require_finite(**tensors)
