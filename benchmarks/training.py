"""Training: an epoch against the matmul peak, the masked step, and options that change bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import models
import pruning
from benchmarks.harness import AtMost, Done, Job, Told, benchmark, main
from orchestrator.config import Numerics, Train
from orchestrator.data.loading import Split
from orchestrator.system.memory import disable_malloc_trim
from orchestrator.training.loop import train
from orchestrator.training.optimizers import TrainingPhase, make_optimizer
from pruning.masking import prunable_layers

torch.set_num_threads(1)
disable_malloc_trim()  # as workers do

GREY, COLOUR, BATCH = (1, 28, 28), (3, 32, 32), 256
NUMERICS = Numerics(micro_batch=16_384)
RECIPE = Train(epochs=1)


def split_of(shape: tuple[int, int, int], count: int, *, seed: int = 0) -> Split:
    """Noise with labels: what an image holds costs nothing."""
    generator = torch.Generator().manual_seed(seed)
    return Split(
        torch.randn((count, *shape), generator=generator), torch.randint(10, (count,), generator=generator)
    )


def network(name: str = "mlp", shape: tuple[int, int, int] = GREY) -> nn.Module:
    """The same initial weights every time."""
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, num_classes=10)


@dataclass(frozen=True, eq=False)
class Matmuls:
    """The matrix products of one step of a network of linear layers, each in its own memory."""

    calls: tuple[Callable[[], Tensor], ...]
    flops: int

    def seconds(self) -> float:
        started = perf_counter()
        for call in self.calls:
            call()
        return perf_counter() - started


def matmuls(net: nn.Module, batch: int) -> Matmuls:
    """Outputs, gradients of weights, and of inputs but for the first layer's."""
    calls: list[Callable[[], Tensor]] = []
    flops = 0
    for number, layer in enumerate(prunable_layers(net).values()):
        outs, ins = layer.weight.shape
        x, w, dy = torch.randn(batch, ins), torch.randn(outs, ins), torch.randn(batch, outs)
        calls += [partial(torch.mm, x, w.t(), out=torch.empty(batch, outs))]
        calls += [partial(torch.mm, dy.t(), x, out=torch.empty(outs, ins))]
        calls += [partial(torch.mm, dy, w, out=torch.empty(batch, ins))] if number else []
        flops += (3 if number else 2) * 2 * batch * ins * outs
    return Matmuls(tuple(calls), flops)


class Trainer:
    """One network, trained an epoch at a time by the library's own loop."""

    def __init__(self, split: Split, masks: dict[str, Tensor] | None = None) -> None:
        self.net, self.split, self.masks = network(), split, masks
        self.validation = Split(split.images[:256], split.labels[:256])
        if masks is not None:
            pruning.apply_masks(self.net, masks)

    def epoch(self) -> Done:
        """The seconds are the epoch's own: data, steps, masks and metrics, without the validation."""
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
        return Done(measures={"seconds": record.seconds, "steps": record.seconds})


@benchmark
def epoch() -> Iterator[Job]:
    """An epoch of the five-layer mlp, 12 batches of 256, without masks and with."""
    split = split_of(GREY, 12 * BATCH)
    dense = network()
    products = matmuls(dense, BATCH)
    steps = len(split) // BATCH

    def peak() -> Done:
        return Done(measures={"seconds": sum(products.seconds() for _ in range(steps))})

    masks = pruning.prune(dense, amount=0.9)
    gigaflops = products.flops / 1e9
    for name, given in (("no masks", None), ("masks at 90%", masks)):
        yield Job(
            f"mlp epoch at batch 256, {name}, against its matmuls alone",
            ours=Trainer(split, given).epoch,
            peer=peak,
            peer_name=f"the {gigaflops:.2f} GFLOP of matrix products of each step",
            claims=(AtMost(1 / 0.8, limit=1.0),),
            rounds=25,
            note="1.25 is 80% of the peak. Adam alone moves 67 MB a step, about a ninth of its time.",
        )


class Steps:
    """Single steps of the mlp under Adam, on one batch; `after` follows the optimizer."""

    def __init__(self, net: nn.Module, batch: Split, after: Callable[[], object] | None = None) -> None:
        self.net, self.batch, self.after = net, batch, after
        self.optimizer = make_optimizer(RECIPE, net)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.net(self.batch.images), self.batch.labels, reduction="sum")
        (loss / len(self.batch)).backward()
        self.optimizer.step()
        if self.after is not None:
            self.after()


@benchmark
def masked_step() -> Iterator[Job]:
    """What masks add to a step, by the library's own masks and by torch.nn.utils.prune."""
    from orchestrator.training.loop import Masker  # the loop's own

    batch, dense = split_of(GREY, BATCH), network()
    masks = pruning.prune(dense, amount=0.9)
    ours, theirs = network(), network()
    pruning.apply_masks(ours, masks)
    for name, layer in prunable_layers(theirs).items():
        torch_prune.custom_from_mask(layer, "weight", masks[f"{name}.weight"])
    masked = Steps(ours, batch, Masker(ours, masks)).step
    yield Job(
        "masked step, mlp, batch 256, 90%",
        ours=masked,
        peer=Steps(dense, batch).step,
        peer_name="the dense step",
        claims=(AtMost(1.03, limit=1.0),),
        rounds=61,
        number=4,
    )
    yield Job(
        "masked step, mlp, batch 256, 90%, the library's masks and torch's",
        ours=masked,
        peer=Steps(theirs, batch).step,
        peer_name="torch.nn.utils.prune",
        claims=(AtMost(1.0),),
        rounds=41,
        number=4,
    )


@benchmark
def options() -> Iterator[Job]:
    """What the options that change bits give: `--precision bf16` and `train.channels_last`, one step each."""
    for model, shape, batch in (("mlp", GREY, BATCH), ("cnn", COLOUR, 64)):
        images_, plain = split_of(shape, batch), network(model, shape)
        for name, bf16, last in (("bf16", True, False), ("channels_last", False, True), ("both", True, True)):
            if model == "mlp" and last:
                continue
            other = deepcopy(plain).to(memory_format=torch.channels_last if last else torch.preserve_format)
            steps = Steps(other, images_).step

            def step(steps: Callable[[], None] = steps, bf16: bool = bf16) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    steps()

            yield Job(
                f"{model} step at batch {batch}, {name}",
                ours=step,
                peer=Steps(plain, images_).step,
                peer_name="float32, contiguous",
                claims=(Told(),),
                rounds=11,
                number=2,
            )


if __name__ == "__main__":
    main(__file__)
