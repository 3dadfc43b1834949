"""What adapters cost in a forward pass of a pretrained encoder, MiniLM, by the size of the batch.

All kinds run one after the other, many times, on the same random ids; of each the least time counts,
and it is compared with the plain encoder's. On the CPU it is this process's own time, with
OMP_NUM_THREADS=1, which other programs disturb little; on a GPU the clock's, with all work waited for.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertModel

from gradbook.devices import device
from gradbook.language import encoder
from gradbook.peft import adapter_drop, adapters

SEEDS = tuple(range(3))
SIZE, LENGTH, VOCABULARY = 64, 32, 30_000
BATCHES = (1, 4, 16, 64)
ROUNDS = 15
DROPPED = 3


def data_digest() -> str:
    """Say that a record depends on no data."""
    return "no data"


def run(seed: int) -> dict[str, Any]:
    """Measure all kinds at all sizes of the batch.

    Args:
        seed: of the ids and the adapters.

    Returns:
        ``short``, as :func:`run_short`; ``plain``, the plain encoder's seconds by size of the batch;
        and by kind and size, ``ratios``.
    """
    models = built(seed)
    seconds = {kind: {} for kind in models}
    for batch in BATCHES:
        for kind, found in least(models, ids(batch, seed), ROUNDS).items():
            seconds[kind][str(batch)] = found
    plain = seconds.pop("plain")
    ratios = {
        kind: {batch: x / plain[batch] for batch, x in by_batch.items()}
        for kind, by_batch in seconds.items()
    }
    return {"short": run_short(seed), "plain": plain, "ratios": ratios}


def run_short(seed: int) -> dict[str, float]:
    """Count what stands in series, which has no noise.

    Args:
        seed: of the adapters.

    Returns:
        By kind, how many matrix products one forward pass has.
    """
    return {kind: products(model, ids(1, seed)) for kind, model in built(seed).items()}


def built(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Build the encoders: plain, with two adapters a block, one, and two in the upper half alone."""
    places = {"two a block": adapters.houlsby, "one a block": adapters.pfeiffer}
    models: dict[str, Callable[[Tensor], Tensor]] = {"plain": runner(encoder.pretrained_encoder())}
    for kind, place in places.items():
        model = encoder.pretrained_encoder()
        place(model, SIZE, torch.Generator().manual_seed(seed))
        models[kind] = runner(model)
    model = encoder.pretrained_encoder()
    adapters.houlsby(model, SIZE, torch.Generator().manual_seed(seed))

    # Set once and for all: the switch shall not be timed.
    for wrapper, layer in adapter_drop.numbered(model).items():
        wrapper.passed_over = layer < DROPPED
    return models | {"two, upper half": runner(model)}


def runner(model: BertModel) -> Callable[[Tensor], Tensor]:
    """Make a forward pass without gradients, from ids [B, T] to the last states."""

    model.eval()

    @torch.no_grad()
    def run_once(tokens: Tensor) -> Tensor:
        return model(tokens).last_hidden_state

    return run_once


def ids(batch: int, seed: int) -> Tensor:
    """Draw random ids, [batch, 32]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1000, VOCABULARY, (batch, LENGTH), generator=generator, device="cpu")
    return drawn.to(device())


def least(
    models: dict[str, Callable[[Tensor], Tensor]], tokens: Tensor, rounds: int
) -> dict[str, float]:
    """Time all models, interleaved, and take of each the least of some rounds.

    Args:
        models: by kind.
        tokens: [B, T].
        rounds: how many.

    Returns:
        Seconds by kind.
    """
    found = {kind: float("inf") for kind in models}
    for model in models.values():
        model(tokens)
    for _ in range(rounds):
        for kind, model in models.items():
            found[kind] = min(found[kind], _timed(model, tokens))
    return found


def products(model: Callable[[Tensor], Tensor], tokens: Tensor) -> float:
    """Count the matrix products of a forward pass, attention's own apart.

    Args:
        model: a forward pass.
        tokens: [B, T].

    Returns:
        How many operations multiply by a matrix of weights.
    """
    with _Products() as meter:
        model(tokens)
    return float(meter.count)


class _Products(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return func(*args, **(kwargs or {}))


def _timed(model: Callable[[Tensor], Tensor], tokens: Tensor) -> float:
    gpu = tokens.device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    model(tokens)
    if gpu:
        torch.cuda.synchronize()
    return clock() - start
