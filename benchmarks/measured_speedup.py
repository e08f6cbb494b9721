"""Measured against theoretical speedup: networks cut out, unstructured masks in CSR, and single layers.

    python benchmarks/measured_speedup.py [cut] [csr] [layers] [quick] [patience=SECONDS] [PICTURE.png]

Both sides are timed in turns in one process, on one thread, after a check that their outputs are equal.
Theoretical is the ratio of MACs; `masks alone` is the dense network with zeros in it. A/A is the dense side
against itself; a line is marked where that leaves [0.9, 1.1] or the machine has other work. With patience,
such a line is measured again for so long; if it never is undisturbed, the least disturbed one is shown.
`cut`, `csr` and `layers` are the parts, all without a word. `quick` leaves densenet121 on 3x32x32 out, which
takes minutes.
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
from orchestrator.latency.measure import BATCHES, Latency, NetworkVariants, check_equal, measure, one_thread
from orchestrator.latency.sparse import CsrLinear, CsrPointwise, candidates, csr, dead_parts, sparse
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
    """One comparison; the speedups are the dense side's time over the other's."""

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
    def of(cls, what: str, found: Latency, *, other: str, theoretical: float) -> Row:
        timing = found.timing
        times = timing.spreads["dense"].p50, timing.spreads[other].p50
        measured, masked = timing.ratios[other], timing.ratios.get("masked")
        return cls(what, found.batch, *times, theoretical, measured, masked, timing.self_ratio, timing.doubts)


def patiently(time: Callable[[], Latency], patience: float) -> Latency:
    """A measurement without a doubt, if one of a few is; else the control in order, and least load."""
    deadline, found = monotonic() + patience, []
    for _ in range(TRIES if patience else 1):
        wait_for_quiet(deadline)
        found.append(time())
        if not found[-1].timing.doubts:
            return found[-1]

    def doubt(latency: Latency) -> tuple[bool, float]:
        is_even = MIN_SELF_RATIO <= latency.timing.self_ratio <= MAX_SELF_RATIO
        return not is_even, latency.timing.load.others

    return min(found, key=doubt)


def wait_for_quiet(deadline: float) -> None:
    """Sleep until nothing else ran for a second, or it is over."""
    while monotonic() < deadline:
        load = watch_load()
        sleep(1.0)
        if not load().busy:
            return


def network(model: str, shape: tuple[int, int, int]) -> nn.Module:
    torch.manual_seed(0)
    return models.build(model, input_shape=shape, num_classes=10).eval()


def cut_out(patience: float, *, quick: bool) -> Iterator[Row]:
    """Channels of lowest 2-norm cut out of fresh networks."""
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
            forms = NetworkVariants(net, shape, sparse(net, masks, ()), small, masks)
            what = f"{model} {'x'.join(map(str, shape))}, {amount:.0%} of channels cut out"
            for batch in BATCHES:
                found = patiently(partial(measure, forms, batch=batch, seconds=SECONDS), patience)
                theory = dense / profile(small, shape).total_macs
                yield Row.of(what, found, other="cut", theoretical=theory)


def in_csr(patience: float) -> Iterator[Row]:
    """The smallest weights of each layer of the mlp: every layer in CSR, then only those that win a race."""
    net = network("mlp", DIGITS)
    dense = profile(net, DIGITS)
    for amount in SPARSITIES:
        masks = pruning.prune(net, amount=amount, criterion="magnitude", granularity="weight", scope="layer")
        forms = NetworkVariants(net, DIGITS, sparse(net, masks, ()), masks=masks)
        theory = dense.total_macs / effective_macs(dense, masks)
        for batch in BATCHES:
            for which, layers in (("all", candidates(net, dead_parts(masks))), ("the faster", None)):
                time = partial(measure, forms, batch=batch, seconds=SECONDS, csr_layers=layers)
                found = patiently(time, patience)
                what = f"mlp 1x8x8, {amount:.0%} of weights, {which} {len(found.csr_layers)} layers in CSR"
                if "csr" in found.timing.spreads:
                    yield Row.of(what, found, other="csr", theoretical=theory)


class Unfolded(nn.Module):
    """A convolution in CSR on unfolded images: what sparse_inference leaves out, and why."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.matrix, self.size = csr(layer.weight.detach().flatten(1)), layer.kernel_size[0]

    def forward(self, images: Tensor) -> Tensor:
        columns = functional.unfold(images, self.size, padding=self.size // 2)
        found = torch.stack([self.matrix @ one for one in columns])
        return found.reshape(len(images), -1, *images.shape[2:])


Convert = Callable[[Any], nn.Module]  # of a layer of its own kind
LAYERS: dict[str, tuple[Callable[[], nn.Linear | nn.Conv2d], Convert, tuple[int, ...]]] = {
    "Linear 1000 to 1000": (lambda: nn.Linear(1000, 1000), CsrLinear, (1000,)),
    "1x1 convolution 512 to 128, 8x8": (lambda: nn.Conv2d(512, 128, 1), CsrPointwise, (512, 8, 8)),
    "3x3 convolution 128 to 32, 8x8, unfolded": (
        lambda: nn.Conv2d(128, 32, 3, padding=1, bias=False),
        Unfolded,
        (128, 8, 8),
    ),
    "3x3 convolution 128 to 32, 32x32, unfolded": (
        lambda: nn.Conv2d(128, 32, 3, padding=1, bias=False),
        Unfolded,
        (128, 32, 32),
    ),
}


def layers(patience: float) -> Iterator[Row]:
    """Single layers with random masks, as they are in the mlp and in densenet121."""
    torch.manual_seed(0)
    for name, (build, convert, shape) in LAYERS.items():
        for amount in SPARSITIES:
            layer = build().requires_grad_(False)
            layer.weight *= torch.rand_like(layer.weight) >= amount
            theory = layer.weight.numel() / int(layer.weight.count_nonzero())
            nets = {"dense": layer, "csr": convert(layer)}
            for batch in (1, 32):
                found = patiently(partial(time_layers, nets, torch.rand(batch, *shape)), patience)
                yield Row.of(f"{name}, {amount:.0%} dead", found, other="csr", theoretical=theory)


@torch.inference_mode()
def time_layers(nets: dict[str, nn.Module], images: Tensor) -> Latency:
    with one_thread():
        check_equal(nets, images)
        timing = side_by_side({key: partial(net, images) for key, net in nets.items()}, seconds=SECONDS)
    return Latency(len(images), timing, "csr")


def printed(rows: Iterator[Row]) -> list[Row]:
    """Print a table line by line, as it comes."""
    print(f"\n| {' | '.join(HEADER)} |\n|" + " --- |" * len(HEADER))
    found = []
    for row in rows:
        ratios = f"{row.theoretical:.3g}x", f"{row.measured:.3g}x"
        masked = "" if row.masked is None else f"{row.masked:.2f}x"
        doubt = f" (unreliable: {', '.join(row.doubts)})" if row.doubts else ""
        cells = row.what, str(row.batch), f"{row.dense_ms:.3g}", f"{row.other_ms:.3g}", *ratios, masked
        print(f"| {' | '.join(cells)} | {row.aa:.2f}{doubt} |", flush=True)
        found.append(row)
    return found


def draw(rows: list[Row], path: str) -> None:
    """Measured over theoretical speedup; on the diagonal they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for kind, colour, marker in (("cut out", "#0072B2", "o"), ("in CSR", "#D55E00", "^")):
        for batch, inside in ((1, "none"), (256, colour)):
            own = [row for row in rows if kind in row.what and row.batch == batch]
            points = [row.theoretical for row in own], [row.measured for row in own]
            label = f"{kind}, batch {batch}"
            axes.scatter(*points, marker=marker, label=label, edgecolors=colour, facecolors=inside)
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
        "cut": partial(cut_out, patience, quick="quick" in words),
        "csr": partial(in_csr, patience),
        "layers": partial(layers, patience),
    }
    wanted = [name for name in parts if name in words] or list(parts)
    rows = {name: printed(parts[name]()) for name in wanted}
    lists = {name: [asdict(row) for row in found] for name, found in rows.items()}
    print(json.dumps({"environment": facts, **lists}))
    for path in (word for word in words if word.endswith(".png")):
        draw([*rows.get("cut", []), *rows.get("csr", [])], path)


if __name__ == "__main__":
    main()
