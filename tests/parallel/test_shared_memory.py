"""Segments of shared memory, and collectives in them."""

import errno
import os
import sys
from contextlib import closing
from multiprocessing import shared_memory

import pytest
import torch

from gradbook.parallel.backends import Group, SharedMemory
from gradbook.parallel.schedules import recursive_doubling
from gradbook.parallel.shared_memory import LINE, Segment


def test_what_one_writes_the_other_reads():
    made = Segment.create(100, 3)
    try:
        found = Segment.find(made.name, 3)
    finally:
        made.unlink()
    with closing(made), closing(found):
        assert found.capacity == made.capacity >= 100
        assert made.capacity % LINE == 0
        for part in range(3):
            made.view(part, 25, torch.float32).fill_(part + 1.0)
        for part in range(3):
            assert found.view(part, 25, torch.float32).tolist() == [part + 1.0] * 25
        assert found.view(1, 0, torch.int64).shape == (0,)
        # The name has gone, the memory is still there.
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(made.name)
        assert found.view(2, 1, torch.float32).item() == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there can one reserve")
def test_memory_that_is_not_there_is_an_error_and_leaves_no_name(monkeypatch):
    asked, names = [], []

    class Spied(shared_memory.SharedMemory):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            names.append(self.name)

    def full(handle, start, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shared_memory, "SharedMemory", Spied)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        Segment.create(5000, 2)
    assert asked[0] >= 10_000
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(names[0])


def test_more_than_memory_can_be_is_refused():
    with pytest.raises(ValueError, match="^capacity: 2 times"):
        Segment.create(2**62, 2)


def test_a_rank_overtakes_nobody(require_handmade):
    with Group(3, SharedMemory(), timeout=60) as group:
        require_handmade(group.run, 2**18)


def test_a_tensor_outside_is_copied_there_and_back(functions):
    with Group(2, SharedMemory(), timeout=60, capacity=80) as group:
        assert group.call(functions.many, recursive_doubling(2), 5) == [-1, -1]
