"""The server that renders formulas while the site is built, started without a race."""

import socket
import subprocess
import time
from pathlib import Path

from sphinxcontrib.katex import KaTeXServer


def start(rundir: Path, timeout: float) -> tuple[subprocess.Popen, socket.socket]:
    """Start the server that renders formulas, and connect to it.

    The library connects as soon as the socket's file stands, which is a moment before the server
    listens: on a busy machine that is refused.

    Args:
        rundir: an empty folder for the socket.
        timeout: seconds to wait.

    Returns:
        The process and the connection.

    Raises:
        sphinxcontrib.katex.KaTeXError: if the server does not listen in time; it is killed then.
    """
    path = rundir / "katex.sock"
    pipe = subprocess.PIPE
    command = KaTeXServer.build_command(socket=path)
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=rundir)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return process, connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.001)
    process.kill()
    raise KaTeXServer.timeout_error(timeout)
