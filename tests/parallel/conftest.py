"""What the tests of the backends share."""

from pathlib import Path

import pytest
import torch

from gradbook.parallel.failures import Stalled
from gradbook.parallel.schedules import COPY, REDUCE, Schedule, Transfer


@pytest.fixture(scope="module")
def functions():
    """What every rank can be told to do: processes take over the path of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        import rank_functions

        yield rank_functions


@pytest.fixture(scope="session")
def draws():
    """Draw a tensor of n numbers for each of p ranks."""

    def drawn(p, n, dtype=torch.float32):
        generator = torch.Generator().manual_seed(n)
        kind = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        return [(100 * torch.randn(n, **kind)).to(dtype) for _ in range(p)]

    return drawn


@pytest.fixture(scope="session")
def same_bits():
    """Compare tensors, one by one, without any tolerance."""
    return lambda one, other: all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Schedules of three ranks, each with a reduction, a late rank, what is given and what must come out.
HANDMADE = [
    # In one step every rank's chunk is read by one rank and written from another: all of them read
    # what stood there before.
    *(
        (
            Schedule("turn", 3, 1, tuple(Transfer(0, i, (i + 1) % 3, 0, COPY) for i in range(3))),
            ("sum", Stalled(late, 0, 0.05), (0, 1, 2), (2, 0, 1)),
        )
        for late in range(3)
    ),
    # Rank 1 is late to read rank 0's chunk, which rank 2 writes in the next step.
    (
        Schedule("late", 3, 1, (Transfer(0, 0, 1, 0, REDUCE), Transfer(1, 2, 0, 0, COPY))),
        ("sum", Stalled(1, 0, 0.2), (1, 10, 100), (100, 11, 100)),
    ),
    # Rank 0 has nothing to do after its offer; a mean divides in place, and must wait.
    (
        Schedule("one", 3, 1, (Transfer(0, 0, 1, 0, COPY),)),
        ("mean", Stalled(1, 0, 0.2), (6, 0, 9), (2, 2, 3)),
    ),
]


@pytest.fixture(scope="session")
def require_handmade():
    """Have a backend carry out schedules in which a rank could easily overtake another."""

    def required(run, n):
        for schedule, (reduction, hook, given, right) in HANDMADE:
            tensors = [torch.full((n,), float(x), device="cpu") for x in given]
            ran = run(schedule, tensors, reduction, before_step=hook)
            for result, x in zip(ran.results, right, strict=True):
                assert torch.equal(result, torch.full((n,), float(x), device="cpu")), schedule.name

    return required
