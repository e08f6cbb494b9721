"""Training: an epoch against its matrix products alone, the masked step, and options that change bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import models
import pruning
from benchmarks.harness import AtMost, Job, Reported, SideResult, benchmark, main
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.system.memory import disable_malloc_trim
from orchestrator.training.loop import train
from orchestrator.training.lr_schedules import TrainingPhase
from orchestrator.training.masked_step import Masker, step_and_mask
from orchestrator.training.optimizers import make_optimizer
from pruning.masking import prunable_layers

torch.set_num_threads(1)
disable_malloc_trim()  # as workers do

GREY, COLOUR, BATCH = (1, 28, 28), (3, 32, 32), 256
NUMERICS = Numerics(micro_batch=16_384)
RECIPE = Train(epochs=1)


def make_split(shape: tuple[int, int, int], count: int, *, seed: int = 0) -> Split:
    """Return noise with random labels; the content of images does not affect the time."""
    generator = torch.Generator().manual_seed(seed)
    return Split(
        torch.randn((count, *shape), generator=generator), torch.randint(10, (count,), generator=generator)
    )


def network(name: str = "mlp", shape: tuple[int, int, int] = GREY) -> nn.Module:
    """Return a network with the same initial weights every time."""
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=10)


@dataclass(frozen=True, eq=False)
class MatrixProducts:
    """The matrix products of one step of a network of linear layers, each with separate memory."""

    calls: tuple[Callable[[], Tensor], ...]
    flops: int

    def seconds(self) -> float:
        started = perf_counter()
        for call in self.calls:
            call()
        return perf_counter() - started


def matrix_products(net: nn.Module, batch: int) -> MatrixProducts:
    """Return the products for outputs, weight gradients, and input gradients except the first layer's."""
    calls: list[Callable[[], Tensor]] = []
    flops = 0
    for number, layer in enumerate(prunable_layers(net).values()):
        outs, ins = layer.weight.shape
        x, w, dy = torch.randn(batch, ins), torch.randn(outs, ins), torch.randn(batch, outs)
        calls += [partial(torch.mm, x, w.t(), out=torch.empty(batch, outs))]
        calls += [partial(torch.mm, dy.t(), x, out=torch.empty(outs, ins))]
        calls += [partial(torch.mm, dy, w, out=torch.empty(batch, ins))] if number else []
        flops += (3 if number else 2) * 2 * batch * ins * outs
    return MatrixProducts(tuple(calls), flops)


class Trainer:
    """One network, trained one epoch at a time by `orchestrator.training.loop`."""

    def __init__(self, split: Split, masks: dict[str, Tensor] | None = None) -> None:
        self.net, self.split, self.masks = network(), split, masks
        self.validation = Split(split.images[:256], split.labels[:256])
        if masks is not None:
            pruning.apply_masks(self.net, masks)

    def epoch(self) -> SideResult:
        """Train one epoch; the seconds include data, steps, masks and metrics, but not the validation."""
        record = train(
            self.net,
            self.split,
            self.validation,
            recipe=RECIPE,
            phase=TrainingPhase(1),
            batch_size=BATCH,
            numerics=NUMERICS,
            generator=torch.Generator().manual_seed(0),
            masks=self.masks,
        )[-1]
        return SideResult(measures={"seconds": record.seconds, "steps": record.seconds})


@benchmark
def epoch() -> Iterator[Job]:
    """Train the five-layer mlp for an epoch of 12 batches of 256, without and with masks."""
    split = make_split(GREY, 12 * BATCH)
    dense = network()
    products = matrix_products(dense, BATCH)
    steps = len(split) // BATCH

    def peak() -> SideResult:
        return SideResult(measures={"seconds": sum(products.seconds() for _ in range(steps))})

    masks = pruning.prune(dense, amount=0.9)
    gigaflops = products.flops / 1e9
    for name, epoch_masks in (("no masks", None), ("masks at 90%", masks)):
        yield Job(
            f"mlp epoch at batch 256, {name}, against its matmuls alone",
            ours=Trainer(split, epoch_masks).epoch,
            baseline=peak,
            baseline_name=f"the {gigaflops:.2f} GFLOP of matrix products of each step",
            claims=(AtMost(1 / 0.8, limit=1.0),),
            rounds=25,
            note="1.25 is 80% of the peak. Adam alone moves 67 MB a step, about a ninth of its time.",
        )


class Steps:
    """Single steps of the mlp with Adam on one batch, with masks or without."""

    def __init__(self, net: nn.Module, batch: Split, masks: Mapping[str, Tensor] | None = None) -> None:
        self.net, self.batch = net, batch
        self.optimizer = make_optimizer(RECIPE, net)
        self.masker = Masker(dict(net.named_parameters()), masks or {})

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.net(self.batch.images), self.batch.labels, reduction="sum")
        (loss / len(self.batch)).backward()
        step_and_mask(self.optimizer, self.masker)


@benchmark
def masked_step() -> Iterator[Job]:
    """Measure the cost of masks in a step, with the masks of this project and of torch.nn.utils.prune."""
    batch, dense = make_split(GREY, BATCH), network()
    masks = pruning.prune(dense, amount=0.9)
    ours, theirs = network(), network()
    pruning.apply_masks(ours, masks)
    for name, layer in prunable_layers(theirs).items():
        torch_prune.custom_from_mask(layer, "weight", masks[f"{name}.weight"])
    masked = Steps(ours, batch, masks).step
    yield Job(
        "masked step, mlp, batch 256, 90%",
        ours=masked,
        baseline=Steps(dense, batch).step,
        baseline_name="the dense step",
        claims=(AtMost(1.03, limit=1.0),),
        rounds=61,
        number=4,
    )
    yield Job(
        "masked step, mlp, batch 256, 90%, this project's masks and torch's",
        ours=masked,
        baseline=Steps(theirs, batch).step,
        baseline_name="torch.nn.utils.prune",
        claims=(AtMost(1.0),),
        rounds=41,
        number=4,
    )


@benchmark
def options() -> Iterator[Job]:
    """Time one step with the options that change bits: `--precision bf16` and `train.channels_last`."""
    for model, shape, batch in (("mlp", GREY, BATCH), ("cnn", COLOUR, 64)):
        batch_split, net = make_split(shape, batch), network(model, shape)
        for name, bf16, last in (("bf16", True, False), ("channels_last", False, True), ("both", True, True)):
            if model == "mlp" and last:
                continue
            option_net = deepcopy(net).to(
                memory_format=torch.channels_last if last else torch.preserve_format
            )
            steps = Steps(option_net, batch_split).step

            def step(steps: Callable[[], None] = steps, bf16: bool = bf16) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    steps()

            yield Job(
                f"{model} step at batch {batch}, {name}",
                ours=step,
                baseline=Steps(net, batch_split).step,
                baseline_name="float32, contiguous",
                claims=(Reported(),),
                rounds=11,
                number=2,
            )


if __name__ == "__main__":
    main(__file__)
