"""Record a result as metrics, files and tags of its run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.config import DenseConfig, EarlyStopping, Numerics, TrialConfig
from orchestrator.space.stopping_rules import pruners
from orchestrator.storage import model_files
from orchestrator.storage.outbox import RunEnd
from orchestrator.storage.runs import NORM_IMAGES, TAG_LENGTH, MetricPoint
from orchestrator.system.files import write_file
from orchestrator.system.provenance import environment
from orchestrator.tracking import round_masks
from orchestrator.trial.metrics import (
    ClassRow,
    LayerRow,
    Measurement,
    Profile,
    class_metrics,
    class_rows,
    compressed_bytes,
    worst,
)
from orchestrator.trial.recovery import reuses_dense_weights
from orchestrator.trial.run import TrialResult
from orchestrator.trial.structure import unpruned_of
from orchestrator.trial.task import Task
from pruning.cutting.layer_widths import layer_widths
from pruning.masking import Norm
from pruning.pq_index import find_phases
from pruning.user_code import stored_code

CONFIG, ENVIRONMENT = "config.json", "environment.json"  # artifacts of every run
NOTES_LENGTH = 2000  # characters
# Fields of Measurement that become metrics `round/NAME`, one step a round.
PER_ROUND = (
    "accuracy",
    "loss",
    "val_accuracy",
    "val_loss",
    "sparsity",
    "sparsity_chosen",
    "macs_effective",
    "macs_effective_chosen",
    "epochs",
    "train_flops",
    "train_flops_effective",
)


def write_result(
    folder: Path,
    end_ms: int,
    *,
    task: Task,
    result: TrialResult,
    is_parent_stored: bool,
    stop: EarlyStopping | None,
    peak_bytes: int | None = None,
    extra_tags: Mapping[str, str] | None = None,
) -> RunEnd:
    """Write the files of a result into an empty folder; return the end of its run.

    `peak_bytes` is the peak memory of its process, if that is known; `extra_tags` are added to the tags.
    """
    phase_names = _phases(result, stop) if isinstance(task.config, TrialConfig) else []
    # Without recovery the weights are the parent's with the dead ones at zero: the masks are enough.
    masks_suffice = (
        is_parent_stored and isinstance(task.config, TrialConfig) and reuses_dense_weights(task.config)
    )
    config = json.dumps(asdict(task.config), indent=1, sort_keys=True)
    codes = stored_code.codes_in(config)
    (folder / "model").mkdir()
    manifest = model_files.save_model(
        folder / "model",
        result.last.state,
        arch=_architecture(task.dense, result),
        parent=task.dense.key() if masks_suffice else None,
        code=stored_code.dump(codes) if codes else "",
    )
    for name, content in {CONFIG: config, **_tables(result, phase_names)}.items():
        write_file(folder / name, content)
    outcome_tags = _outcome_tags(task.dense, result, phase_names)
    tags = {"manifest_sha256": manifest, **outcome_tags, **(extra_tags or {})}
    tags |= _unpruned_tag(task, result)
    if task.saves_round_masks and result.round_masks is not None:
        tags |= {round_masks.SHA256: round_masks.save_round_masks(folder, result.round_masks)}
    if result.stopped_because:
        reason = result.stopped_because[:TAG_LENGTH]
        tags |= {"stopped_key": task.key, "stop": str(stop or ""), "stopped_because": reason}
    # Only a whole trial has a key: a stopped one is run again by a sweep without its stopping rule.
    key = None if result.stopped_because else task.key
    metrics = (*metric_points(result), *_size_metrics(result, peak_bytes))
    return RunEnd("FINISHED", end_ms, tags, metrics, key)


def _tables(result: TrialResult, phase_names: Sequence[str]) -> dict[str, str]:
    """Return file name -> JSON, of every file beside the model and the configuration."""
    cost = result.cost
    ops = {
        "macs": {**cost.macs, **cost.other_macs},
        "notes": cost.notes,
        "unsupported": cost.unsupported,
        "not_counted": cost.other_ops,
    }
    return {
        ENVIRONMENT: json.dumps(environment(), indent=1, sort_keys=True),
        "layers.json": json.dumps(_table(result.last.layers)),
        "rounds.json": json.dumps(_rounds_table(result, phase_names)),
        "confusion.json": json.dumps(result.last.confusion.tolist()),
        "classes.json": json.dumps(_table(_classes(result))),
        "operators.json": json.dumps(ops, indent=1, sort_keys=True),
    }


def _unpruned_tag(task: Task, result: TrialResult) -> dict[str, str]:
    """Return a tag with the layers of a trial's network that have weights and are not pruned."""
    if not isinstance(task.config, TrialConfig):
        return {}
    architecture = (task.dense.model, result.data.input_shape, result.data.num_classes)
    names = unpruned_of(architecture, task.config.prune.granularity)
    return {"not_pruned": ", ".join(names)[:TAG_LENGTH]} if names else {}


