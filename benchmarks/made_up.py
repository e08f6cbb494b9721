"""A store of made-up runs: with the params, metrics, tags and files of real ones, and invented numbers.

The first hundred trials are written by MLflow's own client; the others are rows of its tables like theirs,
since each would take it a tenth of a second.
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import product
from typing import Any
from uuid import uuid4

from orchestrator.planning.plan_file import PLAN, dump_plan
from orchestrator.tracking import MetricPoint, Tracker, initialise
from orchestrator.trial.metrics import Measurement

NAME = "made-up"
MODELS, DATASETS = ("slp", "cnn", "densenet121"), ("mnist", "fashion-mnist", "cifar10")
BATCHES = (32, 64, 256, 4000, 60000)
TECHNIQUES = {"weight": 1.0, "unstructured": 0.9, "neuron": 1.6, "structured": 2.0}
AMOUNTS = tuple(n / 10 for n in range(11))
SEEDS = tuple(range(10))
LAYERS = {"hidden.0": 64_000, "hidden.1": 500_000, "output": 2_000}
CLASSES = 10
BY_MLFLOW = 100
Row = dict[str, Any]  # of a plan


def rows(count: int) -> Iterator[Row]:
    """The first `count` trials of a plan of 19,800; those of one dense network stand together."""
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
        tracker.upload(sweep.run_id, {PLAN: dump_plan(plan, space=NAME, excluded=[])})
        for key, row in {row["dense_key"]: row for row in plan}.items():
            _record(tracker, sweep.run_id, "dense", key, row)
        for row in plan[:BY_MLFLOW]:
            _record(tracker, sweep.run_id, "trial", row["key"], row)
        if plan[BY_MLFLOW:]:
            _copy(tracker, plan[BY_MLFLOW - 1], plan[BY_MLFLOW:])


def _record(tracker: Tracker, parent: str, kind: str, key: str, row: Row) -> None:
    with tracker.start(kind, f"{kind} {row['technique']}", parent=parent, tags={"point": key}) as run:
        tracker.upload(run.run_id, files(row))
        run.log(params=params(row), metrics=metrics(row), tags={"key": key})


def params(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.endswith("key")}


def _copy(tracker: Tracker, pattern: Row, others: Sequence[Row]) -> None:
    """Runs as that of the pattern, with the numbers and the files of other rows."""
    model = tracker.runs_of_task(pattern["key"])[0]
    folder = model.local_path("..")
    assert folder is not None
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as connection:
        run = connection.execute("SELECT * FROM runs WHERE run_uuid = ?", [model.run_id])
        names = [column[0] for column in run.description]
        values = dict(zip(names, run.fetchone(), strict=True))
        for row in others:
            id = uuid4().hex
            place = folder.parent / id / "artifacts"
            place.mkdir(parents=True)
            for name, text in files(row).items():
                (place / name).write_text(text)
            new = {**values, "run_uuid": id, "artifact_uri": place.as_uri()}
            tags = {**model.tags, "point": row["key"], "key": row["key"]}
            points = {point.name: point.value for point in metrics(row)}
            _insert(connection, "runs", [new])
            _insert(connection, "tags", [_pair(id, *item) for item in tags.items()])
            _insert(connection, "params", [_pair(id, k, str(v)) for k, v in params(row).items()])
            found = [
                {**_pair(id, *item), "timestamp": model.end_ms, "step": 0, "is_nan": 0}
                for item in points.items()
            ]
            _insert(connection, "metrics", found)
            _insert(connection, "latest_metrics", found)
    connection.close()


def _pair(run_id: str, key: str, value: object) -> Row:
    return {"run_uuid": run_id, "key": key, "value": value}


def _insert(connection: sqlite3.Connection, table: str, found: Sequence[Row]) -> None:
    names = list(found[0])
    marks = ", ".join("?" * len(names))
    values = [list(one.values()) for one in found]
    connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)
