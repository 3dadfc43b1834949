"""Costs by formula, against torch's own counter of what it runs."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gradbook.priors import flops
from gradbook.priors.pixelcnn import PixelCNN
from gradbook.priors.transformer import CausalTransformer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counted(run):
    """Attention runs as two plain products: torch does not count its fused kernel on the CPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", [(2, 3, 5, 4, 1), (3, 2, 7, 6, 4), (7, 7, 128, 8, 2)])
def test_pixelcnn_costs_what_torch_counts(sizes):
    model = PixelCNN(*sizes, generator())
    codes = torch.zeros(3, *sizes[:2], dtype=torch.int64)
    assert counted(lambda: model.log_prob(codes)) == 3 * flops.pixelcnn_flops(*sizes)


@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize("sizes", [(2, 3, 5, 8, 1), (3, 2, 7, 4, 3), (7, 7, 128, 16, 2)])
def test_the_transformer_costs_what_torch_counts(sizes, prefix):
    model = CausalTransformer(*sizes, 2, generator(), prefix)
    codes = torch.zeros(3, *sizes[:2], dtype=torch.int64)
    given = (torch.zeros(3, prefix, sizes[3]),) if prefix else ()
    found = counted(lambda: model.log_prob(codes, *given))
    assert found == 3 * flops.transformer_flops(*sizes, prefix)


def test_the_backward_pass_costs_about_twice_the_forward_pass():
    """Exactly, but for the first layer, whose inputs need no gradient where they are not learnt."""
    sizes = (3, 3, 5, 6, 3)
    model = PixelCNN(*sizes, generator())
    codes = torch.zeros(2, 3, 3, dtype=torch.int64)
    found = counted(lambda: model.log_prob(codes).sum().backward())
    assert found == 2 * flops.training_flops(flops.pixelcnn_flops(*sizes))
    sizes = (3, 3, 5, 8, 2)
    model = CausalTransformer(*sizes, 2, generator())
    found = counted(lambda: model.log_prob(codes).sum().backward())
    assert found == 2 * flops.training_flops(flops.transformer_flops(*sizes))


def test_attention_costs_the_square_of_the_length():
    """The rest of a block is in proportion to it."""
    short, middle, long = (flops.transformer_flops(1, n, 1, 4, 1) for n in (10, 20, 30))
    assert long - 2 * middle + short == 4 * 2 * 10**2 * 4
    assert flops.transformer_flops(2, 5, 1, 4, 1) == short


def test_steps_come_nearest_to_the_budget():
    assert flops.steps_for(1e6, 100, 10) == 1_000
    assert flops.steps_for(1_499, 100, 10) == 1
    assert flops.steps_for(1_501, 100, 10) == 2
    assert flops.steps_for(1, 100, 10) == 1


BAD = [
    *(
        (lambda i=i: flops.pixelcnn_flops(*(0 if i == j else 2 for j in range(5))), name)
        for i, name in enumerate(("height", "width", "codes", "channels", "layers"))
    ),
    *(
        (lambda i=i: flops.transformer_flops(*(0 if i == j else 2 for j in range(5))), name)
        for i, name in enumerate(("height", "width", "codes", "dim", "layers"))
    ),
    (lambda: flops.transformer_flops(2, 2, 2, 2, 2, -1), "prefix"),
    (lambda: flops.steps_for(0, 2, 2), "budget"),
    (lambda: flops.steps_for(math.nan, 2, 2), "budget"),
    (lambda: flops.steps_for(2, 0, 2), "flops_per_grid"),
    (lambda: flops.steps_for(2, 2, 0), "batch"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}: must"):
        call()