def _outcome_tags(dense: DenseConfig, result: TrialResult, phase_names: Sequence[str]) -> dict[str, str]:
    """Return tags on the notes, the last phase, the class that lost most and a halved micro-batch."""
    used = result.last.state.micro_batch
    tags = {"notes": notes} if (notes := _notes(result)) else {}
    tags |= {"notes_at_end": "; ".join(result.rounds[-1].notes)[:NOTES_LENGTH]} if result.rounds else {}
    tags |= {"phase": phase_names[-1]} if phase_names else {}
    worst_class = worst(_classes(result))
    tags |= {"worst_class_drop": worst_class.label} if worst_class.drop > 0 else {}
    numerics = replace(dense.numerics, micro_batch=used)
    tags |= _norm_tag(result.last.net, numerics, batch_size=dense.batch_size)
    return tags | ({"micro_batch_halved_to": str(used)} if used < dense.numerics.micro_batch else {})


def _norm_tag(net: nn.Module, numerics: Numerics, *, batch_size: int) -> dict[str, str]:
    """Return a tag where batch norms took their statistics over less than a batch, with its largest part."""
    images = numerics.norm_images(batch_size)
    has_norm = images < batch_size and any(isinstance(module, Norm) for module in net.modules())
    return {NORM_IMAGES: f"{images} of {batch_size}"} if has_norm else {}


def _phases(result: TrialResult, stop: EarlyStopping | None) -> list[str]:
    """Return the PQ phase of every round, from the dense network's PQ index and those of the rounds.

    A whole trial uses the default rule, so that its phases depend on the trial alone; a stopped one uses the
    rule that stopped it.
    """
    indices = [result.ipa.pq_index, *(measured.measurement.pq_index for measured in result.rounds)]
    method = pruners.get(stop.text) if stop is not None and result.stopped_because else None
    if method is None or method.name != "pq_index":
        return find_phases(indices)[1:]
    return find_phases(indices, delta=method.options["delta"], patience=method.options["patience"])[1:]


def _rounds_table(result: TrialResult, phase_names: Sequence[str]) -> dict[str, list[Any]]:
    """Return a table of the measurements of every round, with their phases if there are any."""
    table = _table([measured.measurement for measured in result.rounds])
    if not phase_names:
        return table
    rows = [[*row, phase] for row, phase in zip(table["data"], phase_names, strict=True)]
    return {"columns": [*table["columns"], "phase"], "data": rows}


def metric_points(result: TrialResult) -> list[MetricPoint]:
    """Return every metric of a result; a stopped trial has none that begin with `final/`."""
    final = {} if result.stopped_because else result.last.measurement.metrics("final")
    points = [MetricPoint(name, value) for name, value in final.items()]
    if not result.stopped_because:
        points += [
            MetricPoint(f"final/{name}", value) for name, value in class_metrics(_classes(result)).items()
        ]
    points += [MetricPoint(name, value) for name, value in result.ipa.metrics("ipa").items()]
    return [*points, *_curves(result), *_rounds(result), *_layers(result.last.layers)]


