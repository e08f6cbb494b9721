"""Start a Ray of our own on loopback, or connect to a cluster."""

from __future__ import annotations

import gc
import logging
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig

from orchestrator.errors import ClusterError
from orchestrator.execution.ray_cleanup import (
    RAY,
    check_temporary_folder,
    forget,
    kill_ray_processes,
    kill_stragglers,
    session_folder,
    watched,
)
from orchestrator.execution.ray_patches import (
    head_address,
    is_head_here,
    keep_signal_handlers,
    loopback_only,
    minimal_processes,
    quiet_deaths,
    reload_token,
)
from orchestrator.execution.resources import Resources
from orchestrator.system.machine import environment_variables
from orchestrator.system.signals import RAISED, SignalHandler

# A worker that is used again waits for the end of the thread of the trial before; 2 s are Tune's own.
IN_WORKERS = {"OMP_NUM_THREADS": "1", "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60"}
ENVIRONMENT = IN_WORKERS | {
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


class _NoWorkingDir(JobConfig):
    """Keep workers from putting this process's working folder on their path: a `models` may lie there.

    An empty working_dir has the same effect, and costs 2 s at the start of the first workers.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


@contextmanager
def local_ray(resources: Resources, signals: SignalHandler, *, ready: int = 0) -> Iterator[None]:
    """Run a Ray of our own within the block, on loopback alone and with a token of its own.

    `ready` workers are started at once, and import while the block goes on. ClusterError if Ray does not
    start, or listens on other addresses.
    """
    with (
        _private_folder(signals, sockets=True) as folder,
        environment_variables(ENVIRONMENT),
        new_token(),
        loopback_only(True),
        watched(folder, signals),
        quiet_deaths(),
    ):
        try:
            with minimal_processes(folder, ready=ready):
                _start(
                    "Ray did not start",
                    signals,
                    address="local",
                    num_cpus=resources.cpus,
                    num_gpus=resources.gpus,
                    include_dashboard=False,
                    job_config=_NoWorkingDir(),
                    _temp_dir=str(folder / RAY),
                )
            check_loopback()
            with kill_stragglers(signals):
                yield
        finally:
            _shut_down()
            kill_ray_processes(folder)  # of a start that was cut off


@contextmanager
def _private_folder(signals: SignalHandler, *, sockets: bool) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            if sockets:
                check_temporary_folder()
            folder = stack.enter_context(session_folder(signals))
        except OSError as error:
            raise ClusterError(f"Ray did not start: {error}") from error
        yield folder


@contextmanager
def connect_cluster(address: str, signals: SignalHandler) -> Iterator[None]:
    """Connect to a Ray cluster that is running already. ClusterError if there is none at `address`."""
    _check_address(address)
    with (
        loopback_only(_listens_on_loopback(address)),
        _private_folder(signals, sockets=False) as folder,
    ):
        empty = folder / "empty"
        empty.mkdir()
        _start(
            f"no Ray cluster could be joined at {address}",
            signals,
            address=address,
            runtime_env={"working_dir": str(empty), "env_vars": IN_WORKERS},
        )
        try:
            yield
        finally:
            _shut_down()


def _start(failure: str, signals: SignalHandler, **options: Any) -> None:  # whatever ray.init takes
    try:
        with signals.deferring(), signals.interruptible():
            try:
                with keep_signal_handlers():
                    ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **options)
            finally:
                signals.reinstall()  # Ray's C++ has put another in their place, which aborts in the end
    except (Exception, KeyboardInterrupt) as error:  # Ray raises bare ones, as "timed out during startup"
        forget()
        ray.shutdown()  # what has started of it
        if signals.is_interrupted:  # in the midst of Ray's C++ it comes out as a SystemError
            raise KeyboardInterrupt(RAISED) from None
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"{failure}: {reason}") from error


def _check_address(address: str) -> None:
    """Raise ClusterError for what is no address or does not answer. Ray itself would try for a minute."""
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


def _listens_on_loopback(address: str) -> bool:
    """Return whether a head here listens as 127.0.0.1, for which Ray would put another of its addresses."""
    host, _, port = (head_address() if address == "auto" else address).rpartition(":")
    return host in LOCAL and is_head_here(f"127.0.0.1:{port}")


def _shut_down() -> None:
    """Shut Ray down with the garbage collector off.

    Another thread that collects an object of Ray's meanwhile would end the process.
    """
    forget()
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def living_nodes() -> list[Node]:
    """Return the living nodes of the cluster that this process has joined."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray's


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


ANSWER_SECONDS = 60


def measure_ray_startup() -> float:
    """Return the seconds from nothing to the answer of a first worker. ClusterError if Ray does not start."""
    started = perf_counter()
    with local_ray(Resources(cpus=1, gpus=0, gpus_per_trial=1.0, concurrent=1), SignalHandler()):
        ray.get(ray.remote(_answer).remote(), timeout=ANSWER_SECONDS)
        return perf_counter() - started


def _answer() -> bool:
    return True
