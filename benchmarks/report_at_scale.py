"""How long the report of a large sweep takes, and how large it is, with a store of made-up runs.

    python benchmarks/report_at_scale.py [RUNS]

The runs are written by MLflow's own client, with the params, metrics, tags and files of real ones; only
their numbers are invented. Each takes a tenth of a second or two to write; a thousand unless said.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from mlflow import MlflowClient

from orchestrator.comparing.records import PLAN, find_sweep, plan_record
from orchestrator.measure import Measurement
from orchestrator.report import html_report
from orchestrator.tracking import MetricPoint, Tracker, initialise

NAME = "made-up"
MODELS, DATASETS = ("slp", "cnn", "densenet121"), ("mnist", "fashion-mnist", "cifar10")
BATCHES = (32, 64, 256, 4000, 60000)
TECHNIQUES = {"weight": 1.0, "unstructured": 0.9, "neuron": 1.6, "structured": 2.0}
AMOUNTS = tuple(n / 10 for n in range(11))
SEEDS = tuple(range(5))
LAYERS = {"hidden.0": 64_000, "hidden.1": 500_000, "output": 2_000}
CLASSES = 10
Row = dict[str, Any]  # of a plan


def rows(count: int) -> Iterator[Row]:
    """The first `count` trials of a plan of 9,900; those of one dense network stand together."""
    points = product(MODELS, DATASETS, BATCHES, SEEDS, TECHNIQUES, AMOUNTS)
    for number, (model, dataset, batch_size, seed, technique, amount) in zip(
        range(count), points, strict=False
    ):
        yield {
            "key": f"{number:064x}",
            "dense_key": f"dense {model} {dataset} {batch_size} {seed}",
            "model": model,
            "dataset": dataset,
            "batch_size": batch_size,
            "seed": seed,
            **{f"train.field{n}": n for n in range(10)},
            **{f"numerics.field{n}": n for n in range(4)},
            "recover": "finetune(epochs='10%')",
            "technique": technique,
            "schedule": "one_shot",
            "amount": amount,
            "requested_batch_size": batch_size,
        }


def measured(row: Row, *, dense: bool) -> dict[str, float]:
    """Every field of a measurement, from a curve that falls with the amount."""
    amount = 0.0 if dense else row["amount"]
    noise = random.Random(f"{row['dense_key']} {row['technique']} {amount}").gauss(0, 0.01)
    accuracy = min(1.0, max(0.1, 0.97 - 0.85 * amount ** (12 / TECHNIQUES[row["technique"]]) + noise))
    found = {field.name: 1.0 for field in fields(Measurement)}
    found |= {"accuracy": accuracy, "val_accuracy": accuracy - noise / 2, "loss": 1 - accuracy}
    found |= {"sparsity": amount, "amount": amount, "compression": 1 / (1.01 - amount)}
    found |= {"macs_dense": 1e6, "macs_effective": 1e6 * (1.001 - amount), "macs_physical": 1e6}
    found |= {"bytes_sparse": 4e6 * (1.03 - amount), "parameters_physical": 1e6, "train_flops": 1e12}
    return found


def metrics(row: Row) -> list[MetricPoint]:
    here, before = measured(row, dense=False), measured(row, dense=True)
    points = [MetricPoint(f"final/{name}", value) for name, value in here.items()]
    points += [MetricPoint(f"ipa/{name}", value) for name, value in before.items()]
    points += [MetricPoint(f"layers/{name}", here["sparsity"]) for name in LAYERS]
    return points


def files(row: Row) -> dict[str, str]:
    accuracy = measured(row, dense=False)["accuracy"]
    right, wrong = math.floor(100 * accuracy), math.ceil(100 * (1 - accuracy))
    matrix = [
        [right if a == b else wrong if (a + 1) % CLASSES == b else 0 for b in range(CLASSES)]
        for a in range(CLASSES)
    ]
    layers = {"columns": ["layer", "weights"], "data": list(LAYERS.items())}
    return {"layers.json": json.dumps(layers), "confusion.json": json.dumps(matrix)}


def write(uri: str, count: int) -> None:
    """A sweep of `count` trials and their dense networks, all finished."""
    initialise(uri)
    tracker = Tracker(uri, NAME)
    plan = list(rows(count))
    with tracker.start("sweep", NAME, tags={"space": NAME}) as sweep:
        tracker.upload(sweep.run_id, {PLAN: plan_record(plan, space=NAME, excluded=[])})
        for key in dict.fromkeys(row["dense_key"] for row in plan):
            row = next(row for row in plan if row["dense_key"] == key)
            _record(tracker, sweep.run_id, "dense", key, row)
        for row in plan:
            _record(tracker, sweep.run_id, "trial", row["key"], row)


def _record(tracker: Tracker, parent: str, kind: str, key: str, row: Row) -> None:
    with tracker.start(kind, f"{kind} {row['technique']}", parent=parent, tags={"point": key}) as run:
        tracker.upload(run.run_id, files(row))
        params = {name: value for name, value in row.items() if not name.endswith("key")}
        run.log(params=params, metrics=metrics(row), tags={"key": key})


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlruns/mlflow.db"
        started = perf_counter()
        write(uri, count)
        print(f"{count:,} trials written in {perf_counter() - started:.0f} s")
        asked: list[str] = []
        search = MlflowClient.search_runs

        def counted(self: MlflowClient, *given: Any, **named: Any) -> Any:
            asked.append(str(given[1]))
            return search(self, *given, **named)

        MlflowClient.search_runs = counted
        started = perf_counter()
        tracker = Tracker(uri, NAME)
        text = html_report(tracker, find_sweep(tracker, NAME))
        print(
            f"report: {perf_counter() - started:.1f} s, {len(text) / 1e6:.1f} MB, "
            f"{len(asked)} pages of runs asked for"
        )
        (Path.cwd() / "report-at-scale.html").write_text(text) if "--keep" in sys.argv else None


if __name__ == "__main__":
    main()