def _classes(result: TrialResult) -> tuple[ClassRow, ...]:
    return class_rows(result.data.class_names, dense=result.dense_confusion, pruned=result.last.confusion)


def _size_metrics(result: TrialResult, peak_bytes: int | None) -> Iterator[MetricPoint]:
    """Yield metrics that a rerun may not reproduce: they depend on zstd's version and on the process."""
    if not result.stopped_because:
        state = result.last.state
        yield MetricPoint(
            "final/bytes_compressed", float(compressed_bytes(state.weights, result.last.effective_masks))
        )
        if peak_bytes is not None:
            yield MetricPoint("final/peak_memory_bytes", float(peak_bytes))


def _notes(result: TrialResult) -> str:
    """Join the notes of the rounds and of the MACs, each note once, at the first round that has it."""
    first: dict[str, str] = {}
    for measured in result.rounds:
        for note in measured.notes:
            first.setdefault(note.removeprefix(note.partition(": ")[0]), note)
    return "; ".join((*first.values(), *_macs_notes(result.cost)))[:NOTES_LENGTH]


def _macs_notes(cost: Profile) -> Iterator[str]:
    """Yield notes on MACs outside prunable layers, and on what the MAC counters do not agree on."""
    if cost.other_macs:
        largest = sorted(cost.other_macs, key=lambda name: -cost.other_macs[name])
        names = ", ".join(f"{name} {cost.other_macs[name]:,}" for name in largest[:3])
        remainder = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        total = sum(cost.other_macs.values())
        yield f"{total:,} of {cost.total_macs:,} MACs are in no prunable layer: {names}{remainder}"
    yield from cost.notes[:3]
    if len(cost.notes) > 3:
        yield f"{len(cost.notes) - 3} more notes on MACs in operators.json"


def _architecture(dense: DenseConfig, result: TrialResult) -> dict[str, object]:
    """Return how to build the network again; `cut_widths` are the layers' sizes without dead channels."""
    return {
        "model": dense.model,
        "input_shape": list(result.data.input_shape),
        "num_classes": result.data.num_classes,
        "cut_widths": layer_widths(result.last.net) if result.last.cut else None,
    }


def _curves(result: TrialResult) -> Iterator[MetricPoint]:
    """Yield loss and accuracy per epoch; steps count epochs over all rounds."""
    records = [record for measured in result.rounds for record in measured.history]
    for step, record in enumerate(records, start=1):
        yield MetricPoint("train/loss", record.train_loss, step)
        yield MetricPoint("train/accuracy", record.train_accuracy, step)
        yield MetricPoint("val/loss", record.val_loss, step)
        yield MetricPoint("val/accuracy", record.val_accuracy, step)
        yield MetricPoint("train/lr", record.lr, step)
        yield MetricPoint("train/seconds", record.seconds, step)


def _rounds(result: TrialResult) -> Iterator[MetricPoint]:
    for number, measured in enumerate(result.rounds, start=1):
        values = vars(measured.measurement)
        yield from (MetricPoint(f"round/{name}", float(values[name]), number) for name in PER_ROUND)
        yield from (
            MetricPoint(name, float(values[name]), number) for name in ("sparsity", "pq_index", "gini")
        )


def _layers(rows: tuple[LayerRow, ...]) -> Iterator[MetricPoint]:
    """Return the sparsity of each layer, at step 0: MLflow's pages draw a metric of one step as a bar."""
    return (MetricPoint(f"layers/{row.layer}", row.sparsity) for row in rows if row.weights)


def _table(
    rows: Sequence[LayerRow | Measurement | ClassRow],
) -> dict[str, list[Any]]:  # names, and cells of any type
    """Return rows in the JSON form that MLflow shows as a table."""
    return {
        "columns": [field.name for field in fields(rows[0])],
        "data": [list(vars(row).values()) for row in rows],
    }
