"""How many trials fit at once, by hand."""

from __future__ import annotations

import pytest

from orchestrator.errors import ClusterError, DeviceError, UsageError
from orchestrator.execution import resources
from orchestrator.execution.options import SweepOptions, resolve_device
from orchestrator.execution.resources import (
    Resources,
    cluster_resources,
    limit_to_nodes,
    local_resources,
    slots_on_node,
    trials_per_gpu,
)
from orchestrator.system import machine
from orchestrator.system.machine import cores

GPU_NODE = {"CPU": 16.0, "GPU": 2.0, "memory": 1e9}
CPU_NODE = {"CPU": 4.0}


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, 1), (0.5, 2), (0.4, 2), (0.34, 2), (0.3, 3), (0.25, 4), (0.1, 10), (0.01, 100)],
)
def test_whole_parts_of_one_gpu(share: float, expected: int) -> None:
    assert trials_per_gpu(share) == expected


def test_a_trial_is_on_one_gpu_of_one_node() -> None:
    assert slots_on_node(GPU_NODE, {"CPU": 1.0, "GPU": 0.4}) == 4  # two on each; 2 GPUs / 0.4 would be 5
    assert slots_on_node(GPU_NODE, {"CPU": 1.0, "GPU": 0.1}) == 16  # a core each
    assert slots_on_node(GPU_NODE, {"CPU": 1.0}) == 16
    assert slots_on_node(CPU_NODE, {"CPU": 1.0, "GPU": 1.0}) == 0
    assert slots_on_node({}, {"CPU": 1.0}) == 0


def test_a_cluster_is_the_sum_of_its_nodes() -> None:
    on_gpu = cluster_resources("cuda", "10.0.0.1:6379", gpus_per_trial=0.5)
    assert limit_to_nodes(on_gpu, [GPU_NODE, CPU_NODE, GPU_NODE]).concurrent == 8
    assert limit_to_nodes(cluster_resources("cpu", "10.0.0.1:6379"), [GPU_NODE, CPU_NODE]).concurrent == 20
    assert limit_to_nodes(Resources(0, 0, 1.0, 3, "auto"), [GPU_NODE, CPU_NODE]).concurrent == 3
    with pytest.raises(ClusterError, match=r"holds 1 CPU and 0.5 GPU of one node, .* have 4 CPU and 0 GPU"):
        limit_to_nodes(on_gpu, [CPU_NODE])


def test_a_machine_gives_each_trial_a_core_or_its_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "cores", lambda: 4)
    monkeypatch.setattr(resources, "gpus", lambda: 2)
    found = local_resources("cpu")
    assert (found.cpus, found.gpus, found.concurrent, found.per_device) == (4, 0, 4, {"CPU": 1.0})
    found = local_resources("cuda", gpus_per_trial=0.25)
    assert (found.cpus, found.gpus, found.concurrent) == (8, 2, 8)  # cores do not hold GPUs back
    assert found.per_device == {"CPU": 1.0, "GPU": 0.25}


def test_auto_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.execution.options.gpus", lambda: 0)
    assert (resolve_device("auto"), resolve_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(DeviceError, match="torch sees no CUDA device; use --device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr("orchestrator.execution.options.gpus", lambda: 1)
    assert (resolve_device("auto"), resolve_device("cuda"), resolve_device("cpu")) == ("cuda", "cuda", "cpu")


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 1), ("max 100000", None), ("", None), ("50 100", 1)]
)
def test_cores_that_may_be_used(
    text: str, expected: int | None, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"  # type: ignore[operator]
    monkeypatch.setattr(machine, "QUOTA", quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert cores() == 3  # no such file
    quota.write_text(text)
    assert cores() == (expected or 3)


def test_as_many_workers_are_started_as_the_points_are_worth() -> None:
    machine = Resources(cpus=64, gpus=0, gpus_per_trial=1.0, concurrent=32)
    assert [machine.initial_workers(points) for points in (0, 1, 27, 148, 100_000)] == [1, 1, 1, 4, 32]


def test_several_devices_of_a_trial_may_be_on_several_nodes() -> None:
    four = cluster_resources("cuda", "10.0.0.1:6379", gpus_per_trial=4)
    assert (four.devices, four.per_device) == (4, {"CPU": 1.0, "GPU": 1.0})
    assert limit_to_nodes(four, [GPU_NODE, CPU_NODE, GPU_NODE, GPU_NODE]).concurrent == 1  # 6 GPUs
    message = "holds 4 times 1 CPU and 1 GPU; all nodes together have 20 CPU and 2 GPU"
    with pytest.raises(ClusterError, match=message):
        limit_to_nodes(four, [GPU_NODE, CPU_NODE])


def test_a_machine_has_as_many_trials_as_it_has_gpus_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "gpus", lambda: 5)
    monkeypatch.setattr(resources, "cores", lambda: 3)
    pairs = local_resources("cuda", gpus_per_trial=2)
    assert (pairs.concurrent, pairs.devices, pairs.cpus) == (2, 2, 5)
    assert local_resources("cpu", gpus_per_trial=2).concurrent == 1
    assert local_resources("cpu", gpus_per_trial=4).cpus == 4  # Ray has to give every process a core
    with pytest.raises(DeviceError, match="--gpus-per-trial 8: torch sees 5 on this machine; give 1 to 5"):
        local_resources("cuda", gpus_per_trial=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SweepOptions(gpus_per_trial=2), "--gpus-per-trial 2: torch sees no CUDA device"),
        (SweepOptions("cuda", gpus_per_trial=1.5), "--gpus-per-trial 1.5: give a whole number of GPUs"),
        (SweepOptions(sync_batch_norm=True), "--sync-batch-norm: give --gpus-per-trial 2 or more"),
        (
            SweepOptions("cuda", gpus_per_trial=2, sync_batch_norm=True, compile=True),
            "--sync-batch-norm and --compile: give one",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(given: SweepOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        given.check_devices(was_chosen=False)


def test_a_cpu_that_was_chosen_has_processes() -> None:
    SweepOptions(gpus_per_trial=2).check_devices(was_chosen=True)
    SweepOptions("cuda", gpus_per_trial=0.5).check_devices(was_chosen=False)
