"""The start of the server that renders formulas, with servers that are slow to listen."""

import sys
import time

import pytest
from sphinxcontrib.katex import KaTeXError, KaTeXServer

from press import katex_server

# Stands in for node: binds its socket, listens after a while and greets whoever comes.
SLOW = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
time.sleep(float(sys.argv[2]))
server.listen()
server.accept()[0].sendall(b"hello")
"""


@pytest.fixture
def slow(monkeypatch):
    def listen_after(seconds):
        def command(socket):
            return [sys.executable, "-c", SLOW, str(socket), str(seconds)]

        monkeypatch.setattr(KaTeXServer, "build_command", command)

    return listen_after


def test_a_socket_that_stands_before_it_listens_is_waited_for(slow, tmp_path):
    slow(0.3)
    process, connection = katex_server.start(tmp_path, 20)
    with process, connection:
        assert connection.recv(5) == b"hello"


def test_a_server_that_never_listens_is_killed(slow, tmp_path, monkeypatch):
    slow(60)
    started = []
    popen = katex_server.subprocess.Popen

    def remember(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(katex_server.subprocess, "Popen", remember)
    begun = time.monotonic()
    with pytest.raises(KaTeXError):
        katex_server.start(tmp_path, 0.5)
    assert time.monotonic() - begun < 20
    assert started[0].wait(20) != 0
