"""Which process a run belongs to, and whether it still lives."""

from __future__ import annotations

import socket

import psutil


def owner() -> str:
    """This process, so that another can tell whether it still lives: host, pid and start time."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def on_this_host(text: str) -> bool:
    """Whether an owner is, or was, a process of this host."""
    return text.partition(" ")[0] == socket.gethostname()


def owner_lives(text: str) -> bool:
    """False only where the owner was on this host and is gone; another host's is taken to live."""
    parts = text.split()
    if len(parts) != 3 or parts[0] != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(parts[1])).create_time() - float(parts[2])) < 1
    except psutil.Error:
        return False
