"""Stacks: several trainings as one against the same one by one, and whole sweeps with and without."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import models
from benchmarks.harness import AtLeast, Claim, Job, Reported, SideResult, benchmark, main
from benchmarks.processes import python_command, run_command
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.system.determinism import global_states
from orchestrator.system.memory import disable_malloc_trim
from orchestrator.training.loop import Training, run_training
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.stack import run_stack, stack_conflict

torch.set_num_threads(1)
disable_malloc_trim()  # as workers do
DIGITS, CPU = (1, 8, 8), torch.device("cpu")
STEPS, RECIPE, NUMERICS = 4, Train(epochs=1), Numerics(micro_batch=4096)
# Networks, batch sizes, and what a stack of so many members is to reach, where it is used.
CASES: tuple[tuple[str, int, tuple[tuple[int, Claim], ...]], ...] = (
    ("slp", 64, ((8, AtLeast(1.8)), (16, AtLeast(2.2)), (64, AtLeast(2.5)))),
    ("mlp(widths=[64, 64])", 32, ((8, AtLeast(1.8)), (16, AtLeast(2.2)), (64, AtLeast(2.5)))),
    ("mlp(widths=[256, 256])", 64, ((8, AtLeast(1.05)), (16, AtLeast(1.05)), (64, Reported()))),
    ("mlp", 64, ((8, Reported()), (16, Reported()), (64, Reported()))),
    ("cnn", 64, ((8, Reported()), (16, Reported()), (64, Reported()))),
    ("resnet(depth=20)", 32, ((8, Reported()), (16, Reported()))),
)
ORCHESTRATE = python_command("-m", "orchestrator.cli")
SWEEPS = {  # what `weight-vs-unit` is changed to
    "as it stands (mlp)": (),
    "mlp(widths=[64, 64]), fine-tuned for 10 epochs": (
        "model=mlp(widths=[64,64])",
        "recover=finetune(epochs=10)",
    ),
}


def make_trainings(model: str, batch_size: int, members: int) -> list[Training]:
    """Return trainings of a few steps on noise, which takes the time that images take."""
    generator = torch.Generator().manual_seed(0)
    count = STEPS * batch_size
    labels = torch.randint(10, (count,), generator=generator)
    split = Split(torch.randn((count, *DIGITS), generator=generator), labels)
    few = Split(split.images[:2], split.labels[:2])
    trainings = []
    for seed in range(members):
        torch.manual_seed(seed)
        net = models.build(model, input_shape=DIGITS, num_classes=10)
        order = torch.Generator().manual_seed(seed)
        trainings.append(Training(net, split, few, RECIPE, TrainingPhase(1), batch_size, NUMERICS, order))
    return trainings


def run_together(model: str, batch_size: int, members: int, *, as_stack: bool) -> SideResult:
    """Train, and return the weights with the seconds of the steps, by the wall and of the CPU."""
    trainings = make_trainings(model, batch_size, members)
    started = process_time()
    if as_stack:
        outcomes = run_stack(trainings, [global_states(CPU) for _ in trainings])
    else:
        outcomes = [run_training(training) for training in trainings]
    cpu_seconds = process_time() - started
    weights: list[Tensor] = [w for training in trainings for w in training.net.state_dict().values()]
    seconds = sum(rows[-1].seconds for rows in outcomes if not isinstance(rows, Exception))
    return SideResult(weights, {"seconds": seconds, "cpu": cpu_seconds})


@benchmark
def steps() -> Iterator[Job]:
    """Train for a few steps on one core; the sides must have the same bits."""
    for model, batch_size, claims in CASES:
        conflict = stack_conflict(make_trainings(model, batch_size, 1)[0].net, batch_size, "cpu")
        for members, claim in claims:
            yield Job(
                f"{STEPS} steps of {members} trainings of {model}, batch {batch_size}"
                f"{': a sweep runs these one by one' if conflict else ''}",
                ours=partial(run_together, model, batch_size, members, as_stack=True),
                baseline=partial(run_together, model, batch_size, members, as_stack=False),
                baseline_name="one by one",
                claims=(claim, Reported("cpu")),
                rounds=5 if members < 64 else 3,
                equal="bit for bit",
                note=conflict,
            )


@benchmark
def convolutions() -> Iterator[Job]:
    """Run a 3x3 convolution of several networks, forward and backward, as groups of one and one by one."""
    for images, ins, outs, side in ((64, 32, 64, 4), (32, 16, 16, 8), (64, 32, 64, 14)):
        for members in (8, 16):
            inputs = torch.randn((members, images, ins, side, side), requires_grad=True)
            filters = torch.randn((members, outs, ins, 3, 3), requires_grad=True)
            yield Job(
                f"3x3 convolution {ins} to {outs}, {side}x{side}, {images} images, {members} networks",
                ours=partial(convolve_in_groups, inputs, filters),
                baseline=partial(convolve_one_by_one, inputs, filters),
                baseline_name="one by one",
                claims=(Reported(),),
                note="why networks with convolutions are not stacked on a CPU",
            )


def convolve_in_groups(inputs: Tensor, filters: Tensor) -> None:
    members, images, _, *sides = inputs.shape
    grouped = inputs.transpose(0, 1).reshape(images, -1, *sides)
    outputs = functional.conv2d(grouped, filters.flatten(0, 1), padding=1, groups=members)
    outputs.reshape(images, members, -1, *sides).transpose(0, 1).contiguous().sum().backward()


def convolve_one_by_one(inputs: Tensor, filters: Tensor) -> None:
    pairs = zip(inputs, filters, strict=True)
    torch.cat([functional.conv2d(part, own, padding=1) for part, own in pairs]).sum().backward()


def sweep(folder: Path, sets: Sequence[str], stack: str) -> SideResult:
    """Run `weight-vs-unit` with 20 seeds in an empty store, and return its accuracies."""
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    options = [word for text in ("seed=0..19", *sets) for word in ("--set", text)]
    command = [*ORCHESTRATE, "sweep", "--space", "weight-vs-unit", "--json", "--stack", stack, *options]
    output, result = run_command(command, folder=folder, environment={"OMP_NUM_THREADS": "1"})
    rows: list[dict[str, Any]] = json.loads(output)["results"]
    accuracies = sorted(row["accuracy"] for row in rows)
    return SideResult(accuracies, result.measures, result.child_cpu_seconds)


@benchmark
def sweeps() -> Iterator[Job]:
    """Sweep 20 seeds, whole processes, with stacks and without."""
    for name, sets in SWEEPS.items():
        with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
            yield Job(
                f"weight-vs-unit with 20 seeds, {name}, whole process",
                ours=partial(sweep, Path(folder), sets, "auto"),
                baseline=partial(sweep, Path(folder), sets, "off"),
                baseline_name="--stack off",
                claims=(Reported(), Reported("cpu")),
                rounds=1,
                warm=False,
                equal="every accuracy",
            )


if __name__ == "__main__":
    main(__file__)
