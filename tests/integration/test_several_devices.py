"""Trials that several processes share, as with several GPUs: swept, killed, run again, in a cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from orchestrator.storage.uri import default_uri
from orchestrator.tracking import RunRecord, Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "shared"
SPACE = """\
version: 1
axes:
  model: ["cnn(widths=[8, 16, 16])"]
  dataset: [digits]
  batch_size: [64]
  granularity: [channel]
  amount: [50%]
  recover: [finetune(epochs=1), "finetune(epochs=1, on=cut)", "rewind(to=1)"]
  distill: [soft_labels]
  seed: [0]
train: {epochs: 2, lr: 0.01}
"""
LONG = """\
version: 1
axes:
  model: ["mlp(widths=[32])"]
  dataset: [digits]
  batch_size: [128]
  technique: [weight]
  amount: [50%]
  seed: [0]
train: {epochs: 2}
recover: finetune(epochs=120)
"""
DEVICES = ("--device", "cpu", "--gpus-per-trial", "2")


def orchestrate(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def sweep(folder: Path, *words: str, text: str = SPACE) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / f"{NAME}.yaml").write_text(text)
    return orchestrate("sweep", "--space", f"{NAME}.yaml", *words, folder=folder)


def finished(folder: Path) -> list[RunRecord]:
    return Tracker(default_uri(folder), NAME).search("attributes.status = 'FINISHED' and tags.key LIKE '_%'")


def results(folder: Path) -> dict[str, dict[str, float]]:
    timed = ("seconds", "peak_memory", "latency")
    return {
        row.tags["key"]: {n: v for n, v in row.metrics.items() if not any(word in n for word in timed)}
        for row in finished(folder)
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes shared the trials of SPACE."""
    folder = tmp_path_factory.mktemp("shared")
    ended = sweep(folder, *DEVICES)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_every_trial_is_shared_and_recorded_so(shared: Path) -> None:
    rows = finished(shared)
    assert len(rows) == 4
    assert {row.params["numerics.devices"] for row in rows} == {"2"}
    assert {row.tags["batch_norm_images"] for row in rows} == {"32 of 64"}
    accuracies = {row.params.get("recover", "dense"): row.metrics["final/accuracy"] for row in rows}
    assert accuracies["dense"] > 0.4
    masked, cut = (text for text in accuracies if text.startswith("finetune"))
    assert accuracies[masked] == pytest.approx(accuracies[cut], abs=0.01)


def test_the_sweep_is_found_again_and_one_device_has_other_keys(shared: Path) -> None:
    again = sweep(shared, *DEVICES)
    assert again.returncode == 0
    assert len(finished(shared)) == 4
    plan = orchestrate("plan", "--space", f"{NAME}.yaml", "--device", "cpu", "--json", folder=shared)
    assert '"reused": 0' in plan.stdout, plan.stdout


@pytest.mark.long
def test_a_rerun_takes_as_many_devices_and_has_equal_bits(shared: Path) -> None:
    row = next(row for row in finished(shared) if "on='cut'" in row.params.get("recover", ""))
    checked = orchestrate("rerun", row.run_id, "--check", folder=shared)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def device_worker(process: subprocess.Popen[str]) -> psutil.Process | None:
    """The other process of the trial, once it trains."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "ray::DeviceWorker.follow" in " ".join(child.cmdline()):
                return child
    return None


def is_loopback(text: str) -> bool:
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.mark.long
def test_a_killed_device_costs_its_trial_one_try(tmp_path: Path) -> None:
    """While it runs, all of it listens on loopback alone."""
    undisturbed = sweep(tmp_path / "whole", *DEVICES, text=LONG)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / f"{NAME}.yaml").write_text(LONG)
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", "--space", f"{NAME}.yaml", *DEVICES]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while (victim := device_worker(process)) is None:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        addresses = [
            connection.laddr.ip
            for child in psutil.Process(process.pid).children(recursive=True)
            for connection in child.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert addresses
        assert all(is_loopback(address) for address in addresses)
        victim.kill()
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "its worker died; it is tried again (1 of 2)" in said
    assert results(folder) == results(tmp_path / "whole")


def test_several_gpus_are_refused_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.yaml").write_text(LONG)
    for command in ("plan", "sweep"):
        refused = orchestrate(command, "--space", f"{NAME}.yaml", "--gpus-per-trial", "2", folder=tmp_path)
        assert refused.returncode == 2
        assert "--gpus-per-trial 2: torch sees no CUDA device" in refused.stderr
