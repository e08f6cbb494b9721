"""Which processes a Ray of our own starts: workers ahead of their trials, and none that no sweep asks."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ray._private import node, parameter, services

from orchestrator.sweep.replaced import replaced

STAND_IN = Path(__file__).with_name("stand_in.py")
AGENT, AHEAD = "--dashboard_agent_command=", "--num_prestart_python_workers="


@contextmanager
def only_needed(*, ready: int) -> Iterator[None]:
    """Ray starts `ready` workers ahead, and not one for every core, nor what scales a cluster, follows its
    logs or answers for a dashboard: each is a Python that imports for a second.
    """
    fewer = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)  # type: ignore[arg-type]  # ray's
    start = services.start_ray_process

    def started(command: list[str], *place: Any, **options: Any) -> Any:  # Ray's own
        return start([changed(word, ready) for word in command], *place, **options)

    with (
        replaced(parameter, RayParams=fewer),
        replaced(node.Node, start_api_server=_without_page),
        replaced(services, start_ray_process=started),
    ):
        yield


def changed(word: str, ready: int) -> str:
    """A word of the command that starts the raylet, as it is to be."""
    if word.startswith(AHEAD):
        return f"{AHEAD}{ready}"
    if not word.startswith(AGENT):
        return word
    given = dict(option.partition("=")[::2] for option in shlex.split(word.removeprefix(AGENT)))
    place = [given["--session-dir"], given["--node-id"]]
    return AGENT + subprocess.list2cmdline([sys.executable, "-I", "-S", str(STAND_IN), *place])


def _without_page(node: Any, **options: Any) -> None:  # Ray's own
    node._webui_url = ""
