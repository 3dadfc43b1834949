"""What a network costs: floating-point operations by formula, two for a multiplication and addition.

Only matrix products and convolutions count, as in ``torch.utils.flop_counter``: no biases, no
normalizations, no softmax, no gates and no look-ups. Attention counts all pairs of elements,
although a causal one needs only half of them.
"""

from gradbook.priors.grids import require_sizes


def pixelcnn_flops(height: int, width: int, codes: int, channels: int, layers: int) -> int:
    """Count the forward pass of :class:`gradbook.priors.pixelcnn.PixelCNN` over one grid.

    Args:
        height: of a grid.
        width: of a grid.
        codes: how many different ones.
        channels: of each stack.
        layers: of gated convolutions.

    Returns:
        Operations of one grid.

    Raises:
        ValueError: if a size is below 1.
    """
    require_sizes(height=height, width=width, codes=codes, channels=channels, layers=layers)
    square = channels**2
    # Kernels from C to 2 C channels: 3 + 1 places in type A, 6 + 2 in B.
    first = 2 * square * (3 + 1)
    other = 2 * square * (6 + 2)
    links = (2 * channels) ** 2 + square
    head = square + channels * codes
    weights = first + (layers - 1) * other + layers * links + head
    return 2 * height * width * weights


def transformer_flops(
    height: int, width: int, codes: int, dim: int, layers: int, prefix: int = 0
) -> int:
    """Count the forward pass of a :class:`gradbook.priors.transformer.CausalTransformer`.

    Args:
        height: of a grid.
        width: of a grid.
        codes: how many different ones.
        dim: of a vector.
        layers: blocks of attention.
        prefix: conditioning vectors.

    Returns:
        Operations of one grid.

    Raises:
        ValueError: if a size is below 1, or ``prefix`` is negative.
    """
    require_sizes(height=height, width=width, codes=codes, dim=dim, layers=layers)
    if prefix < 0:
        raise ValueError(f"prefix: must not be negative, got {prefix}")
    outputs = height * width
    length = prefix + outputs
    weights = (3 + 1 + 4 + 4) * dim**2
    pairs = 2 * length * dim
    blocks = layers * length * (weights + pairs)
    return 2 * (blocks + outputs * dim * codes)


def training_flops(forward: int) -> int:
    """Count a training step over one grid from its forward pass.

    Args:
        forward: operations of the forward pass.

    Returns:
        Three times as many: the backward pass computes two products, for
        the inputs and for the weights, where the forward one has one.
    """
    return 3 * forward


def steps_for(budget: float, flops_per_grid: int, batch: int) -> int:
    """Find how many steps come nearest to a budget.

    Args:
        budget: operations of a whole training.
        flops_per_grid: operations of a training step for one grid.
        batch: grids of a step.

    Returns:
        Steps, at least 1.

    Raises:
        ValueError: if an argument is not positive.
    """
    if not budget > 0:
        raise ValueError(f"budget: must be positive, got {budget}")
    require_sizes(flops_per_grid=flops_per_grid, batch=batch)
    return max(1, round(budget / (flops_per_grid * batch)))
