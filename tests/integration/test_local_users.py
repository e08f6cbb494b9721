"""What another user of this machine can do to a running sweep: every port tried, nothing gained.

The attacker has the ports, and is first shown to get in where there is no token.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from local_attacker import NO_GRPC, NOBODY
from server import Server

from orchestrator.errors import ClusterError
from orchestrator.execution import ray_patches, ray_start
from orchestrator.execution.ray_start import listeners, local_ray, new_token
from orchestrator.execution.resources import Resources
from orchestrator.system.signals import SignalHandler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
]

ATTACKER = str(Path(__file__).parents[1] / "local_attacker.py")
ONE = Resources(cpus=1, gpus=0, gpus_per_trial=1.0, concurrent=1)
UNAUTHENTICATED, UNIMPLEMENTED = "16", "12"  # of gRPC's status codes
# One call of every service that Ray's processes have; what is not there is "unimplemented".
CALLS = [
    "InternalKVGcsService/InternalKVPut",
    "InternalKVGcsService/InternalKVGet",
    "JobInfoGcsService/AddJob",
    "ActorInfoGcsService/RegisterActor",
    "NodeInfoGcsService/GetAllNodeInfo",
    "PlacementGroupInfoGcsService/CreatePlacementGroup",
    "WorkerInfoGcsService/AddWorkerInfo",
    "TaskInfoGcsService/GetTaskEvents",
    "InternalPubSubGcsService/GcsPublish",
    "RuntimeEnvGcsService/PinRuntimeEnvURI",
    "NodeResourceInfoGcsService/GetAllResourceUsage",
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/GetNodeStats",
    "NodeManagerService/ShutdownRaylet",
    "ObjectManagerService/Push",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/KillActor",
    "CoreWorkerService/Exit",
    "CoreWorkerService/GetCoreWorkerStats",
]


def attack(ports: list[int], calls: list[str] = CALLS) -> Mapping[str, str]:
    """What every port answers to every call without a token and with a wrong one."""
    words = [sys.executable, ATTACKER, "call", json.dumps(ports), json.dumps(calls)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))


def write(address: str, **environment: str) -> str:
    """The last line of what a foreign client of Ray's says."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, ATTACKER, "write", address],
        env=bare | {"RAY_AUTH_MODE": "disabled"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def ports() -> list[int]:
    return sorted({port for _, port in listeners()})


def address() -> str:
    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def ray_at_work() -> Iterator[None]:
    """A Ray of our own with a worker."""
    with local_ray(ONE, SignalHandler()):
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        yield


def test_without_a_token_the_attack_works(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_token() -> Iterator[None]:
        yield

    monkeypatch.setattr(ray_start, "new_token", no_token)
    monkeypatch.setitem(ray_start.ENVIRONMENT, "RAY_AUTH_MODE", "disabled")
    monkeypatch.delitem(ray_start.ENVIRONMENT, "RAY_preload_python_modules")  # seconds, for no trial
    with ray_at_work():
        assert write(address()) == "written 1"
        answers = attack(ports(), ["InternalKVGcsService/InternalKVPut"])
        assert "0" in answers.values()


def test_a_ray_that_listens_for_other_machines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ray_start.ENVIRONMENT, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setattr(
        ray_start,
        "loopback_only",
        lambda is_local: ray_patches.patched(ray_patches.ray_constants, ENABLE_RAY_CLUSTER=True),
    )
    with (
        pytest.raises(ClusterError, match=r"Ray listens on .*:\d+, and may listen on 127\.0\.0\.1 alone"),
        local_ray(ONE, SignalHandler()),
    ):
        pytest.fail("it went on")
    assert not ray.is_initialized()
    assert not [child for child in psutil.Process().children() if "ray" in child.name()]


@pytest.fixture(autouse=True, scope="module")
def _no_other_listener(session_server: Server) -> None:
    session_server.kill()


@pytest.fixture(scope="module")
def at_work(_no_other_listener: None) -> Iterator[None]:
    with ray_at_work():
        yield


def test_with_one_every_listener_refuses(at_work: None) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {process.name() for process in family if _listens(process)}
    assert {"gcs_server", "raylet"} <= listening
    found = attack(ports())
    assert len(ports()) >= 5  # the GCS, the raylet's two, its agent, this process, the worker
    by_port: dict[str, set[str]] = {}
    for name, answer in found.items():
        by_port.setdefault(name.split()[0], set()).add(answer)
    for port, answers in by_port.items():
        assert answers <= {UNAUTHENTICATED, UNIMPLEMENTED} or answers == {NO_GRPC, "401"}, (port, found)
        assert answers & {UNAUTHENTICATED, "401"}, (port, found)
    for variables in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        assert "written" not in write(address(), **variables)
    assert ray.get(ray.remote(lambda: 2).remote()) == 2  # and all goes on as before


def _listens(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("tcp"))


def test_its_token_and_its_files_are_for_its_user_alone(at_work: None) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if token in " ".join(child.cmdline())]
    folder = Path(ray._private.worker._global_node.get_session_dir_path()).parent.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.getuid()
    read = f"import os; os.setuid({NOBODY}); os.listdir({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    # Ray's own, before it has started anything, are of this process's umask; nobody gets to them.
    assert sum(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in files) > len(files) / 2
    assert not [path for path in files if token.encode() in path.read_bytes()]


def test_every_sweep_has_a_token_of_its_own() -> None:
    before = os.environ.get("RAY_AUTH_TOKEN")
    with new_token():
        first = os.environ["RAY_AUTH_TOKEN"]
        with new_token():
            assert os.environ["RAY_AUTH_TOKEN"] != first
    assert os.environ.get("RAY_AUTH_TOKEN") == before
