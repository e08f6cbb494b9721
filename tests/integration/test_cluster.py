"""A sweep in a Ray cluster that somebody else runs, beside a tracking server: nothing shared but the network.

The second node has a mount namespace of its own, in which the folders of the driver, of the store and of
Ray are empty: what a worker there needs, it must get through Ray and the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from server import Server

import orchestrator
from orchestrator.config import DenseConfig, Numerics, Prune, Train, TrialConfig
from orchestrator.errors import ClusterError, StoreError
from orchestrator.execution.ray_cluster import NodeRequirements, cluster_for_sweep, cluster_gpus
from orchestrator.execution.ray_start import connect_cluster
from orchestrator.execution.resources import cluster_resources
from orchestrator.execution.tune_experiment import run_experiment
from orchestrator.system.provenance import install_path, source_digest
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import RunRecord, Tracker, initialise
from orchestrator.trial.task import Task, WorkerSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
TRIALS = 8
# Loopback has many addresses; Ray puts another of the machine's in the place of 127.0.0.1.
HEAD = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.2"}
SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[64, 64])"]
  dataset: [digits]
  batch_size: [16]
  technique: [weight]
  amount: [50%, 90%]
  seed: [0, 1, 2, 3]
train: {epochs: 25}
recover: finetune(epochs=10)
"""
# The second node's own disk: tmpfs over what the driver, the store and Ray have on this one.
ELSEWHERE = 'for place in "$@"; do mount -t tmpfs none "$place" || exit 9; done; cd /; exec $START'


