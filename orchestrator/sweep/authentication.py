"""Ray's token authentication: a random token for each sweep, which no other user of the machine can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from orchestrator.sweep.environment import variables

TOKEN = "RAY_AUTH_TOKEN"


@contextmanager
def new_token() -> Iterator[str]:
    """Within the block, what Ray starts here asks everybody for the token, and has it in its environment.

    /proc/PID/environ can be read by the process's owner alone.
    """
    token = secrets.token_hex(32)
    try:
        with variables({"RAY_AUTH_MODE": "token", TOKEN: token}):
            _read_again()
            yield token
    finally:
        _read_again()


def _read_again() -> None:
    """Ray reads these variables once, as it is imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def kill_holders(token: str) -> None:
    """Kill every other process that has the token: Ray's own and its workers, whoever their parent is now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                process.kill()
