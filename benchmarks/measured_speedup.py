"""Measured against theoretical speedup: cut networks, unstructured masks in CSR, and single layers.

    python benchmarks/measured_speedup.py [cut] [csr] [layers] [quick] [patience=SECONDS] [PICTURE.png]

Both sides are timed in turns in one process on one thread, after a check that their outputs are equal. The
theoretical speedup is the ratio of MACs. `masks alone` is the dense network with zeros. A/A is the dense side
against itself. A line is marked if that is outside [0.9, 1.1] or the machine has other load. With `patience`,
such a line is measured again for up to that time, and the least disturbed measurement is shown.

`cut`, `csr` and `layers` select parts; the default is all. `quick` omits densenet121 on 3x32x32, which takes
minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import models
import pruning
from orchestrator.latency.measure import (
    BATCHES,
    CsrLinear,
    CsrPointwise,
    Latency,
    NetworkVariants,
    candidates,
    check_equal,
    layer_sparsity,
    measure,
    to_csr,
    to_sparse,
)
from orchestrator.system.determinism import torch_threads
from orchestrator.system.machine import watch_load
from orchestrator.system.provenance import environment
from orchestrator.system.timing import MAX_SELF_RATIO, MIN_SELF_RATIO, side_by_side
from orchestrator.trial.metrics import effective_macs, profile

SECONDS, TRIES = 0.5, 3
DIGITS, COLOUR = (1, 8, 8), (3, 32, 32)
NETWORKS = [(model, shape) for model in ("mlp", "densenet121") for shape in (DIGITS, COLOUR)]
AMOUNTS, SPARSITIES = (0.5, 0.9), (0.9, 0.95, 0.99)
HEADER = ("what", "batch", "dense ms", "ms", "theoretical", "measured", "masks alone", "A/A")


@dataclass(frozen=True)
class Row:
    """One comparison; speedups are the dense time divided by the other time."""

    what: str
    batch: int
    dense_ms: float
    other_ms: float
    theoretical: float
    measured: float
    masked: float | None
    aa: float
    doubts: tuple[str, ...]

    @classmethod
    def of(cls, what: str, latency: Latency, *, other: str, theoretical: float) -> Row:
        timing = latency.timing
        times = timing.spreads["dense"].p50, timing.spreads[other].p50
        measured, masked = timing.ratios[other], timing.ratios.get("masked")
        return cls(
            what, latency.batch, *times, theoretical, measured, masked, timing.self_ratio, timing.doubts
        )


def measure_undisturbed(time: Callable[[], Latency], patience: float) -> Latency:
    """Return the first reliable measurement of a few, or the one with the best control and least load."""
    deadline, latencies = monotonic() + patience, []
    for _ in range(TRIES if patience else 1):
        wait_for_quiet(deadline)
        latencies.append(time())
        if not latencies[-1].timing.doubts:
            return latencies[-1]

    def doubt(latency: Latency) -> tuple[bool, float]:
        is_even = MIN_SELF_RATIO <= latency.timing.self_ratio <= MAX_SELF_RATIO
        return not is_even, latency.timing.load.others

    return min(latencies, key=doubt)


def wait_for_quiet(deadline: float) -> None:
    """Sleep until the machine was quiet for a second, or until the deadline."""
    while monotonic() < deadline:
        load = watch_load()
        sleep(1.0)
        if not load().busy:
            return


def network(model: str, shape: tuple[int, int, int]) -> nn.Module:
    torch.manual_seed(0)
    return models.build(model, input_shape=shape, num_classes=10).eval()


def cut_rows(patience: float, *, quick: bool) -> Iterator[Row]:
    """Yield rows of new networks with the channels of lowest 2-norm cut out."""
    for model, shape in NETWORKS:
        if quick and (model, shape) == ("densenet121", COLOUR):
            continue
        net, image = network(model, shape), torch.rand(2, *shape)
        groups, dense = pruning.trace(net, image), profile(net, shape).total_macs
        for amount in AMOUNTS:
            masks = pruning.prune(
                net, amount=amount, criterion="l2", granularity="channel", scope="layer", groups=groups
            )
            small = pruning.shrink(net, masks, image, groups=groups)
            forms = NetworkVariants(net, shape, to_sparse(net, masks, ()), small, masks)
            what = f"{model} {'x'.join(map(str, shape))}, {amount:.0%} of channels cut out"
            for batch in BATCHES:
                latency = measure_undisturbed(partial(measure, forms, batch=batch, seconds=SECONDS), patience)
                theory = dense / profile(small, shape).total_macs
                yield Row.of(what, latency, other="cut", theoretical=theory)


def csr_rows(patience: float) -> Iterator[Row]:
    """Yield rows of an mlp with its smallest weights removed: all layers in CSR, then the faster ones."""
    net = network("mlp", DIGITS)
    dense = profile(net, DIGITS)
    for amount in SPARSITIES:
        masks = pruning.prune(net, amount=amount, criterion="magnitude", granularity="weight", scope="layer")
        forms = NetworkVariants(net, DIGITS, to_sparse(net, masks, ()), masks=masks)
        theory = dense.total_macs / effective_macs(dense, masks)
        for batch in BATCHES:
            for which, layers in (("all", candidates(net, layer_sparsity(masks))), ("the faster", None)):
                time = partial(measure, forms, batch=batch, seconds=SECONDS, csr_layers=layers)
                latency = measure_undisturbed(time, patience)
                what = f"mlp 1x8x8, {amount:.0%} of weights, {which} {len(latency.csr_layers)} layers in CSR"
                if "csr" in latency.timing.spreads:
                    yield Row.of(what, latency, other="csr", theoretical=theory)


class UnfoldedCsrConv(nn.Module):
    """A convolution in CSR on unfolded images, which the product does not use because it is slow."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.matrix, self.size = to_csr(layer.weight.detach().flatten(1)), layer.kernel_size[0]

    def forward(self, images: Tensor) -> Tensor:
        columns = functional.unfold(images, self.size, padding=self.size // 2)
        outputs = torch.stack([self.matrix @ column for column in columns])
        return outputs.reshape(len(images), -1, *images.shape[2:])


Convert = Callable[[Any], nn.Module]  # converts a layer of one kind
LAYERS: dict[str, tuple[Callable[[], nn.Linear | nn.Conv2d], Convert, tuple[int, ...]]] = {
    "Linear 1000 to 1000": (lambda: nn.Linear(1000, 1000), CsrLinear, (1000,)),
    "1x1 convolution 512 to 128, 8x8": (lambda: nn.Conv2d(512, 128, 1), CsrPointwise, (512, 8, 8)),
    "3x3 convolution 128 to 32, 8x8, unfolded": (
        lambda: nn.Conv2d(128, 32, 3, padding=1, bias=False),
        UnfoldedCsrConv,
        (128, 8, 8),
    ),
    "3x3 convolution 128 to 32, 32x32, unfolded": (
        lambda: nn.Conv2d(128, 32, 3, padding=1, bias=False),
        UnfoldedCsrConv,
        (128, 32, 32),
    ),
}


def layer_rows(patience: float) -> Iterator[Row]:
    """Yield rows of single layers with random masks, in shapes of the mlp and of densenet121."""
    torch.manual_seed(0)
    for name, (build, convert, shape) in LAYERS.items():
        for amount in SPARSITIES:
            layer = build().requires_grad_(False)
            layer.weight *= torch.rand_like(layer.weight) >= amount
            theory = layer.weight.numel() / int(layer.weight.count_nonzero())
            nets = {"dense": layer, "csr": convert(layer)}
            for batch in (1, 32):
                latency = measure_undisturbed(partial(time_layers, nets, torch.rand(batch, *shape)), patience)
                yield Row.of(f"{name}, {amount:.0%} dead", latency, other="csr", theoretical=theory)


@torch.inference_mode()
def time_layers(nets: dict[str, nn.Module], images: Tensor) -> Latency:
    with torch_threads(1):
        check_equal(nets, images)
        timing = side_by_side({key: partial(net, images) for key, net in nets.items()}, seconds=SECONDS)
    return Latency(len(images), timing, "csr")


def print_rows(rows: Iterator[Row]) -> list[Row]:
    """Print a table line by line while its rows are measured."""
    print(f"\n| {' | '.join(HEADER)} |\n|" + " --- |" * len(HEADER))
    printed = []
    for row in rows:
        ratios = f"{row.theoretical:.3g}x", f"{row.measured:.3g}x"
        masked = "" if row.masked is None else f"{row.masked:.2f}x"
        unreliable = f" (unreliable: {', '.join(row.doubts)})" if row.doubts else ""
        cells = row.what, str(row.batch), f"{row.dense_ms:.3g}", f"{row.other_ms:.3g}", *ratios, masked
        print(f"| {' | '.join(cells)} | {row.aa:.2f}{unreliable} |", flush=True)
        printed.append(row)
    return printed


def draw(rows: list[Row], path: str) -> None:
    """Draw the measured against the theoretical speedup, with a diagonal where they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for kind, colour, marker in (("cut out", "#0072B2", "o"), ("in CSR", "#D55E00", "^")):
        for batch, fill in ((1, "none"), (256, colour)):
            series = [row for row in rows if kind in row.what and row.batch == batch]
            points = [row.theoretical for row in series], [row.measured for row in series]
            label = f"{kind}, batch {batch}"
            axes.scatter(*points, marker=marker, label=label, edgecolors=colour, facecolors=fill)
    ends = [1, 1.5 * max(row.theoretical for row in rows)]
    axes.plot(ends, ends, color="black", linewidth=0.8, label="as in theory")
    axes.set(xscale="log", yscale="log", xlabel="theoretical speedup (MACs)", ylabel="measured speedup")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    words = sys.argv[1:]
    patience = next((float(word.partition("=")[2]) for word in words if word.startswith("patience=")), 0.0)
    facts = environment()
    print(f"{facts['processor']}, {facts['cores']} cores, one thread; torch {facts['package.torch']}")
    parts = {
        "cut": partial(cut_rows, patience, quick="quick" in words),
        "csr": partial(csr_rows, patience),
        "layers": partial(layer_rows, patience),
    }
    selected = [name for name in parts if name in words] or list(parts)
    rows = {name: print_rows(parts[name]()) for name in selected}
    lists = {name: [asdict(row) for row in part] for name, part in rows.items()}
    print(json.dumps({"environment": facts, **lists}))
    for path in (word for word in words if word.endswith(".png")):
        draw([*rows.get("cut", []), *rows.get("csr", [])], path)


if __name__ == "__main__":
    main()
