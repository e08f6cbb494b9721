"""What the run of a sweep shows in the MLflow UI: its axes, its counts and a view of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.data.datasets import parse_dataset, split_sizes
from orchestrator.storage.runs import REPORT
from orchestrator.tracking import NOTE, MetricPoint, RunRecord, Tracker, compare_address
from pruning.user_code import own_code

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.space.space import Space

VIEW = "trials"  # the key by which an address names the view
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TRAINING = "workflowType=machine_learning"  # without it the UI opens on its pages for language models
MAX_PARAM_LENGTH = 500
TOLERANCE = 0.01  # of the dense network's accuracy on validation images
METHOD_PARAMS = ("model", "dataset", "batch_size", "technique", "schedule", "recover")
MAX_COMPARED = 8
COLUMNS = (
    "params.`technique`",
    "params.`amount`",
    "params.`seed`",
    "metrics.`final/accuracy`",
    "metrics.`final/sparsity`",
    "metrics.`final/macs_effective`",
)
SCATTER_METRICS = ("final/sparsity", "final/macs_effective")  # a chart of accuracy against each
STATUS_METRICS = {
    "finished": "sweep/done",
    "stopped": "sweep/stopped",
    "failed": "sweep/failed",
    "missing": "sweep/missing",
}


def publish_sweep_page(tracker: Tracker, sweep: RunRecord, *, space: Space, results: DataFrame) -> None:
    """Log params, metrics and data sets to the sweep's run, and describe its experiment.

    Calling it again changes nothing but the counts.
    """
    run = tracker.attach(sweep)
    # MLflow refuses to log a param twice with another value.
    params = {name: text for name, text in axis_params(space).items() if name not in sweep.params}
    run.log(params=params, metrics=status_metrics(results))
    pinned = {own_code.shown(text): text for text in space.axes.dataset}  # tables show names without pins
    for trial in results[results["status"] == "finished"].drop_duplicates("dataset").to_dict("records"):
        name, options = parse_dataset(pinned.get(trial["dataset"], trial["dataset"]))
        sizes = dict(zip(("train", "validation", "test"), split_sizes(name, **options), strict=True))
        for dataset, digest in tracker.data_digests(trial["run_id"]).items():
            run.log_dataset(dataset, digest, sizes)
    tracker.set_experiment_tag(NOTE, space.about)
    tracker.set_experiment_tag(VIEW_TAG, view_state())


def page_links(tracker: Tracker, sweep: RunRecord) -> str:
    """Return Markdown links from the sweep's page to its report and its trials, relative to the UI.

    They must be the first line of a description: the UI folds it, and links in the fold cannot be clicked.
    """
    report = f"/#/experiments/{tracker.experiment_id}/runs/{sweep.run_id}/artifacts/{REPORT}?{TRAINING}"
    addresses = {"report": report, **trial_addresses("", tracker, has_view=True)}
    return " · ".join(f"[{name}]({address.removeprefix('/')})" for name, address in addresses.items())


def trial_addresses(base: str, tracker: Tracker, *, has_view: bool) -> dict[str, str]:
    """Return name -> address of an experiment's trials, their charts, and its best trials compared.

    There are charts only where the experiment has the view of `publish_sweep_page`.
    """
    runs = f"{base}/#/experiments/{tracker.experiment_id}/runs"
    view = f"viewStateShareKey={VIEW}&" if has_view else ""
    addresses = {"trials": f"{runs}?{view}{TRAINING}"}
    if has_view:
        addresses["charts"] = f"{runs}?{view}compareRunsMode=CHART&{TRAINING}"
    if run_ids := [row.run_id for row in best_runs(tracker)]:
        addresses["best"] = compare_address(base, tracker.experiment_id, run_ids)
    return addresses


def best_runs(tracker: Tracker) -> list[RunRecord]:
    """Return each method's sparsest trial within a point of its dense network, or its most accurate one.

    All are chosen by accuracy on validation images; the sparsest come first.
    """
    trials = tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial' and tags.key LIKE '_%'")
    methods: dict[tuple[str, ...], list[RunRecord]] = {}
    for row in trials:
        methods.setdefault(tuple(row.params.get(name, "") for name in METHOD_PARAMS), []).append(row)
    best = [
        max(filter(_is_near_dense, rows), key=_sparsity, default=None) or max(rows, key=_val_accuracy)
        for rows in methods.values()
    ]
    return sorted(best, key=_sparsity, reverse=True)[:MAX_COMPARED]


def _is_near_dense(row: RunRecord) -> bool:
    return _val_accuracy(row) >= row.metrics["ipa/val_accuracy"] - TOLERANCE


def _val_accuracy(row: RunRecord) -> float:
    return row.metrics["final/val_accuracy"]


def _sparsity(row: RunRecord) -> float:
    return row.metrics["final/sparsity"]


def axis_params(space: Space) -> dict[str, str]:
    """Return axis -> its values in short, as the params of a trial show them."""
    return {axis: _values_text(axis, values) for axis, values in space.choices().items()}


def _values_text(axis: str, values: object) -> str:
    # Here, not above: it imports torch, which `orchestrate ui` does not need.
    from orchestrator.trial.params import DEFAULTS, without_defaults

    text = ", ".join(
        without_defaults(axis, value) if axis in DEFAULTS and isinstance(value, str) else str(value)
        for value in (values if isinstance(values, tuple) else (values,))
    )
    return text if len(text) <= MAX_PARAM_LENGTH else f"{text[: MAX_PARAM_LENGTH - 1]}…"


def status_metrics(results: DataFrame) -> Iterator[MetricPoint]:
    """Yield how many trials are planned and how they ended, then the best validation accuracy, if any."""
    status = results["status"]
    yield MetricPoint("sweep/planned", float(len(results)))
    for name, metric in STATUS_METRICS.items():
        yield MetricPoint(metric, float((status == name).sum()))
    if (status == "finished").any():
        yield MetricPoint("sweep/best_val_accuracy", float(results["final/val_accuracy"].max()))


def view_state() -> str:
    """Return the columns and charts with which the UI opens, as JSON in MLflow's undocumented format."""
    section = {"uuid": VIEW, "name": "Trials", "display": True, "isReordered": False, "deleted": False}
    state: Mapping[str, object] = {
        "searchFilter": "tags.kind = 'trial'",
        "orderByKey": "metrics.`final/val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",  # MLflow's default shows ten runs
        "compareRunCharts": [_scatter(metric) for metric in SCATTER_METRICS],
        "compareRunSections": [{**section, "isGenerated": False}],
        "isAccordionReordered": True,  # or the section would stand last
    }
    return json.dumps(state)


def _scatter(metric: str) -> dict[str, object]:
    return {
        "type": "SCATTER",
        "uuid": f"accuracy against {metric}",
        "metricSectionId": VIEW,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 1000,
        "xaxis": {"key": metric, "type": "METRIC"},
        "yaxis": {"key": "final/accuracy", "type": "METRIC"},
    }
