"""Messages with their answers, and the switches that they cannot do without."""

import os
import socket

import pytest

from gradbook.parallel import exchanges
from gradbook.parallel.children import in_child


@pytest.mark.parametrize("kind", exchanges.EXCHANGES)
def test_a_message_and_its_answer_switch_at_least_twice_on_one_core(kind):
    found = exchanges.exchange(kind, 3, 20)
    assert found.switches >= 2
    assert found.seconds.low > 0


@pytest.mark.parametrize("kind", ["threads, pipes", "processes, pipes"])
def test_on_a_quiet_core_it_does_not_take_many_more(kind):
    assert min(exchanges.exchange(kind, 2, 20).switches for _ in range(4)) < 10


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from 3.12 on, with threads
def test_all_happens_on_one_core():
    def child():
        exchanges._exchange("threads, pipes", 2, 2)
        return len(os.sched_getaffinity(0))

    assert in_child(child) == 1


def test_tcp_is_tcp(monkeypatch):
    ends, connect = [], socket.create_connection

    def recorded(*given):
        ends.append(connect(*given))
        return ends[-1]

    monkeypatch.setattr(exchanges.socket, "create_connection", recorded)
    (send, _), (_, receive) = exchanges._WAYS["TCP"]()
    send()
    assert receive() == b"."
    assert (ends[0].family, ends[0].type) == (socket.AF_INET, socket.SOCK_STREAM)
    assert ends[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_bad_input():
    with pytest.raises(ValueError, match="kind"):
        exchanges.exchange("threads, post")
    with pytest.raises(ValueError, match="batches"):
        exchanges.exchange("threads, pipes", 1)
    with pytest.raises(ValueError, match="rounds"):
        exchanges.exchange("threads, pipes", 2, 0)