@contextmanager
def process(words: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with all below it, by their ids."""
    found = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield found
    finally:
        family = psutil.Process(found.pid).children(recursive=True)
        found.terminate()
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        found.wait(timeout=60)


@pytest.fixture(scope="module")
def uri(server: Server) -> str:
    return server.uri


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a cluster of one node with one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
        cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        yield cluster.address
        cluster.shutdown()


@contextmanager
def second_node(address: str, *hidden: Path, hostname: str = "") -> Iterator[None]:
    """Another node on this machine, with one CPU; `hidden` folders are empty for it."""
    start = f"{Path(sys.executable).parent / 'ray'} start --address={address} --num-cpus=1 --block"
    start += " --node-ip-address=127.0.0.3"
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "START": start}
    words = start.split()
    if os.geteuid() == 0:
        named = f"hostname {hostname}; " if hostname else ""
        words = ["unshare", "-m", "-u", "bash", "-c", named + ELSEWHERE, "_", *map(str, hidden)]
    with process(words, env=environment) as found, connect_cluster(address, SignalHandler()):
        for _ in range(240):
            if sum(node["Alive"] for node in ray.nodes()) == 2:
                break
            assert found.poll() is None, "the node ended; are namespaces allowed here?"
            time.sleep(0.5)
        ray.shutdown()
        yield


def test_a_head_that_is_known_as_127_0_0_1_is_joined() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "node_ip_address": "127.0.0.1"})
    try:
        with connect_cluster(cluster.address, SignalHandler()):
            assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    finally:
        cluster.shutdown()


def orchestrate(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def trials(uri: str) -> list[RunRecord]:
    return Tracker(uri, "space").search("tags.kind = 'trial' and attributes.status = 'FINISHED'")


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_two_nodes_that_share_nothing_but_the_network(
    uri: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "driver"
    temporary = driver / "tmp"
    temporary.mkdir(parents=True)
    (driver / "space.yaml").write_text(SPACE)
    settings = {"MLFLOW_TRACKING_URI": uri, "RAY_ADDRESS": head, "TMPDIR": str(temporary)}
    with second_node(head, tmp_path.parent, Path("/tmp/ray")):  # the server's folder is below the first
        done = orchestrate("sweep", "--space", "space.yaml", "--device", "cpu", cwd=driver, **settings)
    assert done.returncode == 0, done.stderr
    assert f"{TRIALS} trials, {TRIALS + 4} runs made" in done.stdout
    assert not (driver / "mlruns").exists()

    found = trials(uri)
    assert len(found) == TRIALS
    assert len({row.tags["node"] for row in found}) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    table = orchestrator.results("space")
    assert list(table["status"]) == ["finished"] * TRIALS
    net, _ = orchestrator.load(f"runs:/{found[0].run_id}")
    assert sum(parameter.numel() for parameter in net.parameters())
    again = orchestrate("sweep", "--space", "space.yaml", "--device", "cpu", cwd=driver, **settings)
    assert again.returncode == 0, again.stderr
    assert f"nothing to do: all {TRIALS} trials are in the store" in again.stdout


def needs(
    uri: str, root: str, *datasets: str, code: str = "", data_dir: str | None = None
) -> NodeRequirements:
    return NodeRequirements(code or source_digest(), uri, root, datasets, data_dir)


def test_a_node_that_cannot_do_its_part_is_named(uri: str, head: str, tmp_path: Path) -> None:
    wanted = cluster_resources("cpu", head)
    good = needs(uri, "mlflow-artifacts:/1", "digits")
    with cluster_for_sweep(wanted, good, SignalHandler()):
        assert ray.is_initialized()
    assert not ray.is_initialized()
    with (
        pytest.raises(ClusterError, match=r"node \S+ \(\S+\) .* another version of the code"),
        cluster_for_sweep(wanted, needs(uri, "mlflow-artifacts:/1", code="0" * 64), SignalHandler()),
    ):
        pass
    with (
        pytest.raises(ClusterError, match=r"node \S+ \(\S+\) .*: mnist: .*absent"),
        cluster_for_sweep(
            wanted,
            needs(uri, "mlflow-artifacts:/1", "mnist", data_dir=str(tmp_path / "absent")),
            SignalHandler(),
        ),
    ):
        pass
    with (
        pytest.raises(ClusterError, match="a trial holds 1 CPU and 1 GPU of one node"),
        cluster_for_sweep(cluster_resources("cuda", head), good, SignalHandler()),
    ):
        pass
    assert cluster_gpus(head, SignalHandler()) == 0


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a host name of its own needs root")
def test_a_store_on_this_disk_is_refused_for_a_node_on_another_host(head: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    with second_node(head, hostname="another-host"):
        done = orchestrate(
            "sweep", "--space", "space.yaml", "--device", "cpu", "--address", head, cwd=tmp_path
        )
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert "has nodes on other hosts (another-host), and the store sqlite://" in line
    assert "mlflow server --serve-artifacts" in line


@pytest.mark.long
def test_the_trials_of_a_lost_node_are_done_on_another(uri: str, head: str, tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text(SPACE)
    tracker = Tracker(uri, "lost")

    def on_the_second() -> bool:
        with suppress(StoreError):
            rows = tracker.search("attributes.status = 'RUNNING' and tags.kind != 'sweep'")
            return len({row.tags["node"] for row in rows}) == 2
        return False

    words = ["sweep", "--space", "lost.yaml", "--device", "cpu", "--address", head]
    words += [
        "--set",
        "train.epochs=60",
    ]  # so that the first node has not done all of it before the second begins
    done: list[subprocess.CompletedProcess[str]] = []
    sweep = Thread(target=lambda: done.append(orchestrate(*words, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)))
    with second_node(head):
        sweep.start()
        while not on_the_second():
            assert sweep.is_alive(), done
            time.sleep(0.7)
        time.sleep(1)
    sweep.join()
    assert done[0].returncode == 0, done[0].stderr
    assert "its worker died; it is tried again (1 of 2)" in done[0].stderr
    rows = tracker.search("tags.kind != 'sweep'")
    assert sorted(row.status for row in rows) == [*["FINISHED"] * (TRIALS + 4), "KILLED"]


@pytest.mark.long
def test_a_worker_killed_by_rays_memory_monitor_costs_its_trial_alone(uri: str) -> None:
    """Tune ends the whole experiment there. Here the monitor finds every worker too large."""
    initialise(uri)
    sweep = Tracker(uri, "memory").start("sweep", "memory", tags={}).run_id
    dense = DenseConfig("slp", "digits", 64, 0, Train(epochs=100_000), Numerics())
    trial = TrialConfig(dense, Prune("magnitude", "weight", "layer", "one_shot", 0.5), "none", "weight")
    points = [
        Task(dense.key(), "dense", dense),
        Task(trial.key(), "weight", trial, parent=dense.key()),
    ]
    config = {"memory_usage_threshold": 0.01, "memory_monitor_refresh_ms": 200}
    cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "_system_config": config})
    try:
        with connect_cluster(cluster.address, SignalHandler()):
            here = WorkerSettings(uri, "memory", sweep, None, install_path())
            ended = run_experiment(
                points,
                here,
                replace(cluster_resources("cpu", cluster.address), retries=1),
                SignalHandler(),
                reused=0,
            )
    finally:
        cluster.shutdown()
    died = "its worker died 2 times"
    assert [outcome.reason for outcome in ended.results] == [died, f"its dense network failed: {died}"]


@pytest.mark.long
def test_two_nodes_share_the_batches_of_a_trial(uri: str, head: str, tmp_path: Path) -> None:
    """Each node has one CPU, so the two processes of a trial are on different nodes."""
    (tmp_path / "shared.yaml").write_text(SPACE.replace("epochs: 25", "epochs: 2").replace("0, 1, 2, 3", "0"))
    words = ("sweep", "--space", "shared.yaml", "--device", "cpu", "--gpus-per-trial", "2")
    alone = orchestrate(*words, cwd=tmp_path, RAY_ADDRESS=head, MLFLOW_TRACKING_URI=uri)
    assert alone.returncode == 4
    assert "a trial holds 2 times 1 CPU; all nodes together have 1 CPU" in alone.stderr
    with second_node(head):
        ended = orchestrate(*words, cwd=tmp_path, RAY_ADDRESS=head, MLFLOW_TRACKING_URI=uri)
    assert ended.returncode == 0, ended.stderr
    rows = Tracker(uri, "shared").search("attributes.status = 'FINISHED' and tags.key LIKE '_%'")
    assert len(rows) == 3
    assert {row.params["numerics.devices"] for row in rows} == {"2"}
