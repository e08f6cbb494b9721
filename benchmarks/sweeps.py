"""Sweeps as a user starts them: each in a new process and an empty store, including start-up.

The baseline is `benchmarks/baseline.py`. CPU seconds are those of all processes, including Ray's.
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

from benchmarks.harness import AtMost, Job, Reported, SideResult, benchmark, main
from benchmarks.processes import python_command, run_command

ORCHESTRATE = python_command("-m", "orchestrator.cli")
SCRIPT = str(Path(sys.executable).with_name("orchestrate"))  # completion needs the script of this name
BASELINE = Path(__file__).parent / "baseline.py"
NAME = "job"
SPACE = """\
version: 1
about: The benchmark sweep.
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
WALL, CPU = Reported(), Reported("cpu")
BASH = {"_ORCHESTRATE_COMPLETE": "complete_bash", "COMP_WORDS": "orchestrate sweep --set ", "COMP_CWORD": "3"}


@contextmanager
def make_sweep_folder() -> Iterator[Path]:
    """Yield a folder with the space file, where a sweep creates its store."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        (Path(folder) / f"{NAME}.yaml").write_text(SPACE)
        yield Path(folder)


def run_sweep(folder: Path) -> SideResult:
    """Run the sweep in an empty store; return its number of models and the accuracies by amount."""
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    output, result = run_command(SWEEP, folder=folder, environment=ONE_THREAD)
    by_amount: dict[float, list[float]] = {}
    for row in json.loads(output)["results"]:
        by_amount.setdefault(row["amount"], []).append(row["accuracy"])
    models = len(list(folder.glob("mlruns/artifacts/*/*/artifacts/model/manifest.json"))) - 1  # the dense one
    return SideResult(
        {"models": models, "accuracies": list(by_amount.values())}, result.measures, result.child_cpu_seconds
    )


def run_baseline(folder: Path) -> SideResult:
    with tempfile.TemporaryDirectory(dir=folder) as store:
        output, result = run_command(
            python_command(str(BASELINE), store), folder=folder, environment=ONE_THREAD
        )
    return SideResult(json.loads(output.splitlines()[-1]), result.measures, result.child_cpu_seconds)


def is_similar(ours: dict[str, Any], baseline: dict[str, Any]) -> bool:
    """Return whether the numbers of models are equal, and the accuracies at amounts up to 50% similar.

    At larger amounts the accuracy depends on the random weights.
    """
    means = [[sum(pair) / len(pair) for pair in side["accuracies"][:3]] for side in (ours, baseline)]
    near = all(abs(a - b) < 0.03 for a, b in zip(*means, strict=True))
    return bool(ours["models"] == baseline["models"] and near)


@benchmark
def benchmark_sweep() -> Iterator[Job]:
    with make_sweep_folder() as folder:
        yield Job(
            "a sweep of 26 trials, 13 epochs and a model each",
            ours=partial(run_sweep, folder),
            baseline=partial(run_baseline, folder),
            baseline_name="Ray Tune, MLflow, torch.nn.utils.prune",
            claims=(AtMost(0.5), AtMost(0.55, measure="cpu")),
            rounds=3,
            warm=False,
            equal="26 models each, accuracies within 3 points up to amount 50%",
            is_equal=is_similar,
        )
        yield Job(
            "start-up alone: imports, Ray, two workers that import torch",
            ours=lambda: run_command(python_command("-c", FLOOR), folder=folder)[1],
            claims=(WALL, CPU),
            rounds=3,
        )


@benchmark
def finished_sweep() -> Iterator[Job]:
    with make_sweep_folder() as folder:
        run_sweep(folder)
        yield Job(
            "the same sweep with all trials in the store",
            ours=lambda: run_command(SWEEP, folder=folder)[1],
            claims=(AtMost(5, aim=3), CPU),
        )
        yield Job(
            "--help",
            ours=lambda: run_command([*ORCHESTRATE, "--help"], folder=folder)[1],
            claims=(AtMost(0.3, measure="cpu"), WALL),
        )
        yield Job(
            "completion of names, bash",
            ours=lambda: run_command([SCRIPT], folder=folder, environment=BASH)[1],
            claims=(AtMost(0.5, measure="cpu"), WALL),
        )


if __name__ == "__main__":
    main(__file__)
