"""Print the benchmark as a Markdown table: ``python -m benchmarks``.

Only the ratios mean something on another machine: both sides run in one process on one thread.
"""

import platform

import scipy
import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import categories, codes, gradients, lora, nf4
from benchmarks.timing import REPEATS, Case, Timing, compare

CASES: tuple[Case, ...] = (
    *gradients.CASES,
    *categories.CASES,
    *codes.CASES,
    *lora.CASES,
    *nf4.CASES,
)


def table(cases: list[tuple[Case, Timing]]) -> str:
    """Write the timings as a Markdown table.

    Args:
        cases: each case with its timing.

    Returns:
        One row for each case, times in milliseconds.
    """
    rows = [
        (
            case.operation,
            case.peer,
            f"{timing.ours:.2f}",
            f"{timing.peer:.2f}",
            f"{timing.ratio:.3g}",
        )
        for case, timing in cases
    ]
    headers = ("operation", "peer", "ours ms", "peer ms", "ours / peer")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Time every case on one thread and print the table."""
    torch.set_num_threads(1)
    progress = tqdm(CASES, unit="case", disable=None)
    timed = [(case, compare(*case.make())) for case in progress]
    versions = f"torch {torch.__version__}, scipy {scipy.__version__}"
    print(
        f"{platform.machine()}, one thread, {versions}; the fastest of {REPEATS} runs in turns.\n"
    )
    print(table(timed))
    print(f"\n{categories.tails()}")


if __name__ == "__main__":
    main()
