"""What runs in a rank's own process."""

import multiprocessing
import os
import pickle
import signal
import sys
from operator import attrgetter

import pytest
import torch

from gradbook.parallel.backends import CollectiveError, Group, Sockets
from gradbook.parallel.failures import RAISED
from gradbook.parallel.schedules import ring
from gradbook.parallel.workers import World, require_same, serve


def test_the_odd_rank_is_the_one_without_a_majority():
    def block(mark, words):
        return bytes(16 * [mark]) + words.encode()

    require_same([block(1, "a")] * 3)
    with pytest.raises(CollectiveError, match="^rank 0, step 0: calls b, rank 1 calls a$"):
        require_same([block(2, "b"), block(1, "a"), block(1, "a")])
    with pytest.raises(CollectiveError, match="^rank 1, step 0: calls b, rank 0 calls a$"):
        require_same([block(1, "a"), block(2, "b")])
    with pytest.raises(CollectiveError, match="calls a, rank 0 calls a; their transfers"):
        require_same([block(1, "a"), block(2, "a")])


def test_a_rank_between_two_collectives_is_in_no_step(functions):
    with Group(2, Sockets(), timeout=60) as group:
        assert group.call(functions.many, ring(2), 3) == [-1, -1]


def test_a_member_refuses_a_schedule_of_another_size(functions):
    with (
        Group(2, Sockets(), timeout=60) as group,
        pytest.raises(CollectiveError, match="ValueError: schedule: must be of 2 ranks, got 3"),
    ):
        group.call(functions.many, ring(3), 1)


def test_answers_carry_tensors_as_their_bytes(functions):
    with Group(2, timeout=60, capacity=64) as group:
        (tensor, done), _ = group.call(functions.in_buffer, ring(2), 5)
    # It outlives the process that sent it.
    assert torch.equal(tensor, torch.full((5,), 3.0))
    assert done.seconds > 0


@pytest.mark.skipif(sys.platform == "win32", reason="there an interrupt ends the process")
def test_an_interrupt_is_left_to_the_group():
    with Group(2, Sockets(), timeout=60) as group:
        for pid in group.pids:
            os.kill(pid, signal.SIGINT)
        assert group.call(attrgetter("rank")) == [0, 1]


def test_a_worker_that_cannot_start_says_why_and_ignores_interrupts():
    ours, theirs = multiprocessing.Pipe()
    world = World(0, 1, Sockets(), 1.0, torch.get_num_threads(), "gradbook-nothing", "")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        serve(world, {}, theirs)
        # Where a program runs in the background they are ignored anyway; not so here.
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with ours, theirs:
        said = pickle.loads(ours.recv_bytes())
    assert (said.rank, said.step, said.kind) == (0, 0, RAISED)
    assert said.why.startswith("FileNotFoundError")
