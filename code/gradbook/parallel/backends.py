"""Everything that carries out a schedule, in one place.

Each takes one tensor per rank and returns an object with `.results`, one per rank. A simulation adds
a trace, counters and a clock; threads and processes do the work at the same time. `Group` keeps its
processes for many collectives.
"""

from gradbook.parallel.calls import Call, Ran
from gradbook.parallel.distributed import TorchDistributed, all_reduce, run_distributed
from gradbook.parallel.failures import CollectiveError, Killed, Raising, Stalled
from gradbook.parallel.processes import Group, run_processes
from gradbook.parallel.shared_memory import SharedMemory
from gradbook.parallel.simulator import simulate
from gradbook.parallel.sockets import Sockets
from gradbook.parallel.threads import run_threads

__all__ = [
    "Call",
    "CollectiveError",
    "Group",
    "Killed",
    "Raising",
    "Ran",
    "SharedMemory",
    "Sockets",
    "Stalled",
    "TorchDistributed",
    "all_reduce",
    "run_distributed",
    "run_processes",
    "run_threads",
    "simulate",
]
