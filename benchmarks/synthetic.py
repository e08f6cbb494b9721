"""A store of synthetic runs, with the params, metrics, tags and files of real ones.

MLflow's client writes the first hundred trials. The other trials are inserted into its tables as copies with
their own numbers, because the client takes a tenth of a second for each.
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

NAME = "synthetic"
MODELS, DATASETS = ("slp", "cnn", "densenet121"), ("mnist", "fashion-mnist", "cifar10")
BATCHES = (32, 64, 256, 4000, 60000)
TECHNIQUES = {"weight": 1.0, "unstructured": 0.9, "neuron": 1.6, "structured": 2.0}
AMOUNTS = tuple(n / 10 for n in range(11))
SEEDS = tuple(range(10))
LAYERS = {"hidden.0": 64_000, "hidden.1": 500_000, "output": 2_000}
CLASSES = 10
BY_MLFLOW = 100
Row = dict[str, Any]  # of a plan


def make_rows(count: int) -> Iterator[Row]:
    """Yield the first `count` trials of a plan of 19,800, grouped by dense network."""
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


def make_measurements(row: Row, *, dense: bool) -> dict[str, float]:
    """Return every field of a measurement; the accuracy falls with the amount."""
    amount = 0.0 if dense else row["amount"]
    noise = random.Random(f"{row['dense_key']} {row['technique']} {amount}").gauss(0, 0.01)
    accuracy = min(1.0, max(0.1, 0.97 - 0.85 * amount ** (12 / TECHNIQUES[row["technique"]]) + noise))
    values = {field.name: 1.0 for field in fields(Measurement)}
    values |= {"accuracy": accuracy, "val_accuracy": accuracy - noise / 2, "loss": 1 - accuracy}
    values |= {"sparsity": amount, "amount": amount, "compression": 1 / (1.01 - amount)}
    values |= {"macs_dense": 1e6, "macs_effective": 1e6 * (1.001 - amount), "macs_physical": 1e6}
    values |= {"bytes_sparse": 4e6 * (1.03 - amount), "parameters_physical": 1e6, "train_flops": 1e12}
    return values


def make_metrics(row: Row) -> list[MetricPoint]:
    final, dense = make_measurements(row, dense=False), make_measurements(row, dense=True)
    points = [MetricPoint(f"final/{name}", value) for name, value in final.items()]
    points += [MetricPoint(f"ipa/{name}", value) for name, value in dense.items()]
    points += [MetricPoint(f"layers/{name}", final["sparsity"]) for name in LAYERS]
    return points


def make_files(row: Row) -> dict[str, str]:
    accuracy = make_measurements(row, dense=False)["accuracy"]
    right, wrong = math.floor(100 * accuracy), math.ceil(100 * (1 - accuracy))
    matrix = [
        [right if a == b else wrong if (a + 1) % CLASSES == b else 0 for b in range(CLASSES)]
        for a in range(CLASSES)
    ]
    layers = {"columns": ["layer", "weights"], "data": list(LAYERS.items())}
    return {"layers.json": json.dumps(layers), "confusion.json": json.dumps(matrix)}


def write_store(uri: str, count: int) -> None:
    """Write a sweep of `count` trials and their dense networks, all finished."""
    initialise(uri)
    tracker = Tracker(uri, NAME)
    plan = list(make_rows(count))
    with tracker.start("sweep", NAME, tags={"space": NAME}) as sweep:
        tracker.upload(sweep.run_id, {PLAN: dump_plan(plan, space=NAME, excluded=[])})
        for key, row in {row["dense_key"]: row for row in plan}.items():
            _record_run(tracker, sweep.run_id, "dense", key, row)
        for row in plan[:BY_MLFLOW]:
            _record_run(tracker, sweep.run_id, "trial", row["key"], row)
        if plan[BY_MLFLOW:]:
            _insert_runs(tracker, plan[BY_MLFLOW - 1], plan[BY_MLFLOW:])


def _record_run(tracker: Tracker, parent: str, kind: str, key: str, row: Row) -> None:
    with tracker.start(kind, f"{kind} {row['technique']}", parent=parent, tags={"point": key}) as run:
        tracker.upload(run.run_id, make_files(row))
        run.log(params=make_params(row), metrics=make_metrics(row), tags={"key": key})


def make_params(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.endswith("key")}


def _insert_runs(tracker: Tracker, template: Row, rows: Sequence[Row]) -> None:
    """Insert a copy of the template's run for each row, with the row's numbers and files."""
    model = tracker.runs_of_task(template["key"])[0]
    folder = model.local_path("..")
    assert folder is not None
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as connection:
        columns = connection.execute("SELECT * FROM runs WHERE run_uuid = ?", [model.run_id])
        names = [column[0] for column in columns.description]
        values = dict(zip(names, columns.fetchone(), strict=True))
        for row in rows:
            run_id = uuid4().hex
            artifacts = folder.parent / run_id / "artifacts"
            artifacts.mkdir(parents=True)
            for name, text in make_files(row).items():
                (artifacts / name).write_text(text)
            new = {**values, "run_uuid": run_id, "artifact_uri": artifacts.as_uri()}
            tags = {**model.tags, "point": row["key"], "key": row["key"]}
            points = {point.name: point.value for point in make_metrics(row)}
            _insert_rows(connection, "runs", [new])
            _insert_rows(connection, "tags", [_key_value(run_id, *item) for item in tags.items()])
            _insert_rows(
                connection, "params", [_key_value(run_id, k, str(v)) for k, v in make_params(row).items()]
            )
            metric_rows = [
                {**_key_value(run_id, *item), "timestamp": model.end_ms, "step": 0, "is_nan": 0}
                for item in points.items()
            ]
            _insert_rows(connection, "metrics", metric_rows)
            _insert_rows(connection, "latest_metrics", metric_rows)
    connection.close()


def _key_value(run_id: str, key: str, value: object) -> Row:
    return {"run_uuid": run_id, "key": key, "value": value}


def _insert_rows(connection: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    names = list(rows[0])
    marks = ", ".join("?" * len(names))
    values = [list(row.values()) for row in rows]
    connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values)
