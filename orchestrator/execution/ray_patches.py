"""Patches of Ray's internals."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ray._private import node, parameter, services

from orchestrator.execution.ray_liveness import watch
from orchestrator.execution.ray_session_folder import SESSION, WORKERS


@contextmanager
def patched(place: Any, **values: Any) -> Iterator[None]:  # a module or a class, and whatever it holds
    """Within the block the attributes of `place` have these values."""
    before = {name: getattr(place, name) for name in values}
    for name, value in values.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


STAND_IN = Path(__file__).with_name("dashboard_agent_stub.py")
UMASK = "ORCHESTRATE_UMASK"  # of the process that started Ray, for its workers
LOOK_SECONDS = 0.01
AGENT, AHEAD = "--dashboard_agent_command=", "--num_prestart_python_workers="


@contextmanager
def minimal_processes(folder: Path, *, ready: int) -> Iterator[None]:
    """Ray starts `ready` workers ahead, and not one for every core, nor what scales a cluster, follows its
    logs or answers for a dashboard: each is a Python that imports for a second. What they write is for this
    user alone, temporary files of workers in the session's `folder`, and nothing to the terminal.
    """
    fewer = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False, session_name=SESSION)  # type: ignore[arg-type]  # ray's
    start, private = services.start_ray_process, partial(services.ConsolePopen, umask=0o077)
    quiet = {"RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal")}
    wait = node.wait_for_persisted_port  # type: ignore[attr-defined]  # compiled
    (folder / WORKERS).mkdir()
    inherited = {**quiet, UMASK: f"{_umask():o}", "TMPDIR": str(folder / WORKERS)}

    def started(command: list[str], *place: Any, **options: Any) -> Any:  # Ray's own
        options["env_updates"] = {**(options.get("env_updates") or {}), **inherited}
        information = start([rewrite_arguments(word, ready) for word in command], *place, **options)
        watch(Path(command[0]).name, information.process)
        return information

    with (
        patched(parameter, RayParams=fewer),
        patched(node, wait_for_persisted_port=partial(_wait_for_port, wait)),
        patched(node.Node, start_api_server=_without_page),
        patched(services, start_ray_process=started, ConsolePopen=private),
    ):
        yield


def _wait_for_port(
    wait: Callable[..., int], folder: str, node_id: str, name: str, *, timeout_ms: int = 30_000
) -> int:
    """Ray's own wait lets no other thread run, so that none could see that the process has died."""
    deadline = monotonic() + timeout_ms / 1000
    while not any(Path(folder).glob(f"{name}_*")) and monotonic() < deadline:
        sleep(LOOK_SECONDS)
    return wait(folder, node_id, name, timeout_ms=timeout_ms)


def _umask() -> int:
    """This process's own; there is no way to ask for it without setting it."""
    before = os.umask(0o077)
    os.umask(before)
    return before


def restore_umask() -> None:
    """In a worker: what it writes into the store is for whom this user's files are for."""
    if UMASK in os.environ:
        os.umask(int(os.environ[UMASK], 8))


def rewrite_arguments(word: str, ready: int) -> str:
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
