"""What a sweep's own run tells in the MLflow pages: what was swept, how it went, and a view of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.data.datasets import split_sizes
from orchestrator.storage.runs import REPORT
from orchestrator.tracking import NOTE, MetricPoint, RunRecord, Tracker, compare_address
from orchestrator.trial.params import DEFAULTS, without_defaults
from pruning.registry import parse

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.space.space import Space

VIEW = "trials"  # the key that an address names it by
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TRAINING = "workflowType=machine_learning"  # the pages open on another side of MLflow
PARAM_LENGTH = 500
NEAR = 0.01  # of its dense network's accuracy on validation images
METHOD = ("model", "dataset", "batch_size", "technique", "schedule", "recover")
MOST_COMPARED = 8
COLUMNS = (
    "params.`technique`",
    "params.`amount`",
    "params.`seed`",
    "metrics.`final/accuracy`",
    "metrics.`final/sparsity`",
    "metrics.`final/macs_effective`",
)
SCATTERS = ("final/sparsity", "final/macs_effective")  # each under the accuracy


def tell(tracker: Tracker, sweep: RunRecord, *, space: Space, results: DataFrame) -> None:
    """Params, metrics and data sets of the sweep's run; what its experiment is, and a view of its trials.

    Told again, it is the same.
    """
    run, new = tracker.attach(sweep), swept(space)
    known = {name: text for name, text in new.items() if name not in sweep.params}  # none is told anew
    run.log(params=known, metrics=counts(results))
    for trial in results[results["status"] == "finished"].drop_duplicates("dataset").to_dict("records"):
        name, options = parse(trial["dataset"])
        sizes = dict(zip(("train", "validation", "test"), split_sizes(name, **options), strict=True))
        for data, digest in tracker.data_digests(trial["run_id"]).items():
            run.log_dataset(data, digest, sizes)
    for tag, text in ((NOTE, space.about), (VIEW_TAG, view())):
        tracker.set_experiment_tag(tag, text)


def links(tracker: Tracker, sweep: RunRecord) -> str:
    """From the sweep's page to its report and its trials, in Markdown, by addresses within the pages.

    They are the first line of a description: the pages fold it, and what lies in the fold takes no click.
    """
    report = f"/#/experiments/{tracker.experiment_id}/runs/{sweep.run_id}/artifacts/{REPORT}?{TRAINING}"
    found = {"report": report, **addresses("", tracker, shared=True)}
    return " · ".join(f"[{word}]({place.removeprefix('/')})" for word, place in found.items())


def addresses(base: str, tracker: Tracker, *, shared: bool) -> dict[str, str]:
    """The trials of an experiment, as charts too if its view is `shared`, and the best of them compared."""
    place = f"{base}/#/experiments/{tracker.experiment_id}/runs"
    view = f"viewStateShareKey={VIEW}&" if shared else ""
    found = {"trials": f"{place}?{view}{TRAINING}"}
    if shared:
        found["charts"] = f"{place}?{view}compareRunsMode=CHART&{TRAINING}"
    if best := [row.run_id for row in best_runs(tracker)]:
        found["best"] = compare_address(base, tracker.experiment_id, best)
    return found


def best_runs(tracker: Tracker) -> list[RunRecord]:
    """Of each method the sparsest trial within a point of its dense network, or else the most accurate one.

    All by accuracy on validation images.
    """
    rows = tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial' and tags.key LIKE '_%'")
    methods: dict[tuple[str, ...], list[RunRecord]] = {}
    for row in rows:
        methods.setdefault(tuple(row.params.get(name, "") for name in METHOD), []).append(row)
    best = [max(filter(_near, found), key=_sparsity, default=None) for found in methods.values()]
    chosen = [row or max(found, key=_val_accuracy) for row, found in zip(best, methods.values(), strict=True)]
    return sorted(chosen, key=_sparsity, reverse=True)[:MOST_COMPARED]


def _near(row: RunRecord) -> bool:
    return _val_accuracy(row) >= row.metrics["ipa/val_accuracy"] - NEAR


def _val_accuracy(row: RunRecord) -> float:
    return row.metrics["final/val_accuracy"]


def _sparsity(row: RunRecord) -> float:
    return row.metrics["final/sparsity"]


def swept(space: Space) -> dict[str, str]:
    """Every axis with the values it takes, in short, as a trial's params have them."""
    return {axis: _listed(axis, chosen) for axis, chosen in space.choices().items()}


def _listed(axis: str, chosen: object) -> str:
    values = chosen if isinstance(chosen, tuple) else (chosen,)
    told = (
        without_defaults(axis, value) if axis in DEFAULTS and isinstance(value, str) else str(value)
        for value in values
    )
    text = ", ".join(told)
    return text if len(text) <= PARAM_LENGTH else f"{text[: PARAM_LENGTH - 1]}…"


def counts(results: DataFrame) -> Iterator[MetricPoint]:
    """How many trials are planned, how they ended, and the best validation accuracy, if any is done."""
    status = results["status"]
    yield MetricPoint("sweep/planned", float(len(results)))
    for name, word in (
        ("done", "finished"),
        ("stopped", "stopped"),
        ("failed", "failed"),
        ("missing", "missing"),
    ):
        yield MetricPoint(f"sweep/{name}", float((status == word).sum()))
    if (status == "finished").any():
        yield MetricPoint("sweep/best_val_accuracy", float(results["final/val_accuracy"].max()))


def view() -> str:
    """The columns and charts with which the pages open, in a form of MLflow's own that is undocumented."""
    charts = [_scatter(metric) for metric in SCATTERS]
    section = {"uuid": VIEW, "name": "Trials", "display": True, "isReordered": False, "deleted": False}
    state: Mapping[str, object] = {
        "searchFilter": "tags.kind = 'trial'",
        "orderByKey": "metrics.`final/val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",  # its own first choice is ten runs
        "compareRunCharts": charts,
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
