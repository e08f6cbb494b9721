"""How long a training step takes: timed here, or read from a file of `make gpu-check`.

A GPU is timed in a process of its own: the sweep's own process would hold some of its memory from then on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

import models
from orchestrator.config import Numerics, Train
from orchestrator.errors import DeviceError, UsageError
from orchestrator.planning.constraints import Shape
from orchestrator.system.console import print_line
from orchestrator.system.determinism import seeded, torch_threads
from orchestrator.system.files import read_regular
from orchestrator.system.machine import gpus
from orchestrator.system.memory import is_out_of_memory
from orchestrator.system.python_process import run_python
from orchestrator.training.optimizers import make_optimizer
from orchestrator.trial.metrics import Profile, dense_bytes, profile
from pruning.checks import one_line
from pruning.masking import prunable_layers
from pruning.user_code import stored_code

MAX_IMAGES = 64  # of a timed pass
MIN_IMAGES = 2  # batch norm cannot be trained on one
MAX_PASS_MACS = 2_000_000_000  # of a timed pass: a second or less on a CPU core
MIN_TIMED_SECONDS = 0.05
MAX_TIMED_CALLS = 5
PROCESS = "orchestrator.planning.step_times"  # this file
GPU_SECONDS = 180.0  # in which a process times a GPU, its imports included
LARGEST_FILE = 4 << 20  # bytes
KIND, VERSION = "gpu-check", 1  # of a calibration file
Key = tuple[str, Shape, str]  # a model's text, the shape of its images, the precision


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a forward and backward pass per image, and of a step beside."""

    image_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward and backward pass per image and of an optimizer step; the size of the network.

    Without `is_timed` the seconds are not known, and are 0: memory ran out.
    """

    image_seconds: float
    step_seconds: float
    cost: Profile
    weight_bytes: int
    mask_bytes: int
    is_timed: bool = True


@dataclass(frozen=True)
class Calibration:
    """Step times of a device: `device` is its name, `gpu_bytes` its memory if it is a GPU."""

    device: str = ""
    gpu_bytes: int | None = None
    times: Mapping[Key, StepTimes] = field(default_factory=dict)

    def find(self, model: str, input_shape: Shape, numerics: Numerics) -> StepTimes | None:
        """Return the times of a network's training on a GPU; None where they were not measured."""
        return self.times.get((model, input_shape, numerics.precision)) if numerics.device == "cuda" else None


NO_CALIBRATION = Calibration()


def load_calibration(path: Path) -> Calibration:
    """Read the step times that `make gpu-check` wrote. UsageError for a file that is none."""
    try:
        content = json.loads(read_regular(path, at_most=LARGEST_FILE))
        if (content["kind"], content["version"]) != (KIND, VERSION):
            raise ValueError(f"its kind and version are {content['kind']!r:.40}, {content['version']!r:.40}")
        samples: dict[Key, dict[int, float]] = {}
        for row in content["steps"]:
            if row["variant"] in ("plain", "bf16") and row["step_ms"] is not None:
                channels, height, width = map(int, row["input_shape"])
                key = (str(row["model"]), (channels, height, width), str(row["precision"]))
                samples.setdefault(key, {})[int(row["batch"])] = float(row["step_ms"]) / 1e3
        times = {key: fit_step_times(seconds) for key, seconds in samples.items()}
        gpu_bytes = content["gpu_bytes"]
        return Calibration(str(content["device"]), None if gpu_bytes is None else int(gpu_bytes), times)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(
            f"--calibrate {str(path)[:200]}: it is no file of `make gpu-check`: {one_line(error)}"
        ) from error


def fit_step_times(seconds: Mapping[int, float]) -> StepTimes:
    """Return the line through the seconds of a step by its batch size: least squares, and nothing below 0.

    ValueError for a time or batch size that is not above 0.
    """
    if not seconds or min(seconds) < 1 or not all(0 < value < float("inf") for value in seconds.values()):
        raise ValueError("batch sizes and times are above 0")
    mean_size, mean = sum(seconds) / len(seconds), sum(seconds.values()) / len(seconds)
    spread = sum((size - mean_size) ** 2 for size in seconds)
    slope = sum((size - mean_size) * (value - mean) for size, value in seconds.items()) / (spread or 1.0)
    at_zero = mean - slope * mean_size
    if len(seconds) == 1 or at_zero < 0:  # of one batch size nothing is known of the rest
        return StepTimes(mean / mean_size, 0.0)
    return StepTimes(slope, at_zero) if slope >= 0 else StepTimes(0.0, mean)


