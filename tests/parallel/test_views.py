"""Who waits for whom where ranks read each other's memory; threads do so, and are fast to start."""

from contextlib import closing

from gradbook.parallel.backends import Stalled, run_threads, simulate
from gradbook.parallel.plans import plan
from gradbook.parallel.schedules import ALGORITHMS, ring
from gradbook.parallel.sockets import Links, mesh
from gradbook.parallel.views import READY, TAKEN, Tokens, soon


def test_a_slow_rank_changes_nothing(draws, same_bits):
    # Rank 1 reads and writes a while after the others could have overtaken it.
    for name, algorithm in ALGORITHMS.items():
        schedule = algorithm(4)
        tensors = draws(4, 50)
        right = simulate(schedule, tensors).results
        for step in range(3):
            ran = run_threads(schedule, tensors, before_step=Stalled(1, step, 0.02))
            assert same_bits(ran.results, right), (name, step)


def test_a_rank_overtakes_nobody(require_handmade):
    require_handmade(run_threads, 5)


def test_exchanges_read_what_stood_there_before(draws, same_bits):
    for name in ("recursive_doubling", "halving_doubling"):
        schedule, tensors = ALGORITHMS[name](8), draws(8, 100_003)
        assert same_bits(
            run_threads(schedule, tensors).results, simulate(schedule, tensors).results
        )


def test_the_next_collectives_bytes_are_left_alone():
    one, other = (Links(sockets) for sockets in mesh(2))
    with closing(one), closing(other):
        # In a ring of two a rank gets two tokens of each kind; then the other may go on.
        tokens = Tokens(one, plan(ring(2), 0), soon(5))
        other.send(0, READY, soon(5))
        tokens.await_ready(1)
        other.send(0, READY + TAKEN + TAKEN + b"RTnext", soon(5))
        tokens.await_ready(1)
        tokens.await_taken(1, 2)
        rest = bytearray(6)
        one.read_into(1, memoryview(rest), soon(5))
        assert rest == b"RTnext"
