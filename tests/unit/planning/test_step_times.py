"""Step times: fitted by hand, read from a file, and taken in another process where there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config import Numerics
from orchestrator.errors import DeviceError, UsageError
from orchestrator.execution import sweep
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep import preview
from orchestrator.planning import estimate as estimate_module
from orchestrator.planning import step_times
from orchestrator.planning.plan import make_plan
from orchestrator.planning.step_times import (
    StepTimes,
    fit_step_times,
    load_calibration,
    measure_speed,
    time_steps,
)
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.system import machine, provenance

SPACE = """\
version: 1
axes: {model: [mlp], dataset: [digits], batch_size: [100], technique: [weight], amount: [50%], seed: [0, 1]}
train: {epochs: 3}
"""
ROWS = [
    {"model": "mlp", "input_shape": [1, 8, 8], "batch": batch, "precision": precision, "variant": variant}
    | {"step_ms": milliseconds}
    for batch, precision, variant, milliseconds in [
        (32, "fp32", "plain", 1.0),
        (256, "fp32", "plain", 1.5),
        (32, "fp32", "graph", 0.1),
        (256, "fp32", "channels-last", None),
        (32, "bf16", "bf16", 2.0),
    ]
]
CONTENT = {"kind": "gpu-check", "version": 1, "device": "NVIDIA H100", "gpu_bytes": 79 << 30, "steps": ROWS}
SHAPE = (1, 8, 8)


def written(folder: Path, **changes: object) -> Path:
    path = folder / "times.json"
    path.write_text(json.dumps({**CONTENT, **changes}))
    return path


def test_a_line_through_two_batch_sizes_by_hand() -> None:
    # 0.5 ms more for 224 images more.
    fitted = fit_step_times({32: 1e-3, 256: 1.5e-3})
    assert fitted.image_seconds == pytest.approx(0.5e-3 / 224)
    assert fitted.step_seconds == pytest.approx(1e-3 - 32 * 0.5e-3 / 224)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({64: 0.64}, StepTimes(0.01, 0.0)),  # of one size: in proportion
        ({10: 2.0, 20: 1.0}, StepTimes(0.0, 1.5)),  # a larger batch is not faster: noise
        ({10: 0.1, 20: 0.4}, StepTimes(0.25 / 15, 0.0)),  # nothing takes less than no time
    ],
)
def test_lines_that_would_go_below_zero(seconds: dict[int, float], expected: StepTimes) -> None:
    fitted = fit_step_times(seconds)
    assert asdict(fitted) == pytest.approx(asdict(expected))


def test_a_file_is_read_by_network_and_precision(tmp_path: Path) -> None:
    calibration = load_calibration(written(tmp_path))
    assert (calibration.device, calibration.gpu_bytes) == ("NVIDIA H100", 79 << 30)
    assert calibration.find("mlp", SHAPE, Numerics("cuda")) == fit_step_times({32: 1e-3, 256: 1.5e-3})
    assert calibration.find("mlp", SHAPE, Numerics("cuda", "bf16")) == StepTimes(2e-3 / 32, 0.0)
    assert calibration.find("mlp", (3, 8, 8), Numerics("cuda")) is None
    assert calibration.find("mlp", SHAPE, Numerics("cpu")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "results"},
        {"version": 2},
        {"steps": [{"model": "mlp"}]},
        {"steps": [{**ROWS[0], "step_ms": 0.0}]},
        {"steps": [{**ROWS[0], "batch": 0}]},
        {"steps": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_file_is_refused_in_one_line(changes: dict[str, object], tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UsageError, match="no file of `make gpu-check`") as caught:
        load_calibration(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_what_is_no_such_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    for path in (tmp_path / "x.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="no file of `make gpu-check`"):
            load_calibration(path)


def test_the_estimate_is_that_of_the_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sweep, estimate_module):
        monkeypatch.setattr(module, "gpus", lambda: 0)
    (tmp_path / "mine.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "mine.yaml"))
    model = make_plan(space).dense[0].model  # with all of its options
    rows = [{**row, "model": model} for row in ROWS]
    calibration = load_calibration(written(tmp_path, steps=rows))
    found = preview(space, SweepOptions(device="cuda"), uri=default_uri(tmp_path), calibration=calibration)
    times = fit_step_times({32: 1e-3, 256: 1.5e-3})
    # Two dense trainings of 3 epochs, each measured once, and two trials, which are measured twice.
    images = 2 * (3 * 1257 + (3 * 180 + 540) / 3) + 2 * 2 * 540 / 3
    expected = images * times.image_seconds + 2 * 3 * 13 * times.step_seconds
    estimate = found.estimate
    assert estimate.training_seconds == pytest.approx(expected)
    half = preview(
        space,
        SweepOptions(device="cuda", gpus_per_trial=0.5),
        uri=default_uri(tmp_path),
        calibration=calibration,
    )
    # No machine of a test has a GPU: that of the file stands for one.
    assert (found.plan.gpu_bytes, half.plan.gpu_bytes) == (79 << 30, 39 << 30)
    assert half.estimate.training_seconds == pytest.approx(expected / 2)
    assert estimate.basis.startswith("step times of a NVIDIA H100, ")
    assert "timed on the CPU" not in estimate.unknown


def test_a_gpu_is_timed_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "gpus", lambda: 1)
    requests: list[dict[str, Any]] = []

    def run(command: list[str], *, input: str, **options: object) -> subprocess.CompletedProcess[str]:
        assert command == [sys.executable, "-P", "-m", "orchestrator.planning.step_times"]
        requests.append(json.loads(input))
        return subprocess.CompletedProcess(
            command, 0, 'a note\n{"image_seconds": 0.5, "step_seconds": 0.25}\n'
        )

    monkeypatch.setattr(subprocess, "run", run)
    speed = measure_speed("mlp(widths=[8])", SHAPE, 10, numerics=Numerics("cuda", "bf16"))
    assert (speed.image_seconds, speed.step_seconds) == (0.5, 0.25)
    assert speed.cost.total_macs == 64 * 8 + 80
    assert requests[0]["architecture"] == ["mlp(widths=[8])", [1, 8, 8], 10]
    # What that process does, on the CPU.
    answer = json.loads(step_times._answer(requests[0], device="cpu"))
    assert min(answer.values()) > 0
    assert measure_speed("mlp(widths=[8])", SHAPE, 10, numerics=Numerics("cpu")).image_seconds > 0
    assert len(requests) == 1


def test_a_gpu_that_cannot_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "gpus", lambda: 1)
    # This machine's torch may have no GPU: the process itself says so.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match=r"the GPU could not be timed: .*; give --device cpu") as caught:
        measure_speed("slp", SHAPE, 10, numerics=Numerics("cuda"))
    assert "\n" not in str(caught.value)


def test_planning_makes_no_cuda_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch runs before it uses a GPU is not run."""

    def use() -> None:
        raise AssertionError("the process that plans uses the GPU")

    monkeypatch.setattr(torch.cuda, "_lazy_init", use)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(machine, "DRIVERS", (str(tmp_path),))
    card = machine.Card("NVIDIA H100", 80 << 30, False)
    for module in (machine, provenance):
        monkeypatch.setattr(module, "cards", lambda: (card,))
    times = StepTimes(1e-6, 1e-4)
    monkeypatch.setattr(step_times, "_time_in_process", lambda *architecture, numerics: times)
    (tmp_path / "mine.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "mine.yaml"))
    found = preview(space, SweepOptions(device="cuda"), uri=default_uri(tmp_path))
    assert found.plan.gpu_bytes == 80 << 30
    assert "this machine's cuda, 1 at a time" in found.estimate.basis
    assert provenance.environment.__wrapped__()["gpu.0"] == "NVIDIA H100"
    with pytest.raises(AssertionError, match="uses the GPU"):
        torch.cuda.get_device_properties(0)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each pass, of which memory holds at most as many as the list's first entry says."""
    seen: list[int] = [64]
    train_pass = step_times._train_pass

    def pass_in_little_memory(
        net: torch.nn.Module, batch: torch.Tensor, labels: torch.Tensor, bf16: bool
    ) -> None:
        seen.append(len(batch))
        if len(batch) > seen[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        train_pass(net, batch, labels, bf16)

    monkeypatch.setattr(step_times, "_train_pass", pass_in_little_memory)
    return seen


@pytest.mark.parametrize(("held", "tried"), [(64, [64]), (20, [64, 32, 16]), (2, [64, 32, 16, 8, 4, 2])])
def test_a_gpu_with_little_memory_is_timed_with_fewer_images(
    counts: list[int], held: int, tried: list[int]
) -> None:
    counts[0] = held
    times = time_steps("slp", SHAPE, 10, numerics=Numerics(), device="cpu")
    assert times is not None
    assert min(asdict(times).values()) > 0
    assert list(dict.fromkeys(counts[1:])) == tried


def test_an_error_that_is_not_of_memory_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(step_times, "_train_pass", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        time_steps("slp", SHAPE, 10, numerics=Numerics(), device="cpu")


def test_a_network_for_which_there_is_no_memory_has_no_time(
    counts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts[0] = 1
    request = {"own_code": "", "architecture": ["slp", SHAPE, 10], "numerics": asdict(Numerics())}
    answer = step_times._answer(request, device="cpu")
    assert answer == "null"
    monkeypatch.setattr(step_times, "gpus", lambda: 1)
    monkeypatch.setattr(
        step_times, "run_python", lambda *words, **options: subprocess.CompletedProcess(words, 0, answer)
    )
    assert not measure_speed("slp", SHAPE, 10, numerics=Numerics("cuda")).is_timed
    # Its trials are counted, and what they take is not.
    (tmp_path / "mine.yaml").write_text(SPACE)
    plan = make_plan(load_space(str(tmp_path / "mine.yaml")))
    found = estimate_module.estimate(plan, finished=())
    assert (found.trials_to_run, found.training_seconds) == (2, 0.0)
    assert found.train_flops > 0
    assert found.unknown.startswith("the time of mlp is not known, and not counted: memory ran out")