def measure_speed(
    model: str,
    input_shape: Shape,
    num_classes: int,
    *,
    numerics: Numerics,
    calibration: Calibration = NO_CALIBRATION,
) -> Speed:
    """Return the times of a training step on the device of `numerics`, or on the CPU where there is no GPU.

    They are those of the calibration, if it has them, and timed otherwise. The global seeds are untouched.
    DeviceError where the GPU cannot be timed.
    """
    with seeded(0):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        cost = profile(net, input_shape)
    times = calibration.find(model, input_shape, numerics)
    if times is None:
        is_on_gpu = numerics.device == "cuda" and gpus() > 0
        time = _time_in_process if is_on_gpu else partial(time_steps, device="cpu")
        times = time(model, input_shape, num_classes, numerics=numerics)
    size = (cost, dense_bytes(net), mask_bytes(net))
    if times is None:
        return Speed(0.0, 0.0, *size, is_timed=False)
    return Speed(times.image_seconds, times.step_seconds, *size)


def time_steps(
    model: str, input_shape: Shape, num_classes: int, *, numerics: Numerics, device: str
) -> StepTimes | None:
    """Time a few training steps on a device, in this process; None where memory runs out at two images."""
    with seeded(0, torch.device(device)), torch_threads(numerics.threads):
        net = models.build(model, input_shape=input_shape, num_classes=num_classes)
        macs = max(profile(net, input_shape).total_macs, 1) if device == "cpu" else 1
        count = max(MIN_IMAGES, min(MAX_IMAGES, MAX_PASS_MACS // macs))
        while True:
            images, labels = torch.randn((count, *input_shape)), torch.arange(count) % num_classes
            try:
                return _time_batch(net, images, labels, bf16=numerics.precision == "bf16", device=device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # After the handler: until then the error holds the tensors of the pass.
            if count == MIN_IMAGES:
                return None
            count = max(MIN_IMAGES, count // 2)
            net.zero_grad(set_to_none=True)
            if device == "cuda":
                torch.cuda.empty_cache()


def _time_batch(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, bf16: bool, device: str
) -> StepTimes:
    """Time passes of a network with these images, and steps of its optimizer. Moves the network."""
    net.to(device).train()
    train_pass = partial(_train_pass, net, images.to(device), labels.to(device), bf16)
    pass_seconds = _mean_seconds(train_pass, device)
    step_seconds = _mean_seconds(make_optimizer(Train(), net).step, device)
    return StepTimes(pass_seconds / len(images), step_seconds)


def _time_in_process(
    model: str, input_shape: Shape, num_classes: int, *, numerics: Numerics
) -> StepTimes | None:
    """Time a few training steps on the GPU, in a process that ends with it; None as of `time_steps`."""
    request = {
        "architecture": [model, input_shape, num_classes],
        "numerics": asdict(numerics),
        "own_code": stored_code.dump(stored_code.codes_in(model), with_base=True),
    }
    try:
        answer = run_python("-m", PROCESS, input=json.dumps(request), timeout=GPU_SECONDS, check=True)
        times = json.loads(answer.stdout.splitlines()[-1])
        return None if times is None else StepTimes(**times)
    except subprocess.TimeoutExpired as error:
        reason = f"no answer in {GPU_SECONDS:g} s"
        raise DeviceError(
            f"the GPU could not be timed: {reason}; give --device cpu or --calibrate"
        ) from error
    except (subprocess.CalledProcessError, OSError, ValueError, LookupError, TypeError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines() or [one_line(error)]
        raise DeviceError(
            f"the GPU could not be timed: {lines[-1][:200]}; give --device cpu or --calibrate"
        ) from error


def _answer(request: Mapping[str, Any], *, device: str) -> str:
    """Return the answer to a request of `_time_in_process`, as JSON."""
    stored_code.add_all(request["own_code"])
    model, input_shape, num_classes = request["architecture"]
    numerics = Numerics(**request["numerics"])
    times = time_steps(model, tuple(input_shape), num_classes, numerics=numerics, device=device)
    return json.dumps(None if times is None else asdict(times))


def _train_pass(net: nn.Module, batch: torch.Tensor, labels: torch.Tensor, bf16: bool) -> None:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = net(batch)
    nn.functional.cross_entropy(logits.float(), labels).backward()


def _mean_seconds(call: Callable[[], object], device: str) -> float:
    """Return the mean of a few calls, after a first one that is not timed."""
    start, calls = 0.0, -1
    while calls < 1 or (calls < MAX_TIMED_CALLS and perf_counter() - start < MIN_TIMED_SECONDS):
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        calls += 1
        start = start or perf_counter()
    return (perf_counter() - start) / calls


def mask_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's packed masks: one bit for each prunable weight."""
    return sum((layer.weight.numel() + 7) // 8 for layer in prunable_layers(net).values())


if __name__ == "__main__":
    print_line(_answer(json.load(sys.stdin), device="cuda"))
