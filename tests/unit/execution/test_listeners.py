"""What a sweep listens on: looked at with the kernel's own list, in this process and those below it."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from orchestrator.errors import ClusterError
from orchestrator.execution.ray_start import check_loopback, listeners

LISTENS = """
import socket, sys
host, family = sys.argv[1], getattr(socket, sys.argv[2])
server = socket.create_server((host, 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("host", "family", "refused"),
    [
        ("127.0.0.1", "AF_INET", False),
        ("::1", "AF_INET6", False),
        ("::ffff:127.0.0.1", "AF_INET6", False),
        ("0.0.0.0", "AF_INET", True),
        ("::", "AF_INET6", True),
    ],
)
def test_a_listener_of_a_child_is_refused_unless_it_is_on_loopback(
    host: str, family: str, refused: bool
) -> None:
    if family == "AF_INET6" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LISTENS, host, family], text=True, **pipes) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert (host, port) in set(listeners())
        if refused:
            with pytest.raises(
                ClusterError, match=rf"listens on {host}:{port}, and may listen on 127\.0\.0\.1"
            ):
                check_loopback()
        else:
            check_loopback()
        child.communicate("")


def test_one_of_this_process_is_seen_too() -> None:
    check_loopback()
    with socket.create_server(("0.0.0.0", 0)), pytest.raises(ClusterError):
        check_loopback()
