"""One of our schedules in the processes that `torchrun` starts, on one machine or several.

On one machine with two processes::

    torchrun --standalone --nproc-per-node 2 -m gradbook.parallel.torchrun_example ring 1000

It uses NCCL where every process has a GPU, and gloo elsewhere.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist

from gradbook.parallel.distributed import all_reduce
from gradbook.parallel.schedules import ALGORITHMS


def main(arguments: Sequence[str] | None = None) -> None:
    """Sum a tensor over all processes, and compare with the backend's own all-reduce.

    Args:
        arguments: algorithm and number of elements; those of the command line if None.

    Raises:
        SystemExit: if the arguments are wrong or the two sums differ.
    """
    parser = argparse.ArgumentParser(description=main.__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=sorted(ALGORITHMS), nargs="?", default="ring")
    parser.add_argument("numbers", type=int, nargs="?", default=1000)
    chosen = parser.parse_args(arguments)
    device = _device()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        line = _compare(chosen.algorithm, chosen.numbers, device)
        if dist.get_rank() == 0:
            sys.stdout.write(line + "\n")
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    local, all_local = (int(os.environ[f"LOCAL_{name}"]) for name in ("RANK", "WORLD_SIZE"))
    if torch.cuda.device_count() < all_local:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _compare(algorithm: str, numbers: int, device: torch.device) -> str:
    rank, size = dist.get_rank(), dist.get_world_size()
    # Whole numbers this small add up without rounding, in whatever order.
    ours = torch.arange(numbers, dtype=torch.float32, device=device) % 1000 + rank
    theirs = ours.clone()
    sent = all_reduce(ALGORITHMS[algorithm](size), ours)
    dist.all_reduce(theirs)
    if not torch.equal(ours, theirs):
        sys.exit(f"rank {rank}: {algorithm} and {dist.get_backend()} differ")
    return (
        f"{algorithm} on {size} processes over {dist.get_backend()}: the sum of {numbers} numbers "
        f"agrees, rank 0 sent {sent} bytes"
    )


if __name__ == "__main__":
    main()
