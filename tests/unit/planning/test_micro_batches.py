"""Micro-batches: fixed on a CPU, by the memory on a GPU, and named where norms see less for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.config import DenseConfig, Device, Numerics, Train, flat, micro_batch_of, non_default_fields
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.resources import gpu_bytes
from orchestrator.execution.sweep import preview
from orchestrator.execution.sweep_artifacts import reproduce_command
from orchestrator.keys import GPU_VERSION, stage_key
from orchestrator.planning import micro_batches
from orchestrator.planning.micro_batches import (
    CONTEXT_BYTES,
    NormImages,
    find_norm_images,
    planned_micro_batch,
    training_bytes,
)
from orchestrator.planning.plan import make_plan
from orchestrator.report.overview import _norm_text
from orchestrator.space.space import Space, load_space
from orchestrator.storage.uri import default_uri
from orchestrator.system import machine
from orchestrator.tracking.result_metrics import _norm_tag
from orchestrator.trial.params import params

GIB = 1 << 30
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
MODEL = "densenet121(stem=auto)"
SPACE = """\
version: 1
axes: {model: [densenet121], dataset: [digits], batch_size: [256, 64], technique: [weight], amount: [50%]}
train: {epochs: 1}
"""


def space(tmp_path: Path) -> Space:
    (tmp_path / "mine.yaml").write_text(SPACE)
    return load_space(str(tmp_path / "mine.yaml"))


def planned(memory: int | None, *, batch_size: int = 256, device: str = "cuda") -> int:
    numerics = Numerics(device)  # type: ignore[arg-type]  # a device of the test's own
    return planned_micro_batch("densenet121", "digits", batch_size, numerics=numerics, gpu_bytes=memory)


def needed(images: int) -> int:
    """The memory that so many images of a training need."""
    found = training_bytes("densenet121", (1, 8, 8), 10)
    assert found is not None
    return found[0] + images * found[1]


def test_a_batch_goes_through_in_as_few_equal_parts_as_fit() -> None:
    assert planned(needed(256)) == 256
    assert planned(needed(255)) == 128
    assert planned(needed(700), batch_size=1000) == 500
    assert planned(needed(333), batch_size=1000) == 250
    assert planned(needed(334), batch_size=1000) == 334


def test_never_less_than_on_a_cpu_and_nothing_else_where_the_memory_is_unknown() -> None:
    assert planned(1) == planned(None) == planned(needed(256), device="cpu") == 128
    assert planned(needed(10_000), batch_size=64) == 128  # as it was before there were such plans


def test_bytes_of_a_training_worked_by_hand() -> None:
    # slp: a Linear of 64 x 10 with its bias keeps its input, 64 floats an image, and nothing more.
    assert training_bytes("slp", (1, 8, 8), 10) == (CONTEXT_BYTES + 4 * 650 * 4, int(1.6 * 64 * 4))
    assert training_bytes("slp", (3, 8, 8), 10) == (CONTEXT_BYTES + 4 * 1930 * 4, int(1.6 * 192 * 4))


def test_a_network_that_needs_storage_has_the_fixed_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1)) * float(images.sum())  # of a tensor without values

    monkeypatch.setattr(micro_batches, "meta_model", lambda *architecture: Reader().to("meta"))
    monkeypatch.setattr(micro_batches, "training_bytes", training_bytes.__wrapped__)
    numerics = Numerics("cuda")
    assert planned_micro_batch("x", "digits", 500, numerics=numerics, gpu_bytes=GIB) == micro_batch_of("x")


def test_the_micro_batch_is_in_the_key_and_the_plan_of_a_cpu_stays(tmp_path: Path) -> None:
    small, large = (make_plan(space(tmp_path), device="cuda", gpu_bytes=n * GIB) for n in (2, 80))
    on_cpu = make_plan(space(tmp_path))
    assert [config.numerics.micro_batch for config in on_cpu.dense] == [128, 128]
    assert [config.numerics.micro_batch for config in large.dense] == [256, 128]
    keys = [{trial.key for trial in plan.trials} for plan in (small, large, on_cpu)]
    assert len(keys[0] & keys[1]) == 1  # batch 64
    assert not keys[2] & (keys[0] | keys[1])
    assert make_plan(space(tmp_path), gpu_bytes=80 * GIB).dense == on_cpu.dense


def test_keys_of_a_cpu_stay_and_those_of_a_gpu_have_a_version() -> None:
    on_cpu, on_gpu = (replace(config("slp", 64, 256), numerics=Numerics(device)) for device in DEVICES)
    assert on_cpu.key() == stage_key("dense", non_default_fields(on_cpu))
    assert on_gpu.key() == stage_key("dense", {**non_default_fields(on_gpu), "gpu_version": GPU_VERSION})
    assert "fast" not in non_default_fields(on_gpu)["numerics"]


def test_fast_is_in_the_key_of_a_gpu_and_in_that_of_no_cpu(tmp_path: Path) -> None:
    plain, fast = (make_plan(space(tmp_path), device="cuda", fast=fast) for fast in (False, True))
    assert not {trial.key for trial in plain.trials} & {trial.key for trial in fast.trials}
    assert fast.dense[0].numerics == Numerics("cuda", micro_batch=128, tf32=True, fast=True)
    names = [set(params(config)) for config in (plain.dense[0], fast.dense[0])]
    assert names[1] - names[0] == {"numerics.fast"}
    assert make_plan(space(tmp_path), fast=True) == make_plan(space(tmp_path))
    command = reproduce_command(space(tmp_path), SweepOptions("cuda", gpus_per_trial=0.5, fast=True))
    assert command.endswith("--device cuda --fast --gpus-per-trial 0.5")
    assert reproduce_command(space(tmp_path), SweepOptions("cuda")).endswith("--device cuda")


def test_compiled_networks_have_keys_of_their_own(tmp_path: Path) -> None:
    plain, compiled = (make_plan(space(tmp_path), compile=compile) for compile in (False, True))
    assert not {trial.key for trial in plain.trials} & {trial.key for trial in compiled.trials}
    assert compiled.dense[0].numerics == Numerics(micro_batch=128, compile=True)
    assert params(compiled.dense[0])["numerics.compile"]
    assert "numerics.compile" not in params(plain.dense[0])
    command = reproduce_command(space(tmp_path), SweepOptions(compile=True))
    assert command.endswith("--device cpu --compile")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program `nvidia-smi` that prints what is written into a file."""
    program, answer = tmp_path / "nvidia-smi", tmp_path / "answer"
    program.write_text(f"#!/bin/sh\ncat {answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.cards.cache_clear()
    yield answer
    machine.cards.cache_clear()


TWO = "0, GPU-a, NVIDIA A100, 81920, Disabled\n1, GPU-b, NVIDIA T4, 15360, [N/A]\n"


def memory_of(answer: Path, text: str) -> int | None:
    answer.write_text(text)
    machine.cards.cache_clear()
    return machine.gpu_memory()


def test_memory_is_that_of_the_smallest_gpu_in_whole_gibibytes(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_of(driver, TWO) == 15 * GIB
    assert memory_of(driver, "0, GPU-a, NVIDIA H100, 81559, Disabled\n") == 79 * GIB
    assert machine.cards()[0].name == "NVIDIA H100"
    for visible, expected in {"0": 80, "GPU-b": 15, "1,0": 15}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert memory_of(driver, TWO) == expected * GIB


@pytest.mark.parametrize("text", ["", "no devices were found\n", "0, GPU-a, NVIDIA A100, 81920, Enabled\n"])
def test_memory_that_is_not_known(driver: Path, text: str) -> None:
    assert memory_of(driver, text) is None


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine.cards.cache_clear()
    assert machine.gpu_memory() is None
    machine.cards.cache_clear()


def test_a_trial_has_its_share_of_a_gpu(driver: Path) -> None:
    assert memory_of(driver, "0, GPU-a, NVIDIA H100, 81559, Disabled\n") == 79 * GIB
    assert SweepOptions("cuda").gpu_bytes() == 79 * GIB
    assert SweepOptions("cuda", gpus_per_trial=0.25).gpu_bytes() == gpu_bytes("cuda", 0.25) == 19 * GIB
    assert SweepOptions("cpu").gpu_bytes() is None
    assert SweepOptions("cuda", address="10.0.0.1:6379").gpu_bytes() is None


def config(model: str, batch_size: int, micro_batch: int, **changes: Any) -> DenseConfig:
    numerics = Numerics(micro_batch=micro_batch)
    return replace(DenseConfig(model, "digits", batch_size, 0, Train(), numerics), **changes)


def test_where_batch_norm_sees_less_than_a_batch() -> None:
    trainings = [
        config("densenet121", 256, 128),
        config("densenet121", 256, 128, seed=1),
        config("densenet121", 128, 128),
        config("densenet121", 300, 128),
        config("mlp", 256, 128),  # it has no batch norm
    ]
    assert find_norm_images(trainings) == (
        NormImages("densenet121", "digits", 256, 128),
        NormImages("densenet121", "digits", 300, 100),
    )


def test_the_plan_names_it(tmp_path: Path) -> None:
    found = preview(space(tmp_path), SweepOptions(), uri=default_uri(tmp_path))
    line = next(line for line in found.lines() if line.startswith("batch norm "))
    assert re.fullmatch(
        r"batch norm +densenet121.* on digits: statistics of 128 images, in place of a batch of 256", line
    )
    (item,) = found.to_json()["batch_norm"]
    assert (item["dataset"], item["batch_size"], item["images"]) == ("digits", 256, 128)


def test_a_run_and_the_report_name_it() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    numerics = Numerics(micro_batch=128)
    assert _norm_tag(net, numerics, batch_size=300) == {"batch_norm_images": "100 of 300"}
    assert _norm_tag(net, numerics, batch_size=128) == {}
    assert _norm_tag(net[:1], numerics, batch_size=300) == {}
    tagged = SimpleNamespace(tags={"batch_norm_images": "128 of 256"}, params={"model": "densenet121"})
    plain = SimpleNamespace(tags={}, params={"model": "mlp"})
    data: Any = SimpleNamespace(loaded=SimpleNamespace(runs={"a": tagged, "b": plain, "c": tagged}))
    text = "Batch norms took their statistics over a part of each batch: densenet121 (128 of 256 images)."
    assert _norm_text(data) == text
    data.loaded.runs = {"b": plain}
    assert _norm_text(data) == ""


@pytest.mark.parametrize(
    ("devices", "micro_batch", "is_together", "batch_size", "expected"),
    [
        (1, 256, False, 256, 256),
        (1, 128, False, 256, 128),
        (4, 256, False, 256, 64),  # each device its part
        (4, 32, False, 256, 32),  # in two passes
        (4, 256, True, 256, 256),  # all devices' parts
        (4, 32, True, 256, 128),
        (4, 256, False, 6, 6),  # too few to share
        (3, 256, False, 256, 86),  # the largest part
    ],
)
def test_batch_norms_of_several_devices(
    devices: int, micro_batch: int, is_together: bool, batch_size: int, expected: int
) -> None:
    numerics = Numerics(devices=devices, micro_batch=micro_batch, sync_batch_norm=is_together)
    assert numerics.norm_images(batch_size) == expected


def test_devices_are_in_the_key_and_no_key_of_before_changes(tmp_path: Path) -> None:
    (own,) = make_plan(space(tmp_path)).dense[:1]
    (shared,) = make_plan(space(tmp_path), devices=2).dense[:1]
    (together,) = make_plan(space(tmp_path), devices=2, sync_batch_norm=True).dense[:1]
    assert len({own.key(), shared.key(), together.key()}) == 3
    assert make_plan(space(tmp_path), sync_batch_norm=True).dense[0].key() == own.key()
    assert "devices" not in str(dict(flat(own)))
