"""Trials a minute on a GPU: one at a time, several at once, captured CUDA graphs, networks stacked as one.

Without a CUDA device it says so and gives no row. It was written where there is none, and has never run on
one: its first results are to be looked at with care.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, stack_module_state, vmap

import models
from benchmarks.harness import Done, Job, Told, benchmark, main
from orchestrator.trial.metrics import profile, train_flops

DEVICE = "cuda"
STEPS, WARM = 50, 4  # steps of a trial, and of a network before it is timed
TOGETHER = 4  # trials at once
ROUNDS = 5
RATE = 0.01
TRIALS = Told("trials", "trials/min")


@dataclass(frozen=True)
class Setting:
    """A network and its batch. Every form trains it by plain SGD: all do the same arithmetic."""

    model: str
    batch: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, 32, 32) if self.model in ("cnn", "densenet121") else (1, 28, 28)

    def network(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return models.build(self.model, input_shape=self.shape, num_classes=10).to(DEVICE).train()

    def batch_of(self) -> tuple[Tensor, Tensor]:
        images = torch.randn((self.batch, *self.shape), generator=torch.Generator().manual_seed(0))
        return images.to(DEVICE), torch.arange(self.batch, device=DEVICE) % 10

    def floor(self) -> str:
        """FLOPs and bytes of a step; what launches cost is what a graph saves."""
        net = self.network()
        gigaflops = train_flops(profile(net, self.shape), self.batch) / 1e9
        held = sum(weight.numel() * weight.element_size() for weight in net.parameters()) / 1e6
        return f"A step is {gigaflops:.2f} GFLOP, and moves {5 * held:.1f} MB of weights and gradients."


SETTINGS = (
    *(Setting(model, batch) for model in ("slp", "mlp", "cnn") for batch in (32, 256)),
    Setting("densenet121", 256),
)


@dataclass(frozen=True, eq=False)
class Form:
    """How `trials` trials are run: one step of all of them, and the weights of the first."""

    step: Callable[[], None]
    weights: Callable[[], list[Tensor]]
    trials: int = 1

    def run(self) -> Done:
        """One trial of each, waited for."""
        started = perf_counter()
        for _ in range(STEPS):
            self.step()
        first = [weight.detach().cpu() for weight in self.weights()]  # waits for the device
        return _done(perf_counter() - started, self.trials, first)


def _done(seconds: float, trials: int, value: object = None) -> Done:
    return Done(value, measures={"seconds": seconds / trials, "trials": 60 * trials / seconds})


def plain(setting: Setting) -> Form:
    """One network, a launch for every operation."""
    net, (images, labels) = setting.network(), setting.batch_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    for _ in range(WARM):
        step()
    return Form(step, lambda: list(net.parameters()))


def captured(setting: Setting) -> Form:
    """The same step, launched as one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        form = plain(setting)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        form.step()
    return Form(graph.replay, form.weights)


def stacked(setting: Setting) -> Form:
    """Networks of one shape trained as one; their batch norms keep no running statistics."""
    nets = [setting.network(seed) for seed in range(TOGETHER)]
    for net in nets:
        replace_all_batch_norm_modules_(net)
    weights, buffers = stack_module_state(nets)
    images, labels = setting.batch_of()

    def loss(own: dict[str, Tensor], kept: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(nets[0], (own, kept), (images,)), labels)

    gradients = vmap(grad(loss))

    @torch.no_grad()
    def step() -> None:
        for name, slope in gradients(weights, buffers).items():
            weights[name].sub_(slope, alpha=RATE)

    for _ in range(WARM):
        step()
    return Form(step, lambda: [weight[0] for weight in weights.values()], TOGETHER)


def _one_of_several(setting: Setting, turn: Barrier) -> None:
    form = plain(setting)
    while True:  # a daemon: it ends with who started it
        turn.wait()
        form.run()
        turn.wait()


def fractions(setting: Setting) -> Callable[[], Done]:
    """A trial in each of several processes on one GPU, all at once, as `--gpus-per-trial 0.25` runs them."""
    context = multiprocessing.get_context("spawn")
    turn = context.Barrier(TOGETHER + 1)
    for _ in range(TOGETHER):
        context.Process(target=_one_of_several, args=(setting, turn), daemon=True).start()

    def run() -> Done:
        turn.wait()
        started = perf_counter()
        turn.wait()
        return _done(perf_counter() - started, TOGETHER)

    return run


def _near(ours: list[Tensor], peer: list[Tensor]) -> bool:
    return all(torch.allclose(one, other, atol=1e-3) for one, other in zip(ours, peer, strict=True))


@benchmark
def trials() -> Iterator[Job]:
    """Every form of running trials against the plain loop."""
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here", flush=True)
        return
    for setting in SETTINGS:
        what = f"{setting.model}, batch {setting.batch}, trials of {STEPS} steps"
        job = partial(Job, peer_name="one at a time", claims=(TRIALS,), rounds=ROUNDS, note=setting.floor())
        alike = {"equal": "weights to 1e-3", "same": _near}
        yield job(f"{what}, captured", ours=captured(setting).run, peer=plain(setting).run, **alike)
        yield job(f"{what}, {TOGETHER} stacked", ours=stacked(setting).run, peer=plain(setting).run, **alike)
        yield job(f"{what}, {TOGETHER} at once", ours=fractions(setting), peer=plain(setting).run)


if __name__ == "__main__":
    main(__file__)
