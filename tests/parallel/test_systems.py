"""What a system lacks is named, before anything is tried."""

import os
import signal
import socket

import pytest

from gradbook.parallel import crashes, exchanges, isolation, races, states, systems, task_costs


def test_this_system_has_everything():
    systems.require_all()


def test_what_a_system_lacks_is_named(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    for ask in (systems.require_proc, systems.require_pages, systems.require_all):
        with pytest.raises(systems.Unsupported, match="only Linux has it"):
            ask()
    monkeypatch.delattr(os, "fork")
    for ask in (systems.require_fork, isolation.seen, races.lost_as_it_happens):
        with pytest.raises(systems.Unsupported, match=r"os\.fork"):
            ask()
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(systems.Unsupported, match="sched_setaffinity"):
        systems.require_cores()


@pytest.mark.parametrize("missing", ["/proc/self/smaps", "/proc/self/smaps_rollup"])
def test_a_kernel_that_does_not_tell_whose_pages_are(missing, monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != missing and exists(path))
    for ask in (
        systems.require_pages,
        systems.require_all,
        task_costs.memory,
        lambda: isolation.copied_pages(1, [0]),
        lambda: isolation.pages_copied_by_reading(1),
    ):
        with pytest.raises(systems.Unsupported, match=f"{missing}: this kernel"):
            ask()


def test_ends_of_children_that_no_one_keeps():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for ask in (
            systems.require_fork,
            systems.require_all,
            states.observed,
            lambda: crashes.crash("an exception"),
        ):
            with pytest.raises(systems.Unsupported, match="SIGCHLD: it is ignored"):
                ask()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_machine_without_connections_to_itself(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no such address")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for ask in (
        systems.require_loopback,
        systems.require_all,
        lambda: exchanges.exchange("processes, TCP"),
    ):
        with pytest.raises(systems.Unsupported, match=r"127\.0\.0\.1: .* no such address"):
            ask()
