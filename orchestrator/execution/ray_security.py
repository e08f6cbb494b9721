"""Ray's token, and a check that everything listens on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import psutil

from orchestrator.errors import ClusterError
from orchestrator.execution.ray_patches import reload_token
from orchestrator.system.machine import environment_variables


@contextmanager
def new_token() -> Iterator[None]:
    """Have Ray's processes that start within the block ask every client for a new token.

    They have it in their environment: /proc/PID/environ can be read by the process's owner alone.
    """
    try:
        with environment_variables({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            reload_token()
            yield
    finally:
        reload_token()


def check_loopback() -> None:
    """Raise ClusterError if this process, or one below it, listens where other machines could connect."""
    exposed = sorted({address for address in listeners() if not _is_loopback(address)})
    if exposed:
        addresses = ", ".join(f"{host}:{port}" for host, port in exposed)
        raise ClusterError(
            f"Ray listens on {addresses}, and may listen on 127.0.0.1 alone; nothing was run: this version "
            "of Ray does not keep to loopback, install the one in requirements.lock"
        )


def listeners() -> Iterator[tuple[str, int]]:
    """Yield (host, port) of every TCP listener of this process and those below it."""
    current = psutil.Process()
    for process in (current, *current.children(recursive=True)):
        with suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    yield connection.laddr.ip, connection.laddr.port


def _is_loopback(address: tuple[str, int]) -> bool:
    host = ip_address(address[0])
    mapped = getattr(host, "ipv4_mapped", None)
    return (mapped or host).is_loopback
