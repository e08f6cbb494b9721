"""The time and memory of training steps on a GPU: plain, as a graph, in stacks, bfloat16, channels-last."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import models
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.planning.micro_batches import training_bytes
from orchestrator.space.values import canonical_text
from orchestrator.system.determinism import global_states
from orchestrator.system.memory import is_out_of_memory
from orchestrator.training.loop import Training, run_training
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.stack import run_stack
from pruning.checks import one_line

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
SHAPES = {"slp": GREY, "mlp": GREY, "cnn": COLOUR, "resnet(depth=20)": COLOUR, "densenet121": COLOUR}
BATCHES = (32, 256)
STACKS = {"stack of 16": 16, "stack of 64": 64}  # a step of one of so many trainings
VARIANTS = ("plain", "graph", *STACKS, "bf16", "channels-last")
CLASSES = 10
WARM_STEPS, MAX_STEPS = 3, 300
Row = dict[str, Any]  # JSON


@dataclass(frozen=True)
class StepSetting:
    """A network, its batch size, and how its step is made. All train by Adam in one pass a batch."""

    model: str
    input_shape: tuple[int, int, int]
    batch: int
    variant: str

    @property
    def text(self) -> str:
        """The model's text with all of its options, as a plan has it."""
        return canonical_text(*models.settle(self.model, self.input_shape))

    @property
    def precision(self) -> str:
        return "bf16" if self.variant == "bf16" else "fp32"

    def row(self) -> Row:
        """Return the row of a step that was not measured."""
        return {
            "model": self.text,
            "label": self.model,
            "input_shape": list(self.input_shape),
            "batch": self.batch,
            "variant": self.variant,
            "precision": self.precision,
            "step_ms": None,
            "peak_bytes": None,
            "planned_bytes": self._planned_bytes(),
            "reason": "",
        }

    def _planned_bytes(self) -> int | None:
        """Return the memory by which `orchestrate plan` decides whether a batch fits."""
        needed = training_bytes(self.text, self.input_shape, CLASSES)
        return None if needed is None else needed[0] + self.batch * needed[1]

    def network(self, device: str) -> nn.Module:
        torch.manual_seed(0)
        net = models.build(self.text, input_shape=self.input_shape, num_classes=CLASSES).to(device)
        if self.variant == "channels-last":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        return net.train()

    def images(self, count: int, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((count, *self.input_shape), generator=generator)
        return images.to(device), torch.arange(count, device=device) % CLASSES


def make_settings(*, small: bool) -> list[StepSetting]:
    """Return all settings; `small` ones run through on a CPU in seconds."""
    shapes = {"slp": (1, 8, 8), "cnn(widths=[4, 4])": (1, 8, 8)} if small else SHAPES
    return [
        StepSetting(model, shape, batch, variant)
        for model, shape in shapes.items()
        for batch in ((8, 16) if small else BATCHES)
        for variant in VARIANTS
        # A Linear layer has no order of channels.
        if variant != "channels-last" or model not in ("slp", "mlp")
    ]


def measure_steps(
    settings: list[StepSetting], *, device: str, seconds: float, is_over: Callable[[], bool]
) -> Iterator[Row]:
    """Yield the row of every setting, each timed for about `seconds`; no times once `is_over`."""
    for setting in settings:
        row = setting.row()
        if is_over():
            row["reason"] = "the time was over"
        elif setting.variant == "graph" and device == "cpu":
            row["reason"] = "a CPU has no graphs"
        else:
            row |= _measure(setting, device=device, seconds=seconds)
        yield row


def describe_failure(error: Exception) -> Row:
    """Return why a row has no value; anything but a lack of memory is printed with its traceback, too.

    The end of a graph's capture raises an error of its own where memory ran out within it.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__context__
    if any(map(is_out_of_memory, chain)):
        return {"reason": "memory ran out"}
    traceback.print_exception(error)
    return {"reason": f"{type(error).__name__}: {one_line(error)}", "is_error": True}


def _measure(setting: StepSetting, *, device: str, seconds: float) -> Row:
    """Return the time of a step and the peak of memory, or why there is none."""
    run = {"graph": _graph_seconds, **dict.fromkeys(STACKS, _stack_seconds)}.get(
        setting.variant, _loop_seconds
    )
    try:
        if device == "cuda":
            gc.collect()  # an error of the setting before may hold its tensors
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first = run(setting, WARM_STEPS, device)
        steps = max(WARM_STEPS, min(MAX_STEPS, int(seconds / max(first, 1e-6))))
        step_seconds = run(setting, steps, device)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    # The boundary of a setting: an error of one loses nothing of the others.
    except Exception as error:  # noqa: BLE001
        return describe_failure(error)
    return {"step_ms": 1e3 * step_seconds, "steps": steps, "peak_bytes": peak}


def _make_training(setting: StepSetting, split: Split, device: str) -> Training:
    return Training(
        setting.network(device),
        split,
        Split(split.images[:CLASSES], split.labels[:CLASSES]),
        replace(Train(), channels_last=setting.variant == "channels-last"),
        TrainingPhase(2),
        setting.batch,
        Numerics(device, setting.precision, micro_batch=setting.batch),  # type: ignore[arg-type]
        torch.Generator().manual_seed(0),
    )


def _loop_seconds(setting: StepSetting, steps: int, device: str) -> float:
    """Return the seconds of a step of the project's own loop, in its second epoch."""
    split = Split(*setting.images(setting.batch * steps, device))
    return run_training(_make_training(setting, split, device))[-1].seconds / steps


def _stack_seconds(setting: StepSetting, steps: int, device: str) -> float:
    """Return the seconds of a step of one training of a stack, in its second epoch."""
    members, steps = STACKS[setting.variant], max(WARM_STEPS, steps // STACKS[setting.variant])
    split = Split(*setting.images(setting.batch * steps, device))
    trainings = [_make_training(setting, split, device) for _ in range(members)]
    outcomes = run_stack(trainings, [global_states(torch.device(device)) for _ in trainings])
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes[0][-1].seconds / steps


def make_step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """Take a step on one batch, and return its loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def graph_of(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> torch.cuda.CUDAGraph:
    """Return a step as one CUDA graph, after some steps in which libraries choose their kernels."""
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    try:
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                make_step(net, optimizer, images, labels)
        stream.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            make_step(net, optimizer, images, labels)
    finally:
        # `torch.cuda.graph` stays on its own stream where the end of the capture raises an error.
        torch.cuda.set_stream(stream)
    return graph


def graph_optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the other variants, with its counter of steps on the device."""
    return torch.optim.Adam(net.parameters(), lr=1e-3, fused=True, capturable=True)


def _graph_seconds(setting: StepSetting, steps: int, device: str) -> float:
    """Return the seconds of a replayed step."""
    net = setting.network(device)
    graph = graph_of(net, graph_optimizer(net), *setting.images(setting.batch, device))
    graph.replay()
    torch.cuda.synchronize()
    started = perf_counter()
    for _ in range(steps):
        graph.replay()
    torch.cuda.synchronize()
    return (perf_counter() - started) / steps
