"""Cases of a low-rank addition to a linear layer, forward and backward.

All numbers are positive: a sum near zero would have no relative error.
"""

from collections.abc import Sequence

import peft
import torch
from torch import Tensor, nn

from benchmarks.timing import Case, Side
from gradbook.peft.dora import DoRALinear
from gradbook.peft.lora import LoRALinear

SEED = 24
ROWS, WIDTH, RANK, ALPHA = 2_048, 1_024, 8, 16.0


def positive(*shape: int, seed: int) -> Tensor:
    """Draw uniform numbers from 0.5 to 1.5, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float32) + 0.5


def frozen() -> nn.Linear:
    """Make the layer that is there already."""
    layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float32).requires_grad_(False)
    layer.weight.copy_(positive(WIDTH, WIDTH, seed=SEED))
    layer.bias.copy_(positive(WIDTH, seed=SEED + 1))
    return layer


def peers(**options: bool) -> nn.Module:
    """Make peft's layer, of the same rank and alpha.

    Args:
        **options: more of ``peft.LoraConfig``.

    Returns:
        The layer, without the model around it.
    """
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], **options)
    return peft.get_peft_model(nn.Sequential(frozen()), config).base_model.model[0]


def filled(parameters: Sequence[nn.Parameter]) -> None:
    """Give parameters the same positive values on both sides.

    Args:
        parameters: of one side, in the order of the other's.
    """
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(positive(*parameter.shape, seed=SEED + 2 + i))


def side(layer: nn.Module, parameters: Sequence[nn.Parameter]) -> Side:
    """Make one side: the output, and the gradients of the input and of what is trained.

    Args:
        layer: from [n, in] to [n, out].
        parameters: those that are trained.

    Returns:
        A function that gives row sums of what has n rows, and the rest as it is: copies of the
        large ones would be timed, too.
    """
    x = positive(ROWS, WIDTH, seed=SEED - 1).requires_grad_()
    cotangent = positive(ROWS, WIDTH, seed=SEED - 2)

    def run() -> Tensor:
        output = layer(x)
        by_x, *rest = torch.autograd.grad(output, (x, *parameters), cotangent)
        sums = [large.detach().sum(1) for large in (output, by_x)]
        return torch.cat([*sums, *(slope.flatten() for slope in rest)])

    return run


def sides(
    ours: nn.Module,
    trained: Sequence[nn.Parameter],
    theirs: nn.Module,
    parts: Sequence[nn.ModuleDict],
) -> tuple[Side, Side]:
    """Make both sides, with the same values in what is trained.

    Args:
        ours: the book's layer.
        trained: its parameters.
        theirs: peft's layer.
        parts: what holds its parameters, in the order of ours.

    Returns:
        The book's side and peft's.
    """
    others = [part["default"].weight for part in parts]
    filled(trained)
    filled(others)
    return side(ours, trained), side(theirs, others)


def lora_case() -> tuple[Side, Side]:
    """LoRA, against peft's."""
    ours, theirs = LoRALinear(frozen(), RANK, ALPHA), peers()
    parts = theirs.lora_A, theirs.lora_B
    return sides(ours, [ours.A, ours.B], theirs, parts)


def dora_case() -> tuple[Side, Side]:
    """DoRA, against peft's, which forms the product for its norms."""
    ours, theirs = DoRALinear(frozen(), RANK, ALPHA), peers(use_dora=True)
    parts = theirs.lora_A, theirs.lora_B, theirs.lora_magnitude_vector
    return sides(ours, [ours.A, ours.B, ours.magnitude], theirs, parts)


CASES = (
    Case(
        "LoRA of rank 8, forward and backward, 2048 rows, 1024 x 1024, float32",
        "peft's LoRA",
        1e-5,
        lora_case,
    ),
    Case(
        "DoRA of rank 8, forward and backward, the same rows and layer",
        "peft's DoRA",
        1e-5,
        dora_case,
    ),
)
