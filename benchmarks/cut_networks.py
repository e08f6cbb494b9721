"""Dense and cut networks side by side in one process: a forward pass and a training step.

    python benchmarks/cut_networks.py [SWEEP]

With SWEEP, the networks are those of its trials, compared with dense networks of the same model. Without,
they are an mlp, a cnn and densenet121 with 50% and 90% of their channels cut out. The sides alternate in
every round. `A/A` is the dense network against itself; a ratio is not reliable if that is outside [0.9,
1.1].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.benchmark import Timer

import models
import orchestrator
import pruning
from orchestrator.data.datasets import info
from orchestrator.trial.metrics import profile

ROUNDS = 5
BATCH = 256
NETWORKS = (("mlp", (1, 28, 28)), ("cnn", (3, 32, 32)), ("densenet121", (3, 32, 32)))
AMOUNTS = (0.5, 0.9)


@dataclass(frozen=True)
class Pair:
    name: str
    dense: nn.Module
    small: nn.Module
    images: Tensor


def new_pairs() -> Iterator[Pair]:
    """Yield new networks, with the channels of lowest 2-norm cut out."""
    for name, shape in NETWORKS:
        torch.manual_seed(0)
        net = models.build(name, input_shape=shape, num_classes=10).eval()
        images = torch.rand(BATCH if name != "densenet121" else 32, *shape)
        groups = pruning.trace(net, images[:2])
        for amount in AMOUNTS:
            masks = pruning.prune(
                net, amount=amount, criterion="l2", granularity="channel", scope="layer", groups=groups
            )
            yield Pair(
                f"{name}, {amount:.0%} of channels", net, pruning.shrink(net, masks, images[:2]), images
            )


def recorded_pairs(sweep: str) -> Iterator[Pair]:
    """Yield the first seed's network of each setting of a sweep, with a dense one."""
    frame = orchestrator.results(sweep)
    frame = frame[(frame["status"] == "finished") & (frame["seed"] == frame["seed"].min())]
    for trial in frame.to_dict("records"):
        small, record = orchestrator.load(trial["run_id"])
        shape = info(trial["dataset"]).input_shape
        dense = models.build(trial["model"], input_shape=shape, num_classes=10).eval()
        about = f"{trial['prepare']}, {trial['recover']}: accuracy {record.metrics['final/accuracy']:.3f}"
        yield Pair(about, dense, small, torch.rand(BATCH, *shape))


def forward_pass(net: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        net.eval()(images)


def train_step(net: nn.Module, images: Tensor) -> None:
    net.train()
    labels = torch.zeros(len(images), dtype=torch.long)
    functional.cross_entropy(net(images), labels).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 1e-4 * parameter.grad
            parameter.grad = None


def measure_ms(what: str, net: nn.Module, images: Tensor) -> float:
    scope = {"run": {"forward": forward_pass, "step": train_step}[what], "net": net, "images": images}
    return 1e3 * float(Timer("run(net, images)", globals=scope).blocked_autorange(min_run_time=0.2).median)


def compare(pair: Pair) -> dict[str, object]:
    """Return the median times, the median of their ratios over rounds, and the ratio of MACs."""
    shape = tuple(pair.images.shape[1:])
    macs = [profile(net, shape).total_macs for net in (pair.dense, pair.small)]  # type: ignore[arg-type]
    row: dict[str, object] = {
        "network": pair.name,
        "batch": len(pair.images),
        "MACs ratio": macs[0] / macs[1],
    }
    for what in ("forward", "step"):
        times = [
            [measure_ms(what, net, pair.images) for net in (pair.dense, pair.small, pair.dense)]
            for _ in range(ROUNDS)
        ]
        row[f"{what} dense ms"] = median(first for first, _, _ in times)
        row[f"{what} cut ms"] = median(small for _, small, _ in times)
        row[f"{what} ratio"] = median(first / small for first, small, _ in times)
        row[f"{what} A/A"] = median(first / again for first, _, again in times)
    return row


def main() -> None:
    torch.set_num_threads(1)
    rows = [compare(pair) for pair in (recorded_pairs(sys.argv[1]) if len(sys.argv) > 1 else new_pairs())]
    header = list(rows[0])
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    load = os.getloadavg()[0]
    print(json.dumps({"torch": torch.__version__, "threads": 1, "load": load, "rows": rows}))


if __name__ == "__main__":
    main()
