"""Sockets between ranks: what goes through, and who is named when nothing does."""

import threading
from contextlib import closing

import pytest
import torch

from gradbook.parallel.failures import PeerLate, PeerLost
from gradbook.parallel.processes import Group
from gradbook.parallel.sockets import Links, Sender, Sockets, bytes_of, mesh
from gradbook.parallel.views import soon


@pytest.fixture
def links():
    made = [Links(sockets) for sockets in mesh(3)]
    yield made
    for one in made:
        one.close()


def test_every_two_ranks_share_a_pair(links):
    for rank in range(3):
        for peer in {0, 1, 2} - {rank}:
            links[rank].send(peer, bytes([rank, peer]), soon(5))
    for rank in range(3):
        for peer in {0, 1, 2} - {rank}:
            buffer = bytearray(2)
            links[rank].read_into(peer, memoryview(buffer), soon(5))
            assert buffer == bytes([peer, rank])


def test_no_more_is_read_than_is_left(links):
    links[1].send(0, b"abcde", soon(5))
    links[2].send(0, b"xyz", soon(5))
    assert links[0].receive({1: 2, 2: 0}, soon(5)) == (1, b"ab")
    with pytest.raises(TimeoutError):
        links[0].receive({1: 0, 2: 0}, soon(0.05))
    buffer = bytearray(3)
    links[0].read_into(1, memoryview(buffer), soon(5))
    assert buffer == b"cde"


def test_a_rank_that_has_gone_is_named(links):
    links[2].close()
    with pytest.raises(PeerLost) as caught:
        links[0].read_into(2, memoryview(bytearray(1)), soon(5))
    assert caught.value.peer == 2
    with pytest.raises(PeerLost) as caught:
        links[0].receive({1: 1, 2: 1}, soon(5))
    assert caught.value.peer == 2
    with pytest.raises(PeerLost) as caught:
        links[1].send(2, b"x", soon(5))
    assert caught.value.peer == 2


def test_a_rank_that_is_late_is_named(links):
    with pytest.raises(PeerLate) as caught:
        links[0].read_into(1, memoryview(bytearray(1)), soon(0.05))
    assert caught.value.peer == 1
    # Nobody reads, so that the buffers fill up.
    with closing(Sender(links[0])) as sender:
        sender.post(2, memoryview(bytearray(2**26)), soon(0.05))
        with pytest.raises(PeerLate) as caught:
            sender.flush()
    assert caught.value.peer == 2


def test_a_sender_ends_its_thread(links):
    before = threading.active_count()
    with closing(Sender(links[0])) as sender:
        assert threading.active_count() == before + 1
        sender.post(1, memoryview(b"last"), soon(5))
    assert threading.active_count() == before
    buffer = bytearray(4)
    links[1].read_into(0, memoryview(buffer), soon(5))
    assert buffer == b"last"


def test_a_rank_overtakes_nobody(require_handmade):
    # 4 MiB do not fit into what a socket holds, so that a sender has to wait for the late rank.
    with Group(3, Sockets(), timeout=60) as group:
        require_handmade(group.run, 2**20)


def test_bytes_of_a_tensor_are_its_memory():
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    data = bytes_of(tensor)
    assert len(data) == 6
    data[2:4] = torch.tensor([1.5], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    assert tensor.tolist() == [0, 1.5, 0]
    assert len(bytes_of(torch.zeros(0))) == 0


def test_a_single_rank_has_no_sockets():
    assert mesh(1) == [{}]
