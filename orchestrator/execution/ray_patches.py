"""Patches of Ray's internals: all that this project uses of Ray's private modules, save Tune's.

Each patch checks that what it replaces is there, and raises ClusterError if not: a later Ray may have
moved it. `missing_internals` names what is missing without starting Ray.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import ray
from ray import _raylet
from ray._private import node, parameter, ray_constants, services, utils, worker
from ray.experimental import internal_kv as internal_kv

from orchestrator.errors import ClusterError
from orchestrator.execution.ray_cleanup import SESSION, WORKERS, watch

INTERNALS: tuple[tuple[Any, tuple[str, ...]], ...] = (  # modules and classes, whose stubs lack these names
    (parameter, ("RayParams",)),
    (node, ("Node", "wait_for_persisted_port")),
    (node.Node, ("start_api_server",)),
    (services, ("start_ray_process", "ConsolePopen", "find_bootstrap_address", "find_gcs_addresses")),
    (utils, ("set_sigterm_handler",)),
    (worker, ("print_to_stdstream",)),
    (ray_constants, ("ENABLE_RAY_CLUSTER",)),
    (_raylet, ("Config", "AuthenticationTokenLoader")),
    (internal_kv, ("_internal_kv_put", "_internal_kv_get", "_internal_kv_del")),
)


def missing_internals() -> list[str]:
    """Return the dotted names of the internals of Ray that this version of it does not have."""
    return missing_of(INTERNALS)


def missing_of(internals: tuple[tuple[Any, tuple[str, ...]], ...]) -> list[str]:
    """Return the dotted names among `internals`, (module or class, attributes), that are not there."""
    return [_dotted(owner, name) for owner, names in internals for name in names if not hasattr(owner, name)]


def _dotted(owner: Any, name: str) -> str:  # of a module, or of a class in one
    is_class = isinstance(owner, type)
    return f"{owner.__module__}.{owner.__qualname__}.{name}" if is_class else f"{owner.__name__}.{name}"


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:  # a module or a class, and whatever it holds
    """Give attributes of `owner` other values within the block. ClusterError if it lacks one of them."""
    if missing := [_dotted(owner, name) for name in values if not hasattr(owner, name)]:
        raise ClusterError(
            f"Ray {ray.__version__} has no {', '.join(missing)}, which a sweep replaces; install the version "
            "in requirements.lock"
        )
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def keep_signal_handlers() -> AbstractContextManager[None]:
    """Keep Ray from installing its handler for SIGTERM in place of ours."""
    return patched(utils, set_sigterm_handler=lambda handler: None)


def loopback_only(is_local: bool) -> AbstractContextManager[None]:
    """Let Ray listen on loopback alone, or on all interfaces.

    Ray reads this from its environment when it is imported, which may be before us.
    """
    return patched(ray_constants, ENABLE_RAY_CLUSTER=not is_local)


def quiet_deaths() -> AbstractContextManager[None]:
    """Keep Ray from printing that one of its processes died: a sweep has a message of its own for that."""
    return patched(worker, print_to_stdstream=lambda *args, **options: None)


def head_address() -> str:
    """Return HOST:PORT of the cluster that `auto` stands for, or nothing."""
    return os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None) or ""


def is_head_here(address: str) -> bool:
    """Return whether a head on this machine listens on `address`, HOST:PORT."""
    return address in services.find_gcs_addresses()  # type: ignore[no-untyped-call]  # ray's


def reload_token() -> None:
    """Read the token for Ray from the environment again: Ray does it once, when it is imported."""
    _raylet.Config.initialize("")  # type: ignore[attr-defined]  # compiled
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]  # compiled


# The agent itself imported for 1 s while the raylet, and so the first worker, waited (docs/benchmarks.md).
AGENT_STUB = Path(__file__).with_name("dashboard_agent_stub.py")
UMASK = "ORCHESTRATE_UMASK"  # of the process that started Ray, for its workers
POLL_SECONDS = 0.01
AGENT_OPTION, PRESTART_OPTION = "--dashboard_agent_command=", "--num_prestart_python_workers="


@contextmanager
def minimal_processes(folder: Path, *, ready: int) -> Iterator[None]:
    """Start Ray with `ready` workers and without its autoscaler, log monitor and dashboard.

    By itself Ray starts a worker for every core, and each of those others is a Python that imports for a
    second. What they write is for this user alone; temporary files of workers lie in the session's
    `folder`, and nothing goes to the terminal.
    """
    fewer = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False, session_name=SESSION)  # type: ignore[arg-type]  # ray's
    start, private = services.start_ray_process, partial(services.ConsolePopen, umask=0o077)
    quiet = {"RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal")}
    wait = node.wait_for_persisted_port  # type: ignore[attr-defined]  # compiled
    (folder / WORKERS).mkdir()
    inherited = {**quiet, UMASK: f"{_umask():o}", "TMPDIR": str(folder / WORKERS)}

    def start_and_watch(command: list[str], *args: Any, **options: Any) -> Any:  # Ray's own
        options["env_updates"] = {**(options.get("env_updates") or {}), **inherited}
        information = start([rewrite_arguments(word, ready) for word in command], *args, **options)
        watch(Path(command[0]).name, information.process)
        return information

    # The dashboard is not used, and its server took 1.2 s of the start (docs/benchmarks.md).
    def start_no_server(node: Any, **options: Any) -> None:  # Ray's own
        node._webui_url = ""

    with (
        patched(parameter, RayParams=fewer),
        patched(node, wait_for_persisted_port=partial(_wait_for_port, wait)),
        patched(node.Node, start_api_server=start_no_server),
        patched(services, start_ray_process=start_and_watch, ConsolePopen=private),
    ):
        yield


def _wait_for_port(
    wait: Callable[..., int], folder: str, node_id: str, name: str, *, timeout_ms: int = 30_000
) -> int:
    """Wait for the file of a port, and return the port.

    Ray's own wait lets no other thread run, so that none could see that the process has died.
    """
    deadline = monotonic() + timeout_ms / 1000
    while not any(Path(folder).glob(f"{name}_*")) and monotonic() < deadline:
        sleep(POLL_SECONDS)
    return wait(folder, node_id, name, timeout_ms=timeout_ms)


def _umask() -> int:
    """Return this process's umask, which can only be read by setting it."""
    before = os.umask(0o077)
    os.umask(before)
    return before


def restore_umask() -> None:
    """Give a worker the umask of the process that started Ray: it writes into that user's store."""
    if UMASK in os.environ:
        os.umask(int(os.environ[UMASK], 8))


def rewrite_arguments(word: str, ready: int) -> str:
    """Return a word of the raylet's command line, with `ready` workers and the stub for Ray's agent."""
    if word.startswith(PRESTART_OPTION):
        return f"{PRESTART_OPTION}{ready}"
    if not word.startswith(AGENT_OPTION):
        return word
    options = dict(option.partition("=")[::2] for option in shlex.split(word.removeprefix(AGENT_OPTION)))
    stub = [sys.executable, "-I", "-S", str(AGENT_STUB), options["--session-dir"], options["--node-id"]]
    return AGENT_OPTION + subprocess.list2cmdline(stub)
