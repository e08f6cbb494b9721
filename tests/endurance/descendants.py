"""The processes below this one, orphans too: whose parent dies becomes a child of ours (Linux)."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

import psutil

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def adopt_orphans() -> None:
    """From now on no process that is started below this one leaves the tree."""
    if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def living(*, but: int = 0) -> list[psutil.Process]:
    """Every process below this one, without the tree below `but` and what is dead and only not yet buried."""
    spared = {but} | {child.pid for child in _below(but)} if but else set()
    bury(but=but)
    return [child for child in _below(os.getpid()) if child.pid not in spared and not _is_dead(child)]


def bury(*, but: int = 0) -> None:
    """Free the pids of dead orphans, as init would; `but` is waited for by who started it."""
    with suppress(psutil.Error):
        for child in psutil.Process().children():
            if child.pid != but and _is_dead(child):
                with suppress(OSError):
                    os.waitpid(child.pid, os.WNOHANG)


def leftovers(seconds: float, *, but: int = 0) -> list[str]:
    """What still lives after so many seconds, by name; all of it is killed then."""
    end = time.monotonic() + seconds
    while (left := living(but=but)) and time.monotonic() < end:
        time.sleep(0.1)
    names = [shown(child) for child in left]
    for child in left:
        with suppress(psutil.Error):
            child.kill()
    return names


def named(name: str, below: int) -> list[psutil.Process]:
    """The living processes below one whose command has this in its first word."""
    return [child for child in _below(below) if name in _first_word(child) and not _is_dead(child)]


def shown(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())[:80]
    return f"pid {process.pid}"


def _first_word(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1])
    return ""


def _below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _is_dead(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True
