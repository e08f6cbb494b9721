"""Ray's token authentication: a random token for each sweep, which no other user of the machine can read."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from orchestrator.environment_variables import environment_variables


@contextmanager
def new_token() -> Iterator[None]:
    """Within the block, what Ray starts here asks everybody for the token, and has it in its environment.

    /proc/PID/environ can be read by the process's owner alone.
    """
    try:
        with environment_variables({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            _read_again()
            yield
    finally:
        _read_again()


def _read_again() -> None:
    """Ray reads these variables once, as it is imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
