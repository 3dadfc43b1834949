"""When a training does what: the order of the rows, and the step size of each step."""

import torch
from torch import Tensor

# Batches in which rows are sorted by length: more would make the batches less random.
CHUNK = 8


def share(step: int, steps: int) -> float:
    """Compute the share of the largest rate at a step: up over a tenth, then down.

    Neither end is 0: no step is wasted.

    Args:
        step: how many were taken before, from 0 to ``steps - 1``.
        steps: in all.

    Returns:
        From ``1 / warm`` in equal rises to 1, then in equal falls to
        ``1 / (steps - warm + 1)``, where warm is a tenth of the steps,
        rounded up.

    Raises:
        ValueError: if the step is not one of them.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step: must be from 0 to {steps - 1}, got {step}")
    warm = -(-steps // 10)
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


def batches(lengths: Tensor, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Put rows into batches of near-equal length, in a random order.

    Shuffled rows are cut into chunks of eight batches; a chunk is sorted
    by length and cut into batches; then the batches are shuffled.

    Args:
        lengths: of the rows, [n], on the CPU.
        batch: rows of a batch; one may have fewer.
        generator: of the CPU.

    Returns:
        Indices of rows, each row in one batch, on the CPU.

    Raises:
        ValueError: if ``batch`` is less than 1.
    """
    if batch < 1:
        raise ValueError(f"batch: must be at least 1, got {batch}")
    order = torch.randperm(len(lengths), generator=generator, device="cpu")
    cut = []
    for start in range(0, len(order), CHUNK * batch):
        chunk = order[start : start + CHUNK * batch]
        by_length = chunk[lengths[chunk].argsort(stable=True)]
        cut += by_length.split(batch)
    places = torch.randperm(len(cut), generator=generator, device="cpu")
    return [cut[place] for place in places.tolist()]
