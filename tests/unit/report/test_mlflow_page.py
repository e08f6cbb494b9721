"""What a sweep's run tells: its axes, its counts, the view of its trials; in a real store, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from orchestrator import tracking
from orchestrator.report import mlflow_page
from orchestrator.space.space import Space, load_space
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import MetricPoint, RunRecord, Tracker

SPACE = """\
about: Two ways.
axes:
  model: ["mlp(widths=[16])", slp]
  dataset: [digits, "digits(classes=[0, 1])"]
  technique: [weight, neuron]
  amount: [0, 50%]
  seed: 0..2
recover: finetune(epochs=1)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = default_uri(tmp_path_factory.mktemp("store"))
    tracking.initialise(found)
    return found


@pytest.fixture
def space(tmp_path: Path) -> Space:
    (tmp_path / "two.yaml").write_text(SPACE)
    return load_space(str(tmp_path / "two.yaml"))


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(uri, request.node.name)


def a_sweep(tracker: Tracker) -> RunRecord:
    with tracker.start("sweep", "two", tags={}) as run:
        pass
    return tracker.get_run(run.run_id)


def a_trial(
    tracker: Tracker, technique: str, sparsity: float, val_accuracy: float, dense: float = 0.9
) -> str:
    values = {"final/sparsity": sparsity, "final/val_accuracy": val_accuracy, "ipa/val_accuracy": dense}
    with tracker.start("trial", f"{technique} {sparsity}", tags={}) as run:
        run.log(
            params={"technique": technique},
            metrics=[MetricPoint(name, value) for name, value in values.items()],
            tags={"key": f"{technique} {sparsity}"},
        )
        run.log_dataset("digits", "abc", {"train": 1257})
    return run.run_id


def results(run_id: str) -> pandas.DataFrame:
    status = ["finished", "finished", "failed", "stopped", "missing", "missing"]
    accuracy = [0.5, 0.75, None, None, None, None]
    return pandas.DataFrame(
        {"status": status, "final/val_accuracy": accuracy, "dataset": "digits", "run_id": run_id}
    )


def test_every_axis_is_told_in_short(space: Space) -> None:
    told = mlflow_page.axis_params(space)
    assert told["model"] == "mlp(widths=[16]), slp"
    assert told["dataset"] == "digits, digits(classes=[0, 1])"
    assert told["technique"] == "weight, neuron"
    assert told["amount"] == "0.0, 0.5"
    assert told["seed"] == "0, 1, 2"
    assert told["recover"] == "finetune(epochs=1)"


def test_a_long_axis_is_cut(space: Space, tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(SPACE.replace("0..2", "0..999"))
    told = mlflow_page.axis_params(load_space(str(tmp_path / "long.yaml")))["seed"]
    assert len(told) == 500
    assert told.endswith("…")


def test_counts_are_of_the_plan() -> None:
    told = {point.name: point.value for point in mlflow_page.status_metrics(results("x"))}
    assert told == {
        "sweep/planned": 6,
        "sweep/done": 2,
        "sweep/stopped": 1,
        "sweep/failed": 1,
        "sweep/missing": 2,
        "sweep/best_val_accuracy": 0.75,
    }
    none = pandas.DataFrame({"status": ["failed"]})
    assert "sweep/best_val_accuracy" not in {point.name for point in mlflow_page.status_metrics(none)}


def test_told_twice_it_is_the_same(tracker: Tracker, space: Space) -> None:
    sweep, trial = a_sweep(tracker), a_trial(tracker, "weight", 0.5, 0.9)
    mlflow_page.publish_sweep_page(tracker, sweep, space=space, results=results(trial))
    first = tracker.get_run(sweep.run_id)
    mlflow_page.publish_sweep_page(tracker, sweep, space=space, results=results(trial))
    # One that is carried on knows its params already.
    mlflow_page.publish_sweep_page(tracker, first, space=space, results=results(trial))
    again = tracker.get_run(sweep.run_id)
    assert (again.params, again.metrics) == (first.params, first.metrics)
    assert again.params == mlflow_page.axis_params(space)
    assert again.metrics["sweep/done"] == 2
    assert tracker.data_digests(sweep.run_id) == {"digits": "abc"}
    (experiment,) = (e for e in tracker.client.search_experiments() if e.name == tracker.experiment)
    assert experiment.tags[tracking.NOTE] == "Two ways."
    assert experiment.tags["mlflow.sharedViewState.trials"] == mlflow_page.view_state()


def test_the_view_is_what_the_pages_read() -> None:
    """Its form is MLflow's own and undocumented: test_mlflow_ui.py looks at what a browser makes of it."""
    state = json.loads(mlflow_page.view_state())
    assert "metrics.`final/accuracy`" in state["selectedColumns"]
    assert "params.`technique`" in state["selectedColumns"]
    (section,) = state["compareRunSections"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
    assert state["orderByKey"] == "metrics.`final/val_accuracy`"  # nothing is chosen on test images


def test_the_best_are_the_sparsest_that_are_near_their_dense_network(tracker: Tracker) -> None:
    a_trial(tracker, "weight", 0.5, 0.95)
    weight = a_trial(tracker, "weight", 0.9, 0.8901)
    a_trial(tracker, "weight", 0.95, 0.88)
    neuron = a_trial(tracker, "neuron", 0.25, 0.9)
    a_trial(tracker, "neuron", 0.6, 0.5)
    a_trial(tracker, "structured", 0.8, 0.1)
    structured = a_trial(tracker, "structured", 0.5, 0.2)  # none is near: the most accurate
    assert [row.run_id for row in mlflow_page.best_runs(tracker)] == [weight, structured, neuron]


def test_links_are_addresses_within_the_pages(tracker: Tracker) -> None:
    sweep = a_sweep(tracker)
    text = mlflow_page.page_links(tracker, sweep)
    assert text.startswith(
        f"[report](#/experiments/{tracker.experiment_id}/runs/{sweep.run_id}/artifacts/report.html?"
    )
    assert "[trials](#/experiments/" in text
    assert "[best]" not in text  # there is none
    trial = a_trial(tracker, "weight", 0.5, 0.9)
    assert trial in mlflow_page.page_links(tracker, sweep)


def test_without_the_view_there_are_plain_addresses(tracker: Tracker) -> None:
    found = mlflow_page.trial_addresses("http://127.0.0.1:5000", tracker, has_view=False)
    place = f"http://127.0.0.1:5000/#/experiments/{tracker.experiment_id}/runs"
    assert found == {"trials": f"{place}?workflowType=machine_learning"}
