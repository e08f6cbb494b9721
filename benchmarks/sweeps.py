"""Sweeps as a person starts them, each in a new process and a fresh store: start-up and all else included.

The peer is `benchmarks/peer.py`. CPU seconds are those of all processes, Ray's own included.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import AtMost, Done, Job, Told, benchmark, main
from benchmarks.processes import command, python

ORCHESTRATE = python("-m", "orchestrator.cli")
SCRIPT = str(Path(sys.executable).with_name("orchestrate"))  # its completion goes by this name
PEER = Path(__file__).parent / "peer.py"
NAME = "job"
SPACE = """\
version: 1
about: The peer's job.
axes:
  model: ["mlp(widths=[256, 256], bias=True)"]
  dataset: [digits]
  batch_size: [64]
  technique: [weight, neuron]
  amount: [0, 25%, 50%, 60%, 70%, 75%, 80%, 85%, 90%, 92.5%, 95%, 97.5%, 99%]
train: {epochs: 10, optimizer: adam, lr: 1e-3}
recover: finetune(epochs=3)
"""
SWEEP = [*ORCHESTRATE, "sweep", "--space", f"{NAME}.yaml", "--json"]
FLOOR = """\
import os
os.environ.update(RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
import mlflow, ray, torch
from ray import tune
ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.get([ray.remote(lambda: __import__("torch") and None).remote() for _ in range(2)])
ray.shutdown()
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WALL, CPU = Told(), Told("cpu")
BASH = {"_ORCHESTRATE_COMPLETE": "complete_bash", "COMP_WORDS": "orchestrate sweep --set ", "COMP_CWORD": "3"}


@contextmanager
def place() -> Iterator[Path]:
    """A folder with the space in it, where a sweep makes its store."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        (Path(folder) / f"{NAME}.yaml").write_text(SPACE)
        yield Path(folder)


def ours(folder: Path) -> Done:
    """The sweep in an empty store; how many networks it left, and their accuracies at the amounts."""
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    said, done = command(SWEEP, folder=folder, environment=ONE_THREAD)
    by_amount: dict[float, list[float]] = {}
    for row in json.loads(said)["results"]:
        by_amount.setdefault(row["amount"], []).append(row["accuracy"])
    models = len(list(folder.glob("mlruns/artifacts/*/*/artifacts/model/manifest.json"))) - 1  # the dense one
    return Done({"models": models, "accuracies": list(by_amount.values())}, done.measures, done.elsewhere)


def peer(folder: Path) -> Done:
    with tempfile.TemporaryDirectory(dir=folder) as store:
        said, done = command(python(str(PEER), store), folder=folder, environment=ONE_THREAD)
    return Done(json.loads(said.splitlines()[-1]), done.measures, done.elsewhere)


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """As many models, and up to half of the weights gone, where nothing depends on luck, equal accuracy."""
    means = [[sum(pair) / len(pair) for pair in side["accuracies"][:3]] for side in (one, other)]
    near = all(abs(a - b) < 0.03 for a, b in zip(*means, strict=True))
    return bool(one["models"] == other["models"] and near)


@benchmark
def the_peers_job() -> Iterator[Job]:
    with place() as folder:
        yield Job(
            "the peer's job: 26 trials, 13 epochs, a model each",
            ours=partial(ours, folder),
            peer=partial(peer, folder),
            peer_name="Ray Tune, MLflow, torch.nn.utils.prune",
            claims=(AtMost(0.5), AtMost(0.55, measure="cpu")),
            rounds=3,
            warm=False,
            equal="26 models each, accuracies within 3 points up to amount 50%",
            same=alike,
        )
        yield Job(
            "start-up floor of both: imports, Ray, two workers that import torch",
            ours=lambda: command(python("-c", FLOOR), folder=folder)[1],
            claims=(WALL, CPU),
            rounds=3,
        )


@benchmark
def nothing_to_do() -> Iterator[Job]:
    with place() as folder:
        ours(folder)
        yield Job(
            "a sweep of 26 trials that are all in the store",
            ours=lambda: command(SWEEP, folder=folder)[1],
            claims=(AtMost(5, aim=3), CPU),
        )
        yield Job(
            "--help",
            ours=lambda: command([*ORCHESTRATE, "--help"], folder=folder)[1],
            claims=(AtMost(0.3, measure="cpu"), WALL),
        )
        yield Job(
            "completion of names, bash",
            ours=lambda: command([SCRIPT], folder=folder, environment=BASH)[1],
            claims=(AtMost(0.5, measure="cpu"), WALL),
        )


if __name__ == "__main__":
    main(__file__)
