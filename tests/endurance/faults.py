"""What is done to a sweep: who is killed, and what a sweep has to do about it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from descendants import named
from disk import fill
from server import Server

AWAY_SECONDS = 8.0  # at most, for a server
ROOM_BYTES = 200_000  # at most, on a full disk: for a run or two
WORKER = "ray::ImplicitFunc"  # the process that runs a trial, as Ray names it


@dataclass(frozen=True)
class World:
    """What a fault can reach beside the sweep itself."""

    dice: random.Random
    server: Server | None = None
    disk: Path | None = None


Strike = Callable[[subprocess.Popen[bytes], World], int | None]


@dataclass(frozen=True)
class Fault:
    """`strike` returns the exit code that is due, 0 if the sweep goes on, None if there was nobody to hit."""

    strike: Strike
    seconds: float = 0.0  # within which the sweep ends; 0 if it goes on
    last_words: str = ""  # in what it says
    is_early: bool = True  # can be done before a trial runs


def kill_driver(process: subprocess.Popen[bytes], world: World) -> int | None:
    process.kill()
    return -signal.SIGKILL


def interrupt(process: subprocess.Popen[bytes], world: World) -> int | None:
    """As Ctrl-C or a batch system does it."""
    number = world.dice.choice([signal.SIGINT, signal.SIGTERM])
    process.send_signal(number)
    return 128 + number


def kill_worker(process: subprocess.Popen[bytes], world: World) -> int | None:
    return 0 if _kill_below(process, WORKER, world.dice) else None


def kill_raylet(process: subprocess.Popen[bytes], world: World) -> int | None:
    return 4 if _kill_below(process, "raylet", world.dice) else None


def kill_gcs(process: subprocess.Popen[bytes], world: World) -> int | None:
    return 4 if _kill_below(process, "gcs_server", world.dice) else None


def fill_disk(process: subprocess.Popen[bytes], world: World) -> int | None:
    assert world.disk is not None
    fill(world.disk, but=world.dice.randrange(ROOM_BYTES))
    return 4


def kill_server(process: subprocess.Popen[bytes], world: World) -> int | None:
    """And start it again after some seconds."""
    assert world.server is not None
    world.server.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(world.dice.uniform(0.0, AWAY_SECONDS))
    world.server.start()
    return 0


RAY_DIED = "Ray died; the same command carries on"
FAULTS = {
    "driver": Fault(kill_driver, seconds=5.0),
    "interrupt": Fault(interrupt, seconds=60.0),
    "worker": Fault(kill_worker, is_early=False),
    "raylet": Fault(kill_raylet, seconds=10.0, last_words=RAY_DIED),
    "gcs_server": Fault(kill_gcs, seconds=10.0, last_words=RAY_DIED),
    "disk": Fault(fill_disk, seconds=90.0, last_words="no room is left", is_early=False),
    "server": Fault(kill_server, is_early=False),
}
EVERYWHERE = ["driver", "interrupt", "worker", "raylet", "gcs_server"]


def _kill_below(process: subprocess.Popen[bytes], name: str, dice: random.Random) -> bool:
    """Kill one of that name below the sweep, as soon as there is one; whether the sweep lasted until then."""
    while process.poll() is None:
        if targets := named(name, process.pid):
            with suppress(psutil.NoSuchProcess):
                os.kill(dice.choice(targets).pid, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False
