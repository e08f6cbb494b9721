"""Trials a minute on a GPU: one at a time, several in parallel, as CUDA graphs, and stacked as one network.

Without a CUDA device it prints so and gives no rows. It has never run on a GPU: check its first results.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, stack_module_state, vmap

import models
from benchmarks.harness import Job, Reported, SideResult, benchmark, main
from orchestrator.trial.metrics import profile, train_flops

DEVICE = "cuda"
STEPS, WARMUP_STEPS = 50, 4  # steps of a trial; steps before timing
PARALLEL = 4  # trials that run at the same time
ROUNDS = 5
RATE = 0.01
WAIT_SECONDS = 120.0  # for a process that starts, or that runs a trial
ENDING_SECONDS = 5.0
TRIALS = Reported("trials", "trials/min")


@dataclass(frozen=True)
class Setting:
    """A network and its batch size. Every runner trains it by plain SGD, so all do the same arithmetic."""

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
        """Return a note with the FLOPs and bytes of a step."""
        net = self.network()
        gigaflops = train_flops(profile(net, self.shape), self.batch) / 1e9
        megabytes = sum(weight.numel() * weight.element_size() for weight in net.parameters()) / 1e6
        return f"A step is {gigaflops:.2f} GFLOP, and moves {5 * megabytes:.1f} MB of weights and gradients."


SETTINGS = (
    *(Setting(model, batch) for model in ("slp", "mlp", "cnn") for batch in (32, 256)),
    Setting("densenet121", 256),
)


@dataclass(frozen=True, eq=False)
class TrialRunner:
    """A way to run `trials` trials: one step of all of them, and the weights of the first."""

    step: Callable[[], None]
    weights: Callable[[], list[Tensor]]
    trials: int = 1

    def run(self) -> SideResult:
        """Run the trials and wait for the device."""
        started = perf_counter()
        for _ in range(STEPS):
            self.step()
        first = [weight.detach().cpu() for weight in self.weights()]  # waits for the device
        return _make_result(perf_counter() - started, self.trials, first)


def _make_result(seconds: float, trials: int, value: object = None) -> SideResult:
    return SideResult(value, measures={"seconds": seconds / trials, "trials": 60 * trials / seconds})


def plain_loop(setting: Setting) -> TrialRunner:
    """Return a runner of one network, with a kernel launch for every operation."""
    net, (images, labels) = setting.network(), setting.batch_of()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    for _ in range(WARMUP_STEPS):
        step()
    return TrialRunner(step, lambda: list(net.parameters()))


def cuda_graph(setting: Setting) -> TrialRunner:
    """Return a runner of one network whose step is one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        runner = plain_loop(setting)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runner.step()
    return TrialRunner(graph.replay, runner.weights)


def stacked_networks(setting: Setting) -> TrialRunner:
    """Return a runner of several networks stacked as one; their batch norms keep no running statistics."""
    nets = [setting.network(seed) for seed in range(PARALLEL)]
    for net in nets:
        replace_all_batch_norm_modules_(net)
    weights, buffers = stack_module_state(nets)
    images, labels = setting.batch_of()

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(nets[0], (weights, buffers), (images,)), labels)

    gradients = vmap(grad(loss))

    @torch.no_grad()
    def step() -> None:
        for name, gradient in gradients(weights, buffers).items():
            weights[name].sub_(gradient, alpha=RATE)

    for _ in range(WARMUP_STEPS):
        step()
    return TrialRunner(step, lambda: [weight[0] for weight in weights.values()], PARALLEL)


def _plain_trial(setting: Setting) -> Callable[[], object]:
    return plain_loop(setting).run


def _run_worker(make_trial: Callable[[], Callable[[], object]], barrier: Barrier) -> None:
    """Run a trial at every other wait, until the barrier is broken or the parent does not come."""
    trial = make_trial()
    try:
        while True:
            barrier.wait(WAIT_SECONDS)
            trial()
            barrier.wait(WAIT_SECONDS)
    except BrokenBarrierError:
        return


class ParallelProcesses:
    """Several processes that run a trial each at the same time, as `--gpus-per-trial 0.25` does.

    `make_trial` is called once in each of them. Within the block they are there, and after it they are not.
    """

    def __init__(self, make_trial: Callable[[], Callable[[], object]], *, count: int = PARALLEL) -> None:
        context = multiprocessing.get_context("spawn")
        self.barrier = context.Barrier(count + 1)
        self.processes = [
            context.Process(target=_run_worker, args=(make_trial, self.barrier), daemon=True)
            for _ in range(count)
        ]

    def __enter__(self) -> ParallelProcesses:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.barrier.abort()
        for end in (BaseProcess.terminate, BaseProcess.kill):
            for process in self.processes:
                process.join(ENDING_SECONDS)
                if process.is_alive():
                    end(process)
        for process in self.processes:
            process.join(ENDING_SECONDS)

    def run(self) -> SideResult:
        """Run a trial in each process. BrokenBarrierError where one of them does not come in time."""
        self.barrier.wait(WAIT_SECONDS)
        started = perf_counter()
        self.barrier.wait(WAIT_SECONDS)
        return _make_result(perf_counter() - started, len(self.processes))


def _is_close(ours: list[Tensor], baseline: list[Tensor]) -> bool:
    return all(torch.allclose(*pair, atol=1e-3) for pair in zip(ours, baseline, strict=True))


@benchmark
def trials() -> Iterator[Job]:
    """Compare every runner with the plain loop."""
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here", flush=True)
        return
    for setting in SETTINGS:
        what = f"{setting.model}, batch {setting.batch}, trials of {STEPS} steps"
        job = partial(
            Job, baseline_name="one at a time", claims=(TRIALS,), rounds=ROUNDS, note=setting.floor()
        )
        check = {"equal": "weights to 1e-3", "is_equal": _is_close}
        yield job(
            f"{what}, captured", ours=cuda_graph(setting).run, baseline=plain_loop(setting).run, **check
        )
        yield job(
            f"{what}, {PARALLEL} stacked",
            ours=stacked_networks(setting).run,
            baseline=plain_loop(setting).run,
            **check,
        )
        with ParallelProcesses(partial(_plain_trial, setting)) as parallel:
            yield job(f"{what}, {PARALLEL} at once", ours=parallel.run, baseline=plain_loop(setting).run)


if __name__ == "__main__":
    main(__file__)
