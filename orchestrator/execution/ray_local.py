"""Start a Ray of our own on loopback, or connect to a cluster."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, utils, worker
from ray.job_config import JobConfig

from orchestrator.errors import ClusterError
from orchestrator.execution.options import Resources
from orchestrator.execution.ray_liveness import forget, kill_stragglers, watched
from orchestrator.execution.ray_patches import minimal_processes, patched
from orchestrator.execution.ray_security import check_loopback, new_token
from orchestrator.execution.ray_session_folder import (
    RAY,
    check_temporary_folder,
    kill_ray_processes,
    session_folder,
)
from orchestrator.system.machine import environment_variables
from orchestrator.system.signals import RAISED, allow_interrupt, defer_signals, pending, reinstall_handlers

# A worker that is used again waits for the end of the thread of the trial before; 2 s are Tune's own.
IN_WORKERS = {"OMP_NUM_THREADS": "1", "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60"}
OWN = IN_WORKERS | {
    # Workers import it as they start, and are then kept until they are needed.
    "RAY_preload_python_modules": "orchestrator.execution.worker_preload",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback alone
    # It would kill workers for what others use; where the kernel kills one, that costs its trial a try.
    "RAY_memory_monitor_refresh_ms": "0",
    # CUDA_VISIBLE_DEVICES stays as it is for what asks for no GPU, which is what Ray is going over to.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The one node is this machine: it is busy when it does not answer for a while, not gone.
    "RAY_health_check_failure_threshold": "1000",
}
CONNECT_SECONDS = 5.0
LOCAL = ("127.0.0.1", "localhost", "::1")
for _name in ("ray", "ray.tune", "ray.tune.execution.tune_controller"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
Node = Mapping[str, Any]  # as ray.nodes() gives it


class _NoFolder(JobConfig):
    """Workers would put the folder we stand in first on their path, and import a `models` that lies there.

    An empty working_dir has the same effect, and costs 2 s at the start of the first workers.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def local_ray(resources: Resources, *, ready: int = 0) -> Iterator[None]:
    """A Ray of our own that listens on loopback alone, and asks for a token of its own.

    So many workers are started at once: they get `ready` while the block goes on. ClusterError where it does
    not start, or listens elsewhere.
    """
    with (
        _private_folder(sockets=True) as folder,
        environment_variables(OWN),
        new_token(),
        _loopback(only=True),
        watched(folder),
        patched(worker, print_to_stdstream=_say_nothing),
    ):
        try:
            with minimal_processes(folder, ready=ready):
                _start(
                    "Ray did not start",
                    address="local",
                    num_cpus=resources.cpus,
                    num_gpus=resources.gpus,
                    include_dashboard=False,
                    job_config=_NoFolder(),
                    _temp_dir=str(folder / RAY),
                )
            check_loopback()
            with kill_stragglers():
                yield
        finally:
            _shut_down()
            kill_ray_processes(folder)  # what a start that was cut off has left


@contextmanager
def _private_folder(*, sockets: bool) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            if sockets:
                check_temporary_folder()
            folder = stack.enter_context(session_folder())
        except OSError as error:
            raise ClusterError(f"Ray did not start: {error}") from error
        yield folder


@contextmanager
def connect_cluster(address: str) -> Iterator[None]:
    """A Ray cluster that somebody else has started. ClusterError where there is none."""
    _check_address(address)
    with _loopback(only=_on_loopback(address)), _private_folder(sockets=False) as folder:
        empty = folder / "empty"
        empty.mkdir()
        _start(
            f"no Ray cluster could be joined at {address}",
            address=address,
            runtime_env={"working_dir": str(empty), "env_vars": IN_WORKERS},
        )
        try:
            yield
        finally:
            _shut_down()


def _say_nothing(*what: object, **options: object) -> None:
    """Ray tells of its processes' deaths on the terminal; a sweep has words of its own for them."""


def _start(failure: str, **options: Any) -> None:  # whatever ray.init takes
    try:
        with defer_signals(), allow_interrupt(), _no_handler():
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (Exception, KeyboardInterrupt) as error:  # Ray raises bare ones, as "timed out during startup"
        forget()
        ray.shutdown()  # what has started of it
        if pending():  # in the midst of Ray's C++ it comes out as a SystemError
            raise KeyboardInterrupt(RAISED) from None
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"{failure}: {reason}") from error


def _check_address(address: str) -> None:
    """ClusterError, at once, for what is no address or does not answer; Ray would try for a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ClusterError(
            f"--address {address!r}: expected HOST:PORT of a Ray cluster's head, as 10.0.0.1:6379, or auto; "
            "the sweep is to be started on a node of the cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}; `ray status` on its head shows whether it runs, "
            "and without --address and RAY_ADDRESS a sweep starts a Ray of its own"
        ) from error


def _on_loopback(address: str) -> bool:
    """Whether a head here listens as 127.0.0.1, for which Ray would put another address of this machine."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None) or ""
    host, _, port = address.rpartition(":")
    return host in LOCAL and f"127.0.0.1:{port}" in services.find_gcs_addresses()  # type: ignore[no-untyped-call]  # ray's


def _shut_down() -> None:
    """No other thread may meanwhile collect what refers to Ray: that would end the process."""
    forget()
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


@contextmanager
def _no_handler() -> Iterator[None]:
    """Ray puts a handler for SIGTERM in the place of ours, and its C++ another, which aborts in the end."""
    try:
        with patched(utils, set_sigterm_handler=lambda handler: None):
            yield
    finally:
        reinstall_handlers()


def _loopback(*, only: bool) -> AbstractContextManager[None]:
    """What ray has read of its environment as it was imported, which may be before us."""
    return patched(ray_constants, ENABLE_RAY_CLUSTER=not only)


def living_nodes() -> list[Node]:
    """The living nodes of the cluster that this process has joined."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray's
