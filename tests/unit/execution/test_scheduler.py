"""Which trials are stopped, in plain Optuna and through a real Ray, and what their runs say."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from trained import Trained

import models
from orchestrator import tracking
from orchestrator.analysis.results import rounds
from orchestrator.config import (
    DEFAULT_GROUP_BY,
    DenseConfig,
    EarlyStopping,
    Numerics,
    Prune,
    Train,
    TrialConfig,
)
from orchestrator.data.loading import load_dataset
from orchestrator.errors import SpaceError, UsageError
from orchestrator.execution.dag_searcher import METRICS, OUTCOMES, STOPPED, SUCCEEDED, TASKS
from orchestrator.execution.early_stopping import (
    OptunaStopping,
    PQIndexPruner,
    Studies,
    make_pruner,
    record_round,
)
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep import make_plan, run_sweep, stop_rule
from orchestrator.execution.worker import run_task
from orchestrator.planning.plan import early_stopping_conflict, group_of
from orchestrator.planning.resume import previous_trials
from orchestrator.space.space import load_space
from orchestrator.space.stopping_rules import pruners
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import Tracker
from orchestrator.trial.run import Round, run_trial
from orchestrator.trial.task import PreviousTrial, Task, WorkerSettings, dump_tasks
from pruning.pq_index import NOT_SEEN, REGULARISING, UNDERFITTING

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "pq_pruner.py"
DENSE = DenseConfig("mlp(widths=[16, 8])", "digits", 64, 0, Train(epochs=1), Numerics(micro_batch=4096))
FALLS_AND_RISES = [0.5, 0.4, 0.3, 0.4, 0.5]


def trial_config(amount: float, *, seed: int = 0, setting: int = 0, count: int = 3) -> TrialConfig:
    """Settings differ in how long they are trained on."""
    prune = Prune("magnitude", "weight", "global", f"iterative(rounds={count})", amount)
    recover = f"finetune(epochs={setting + 1}, lr=1.0)" if setting else "none"
    return TrialConfig(replace(DENSE, seed=seed), prune, recover, "unstructured")


def point_of(config: TrialConfig) -> Task:
    return Task(config.key(), "a trial", config, parent=config.dense.key())


def values(number: int, accuracy: float, *, count: int = 5, index: float = 0.1) -> dict[str, float]:
    """What a worker reports of a round; the dense network has 0.9."""
    dense = {"dense_val_accuracy": 0.9, "dense_pq_index": 0.5}
    return {"round": number, "rounds": count, "val_accuracy": accuracy, "pq_index": index, **dense}


def reported(
    accuracies: list[float], indices: list[float], **options: Any
) -> tuple[optuna.Trial, list[bool]]:
    """A trial of a study with our pruner, and what `should_prune` says after every step."""
    study = optuna.create_study(direction="maximize", pruner=PQIndexPruner(**options))
    trial, said = study.ask(), []
    for step, (accuracy, index) in enumerate(zip(accuracies, indices, strict=True), start=1):
        record_round(trial, step, val_accuracy=accuracy, pq_index=index, dense_val_accuracy=0.9)
        said.append(trial.should_prune())
    return trial, said


def test_stopped_once_underfitting_and_worse_than_dense() -> None:
    _, said = reported([0.9, 0.9, 0.8, 0.8, 0.8], FALLS_AND_RISES, patience=2)
    assert said == [False, False, False, False, True]  # the rise is confirmed by its second round
    _, said = reported([0.9, 0.9, 0.8, 0.8, 0.8], FALLS_AND_RISES, patience=1)
    assert said == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("accuracies", "indices", "options"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.89], FALLS_AND_RISES, {"tolerance": 0.02}),  # past it, and still good
        ([0.9, 0.7, 0.5, 0.3, 0.1], [0.5, 0.4, 0.3, 0.2, 0.1], {}),  # hopeless, but it never turns
        ([0.1] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], {}),  # it rises, but never fell
        ([0.1] * 5, FALLS_AND_RISES, {"delta": 0.3}),  # all of it is noise
    ],
)
def test_not_stopped(accuracies: list[float], indices: list[float], options: dict[str, float]) -> None:
    assert not any(reported(accuracies, indices, **options)[1])


def test_the_pruner_says_phase_and_reason() -> None:
    trial, _ = reported([0.9, 0.9, 0.9, 0.8, 0.65], FALLS_AND_RISES)
    (frozen,) = trial.study.trials
    assert PQIndexPruner().phase(frozen) == UNDERFITTING
    assert PQIndexPruner(patience=3).phase(frozen) == NOT_SEEN
    why = "underfitting, and 0.2500 below the dense network's validation accuracy"
    assert PQIndexPruner().reason(frozen) == why


def test_the_index_of_the_dense_network_counts_as_round_0() -> None:
    trial = optuna.create_study(direction="maximize", pruner=PQIndexPruner(patience=1)).ask()
    trial.set_user_attr("pq_index:0", 0.5)
    for step, index in enumerate([0.3, 0.4], start=1):
        record_round(trial, step, val_accuracy=0.1, pq_index=index, dense_val_accuracy=0.9)
    assert trial.should_prune()  # without it nothing fell before it rose


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"delta": -1.0}, r"delta: expected a number in \[0, inf\) but got -1.0"),
        ({"patience": 0}, "patience: expected a whole number of rounds, 1 or more, but got 0"),
        ({"tolerance": 2.0}, r"tolerance: expected a number in \[0, 1\] but got 2.0"),
    ],
)
def test_bad_parameters(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PQIndexPruner(**given)


def test_a_trial_that_reports_too_little_is_told_so() -> None:
    trial = optuna.create_study(direction="maximize", pruner=PQIndexPruner()).ask()
    assert not trial.should_prune()  # nothing reported yet
    trial.report(0.5, 1)
    with pytest.raises(ValueError, match="expected the user attribute 'dense_val_accuracy' but got none"):
        trial.should_prune()
    trial.set_user_attr("dense_val_accuracy", 0.9)
    with pytest.raises(ValueError, match="expected the user attribute 'pq_index:1' but got none"):
        trial.should_prune()


@pytest.mark.slow
def test_the_example_runs_in_plain_optuna() -> None:
    study = runpy.run_path(str(EXAMPLE))["search"](2)
    for trial in study.trials:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        stopped = bool(study.pruner.reason(trial)) and len(trial.intermediate_values) < 8
        assert stopped == (trial.state is TrialState.PRUNED)


CLASSES = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
    "patient": "PatientPruner",
    "wilcoxon": "WilcoxonPruner",
    "pq_index": "PQIndexPruner",
}


def test_all_names_are_there() -> None:
    assert set(pruners) == CLASSES.keys()
    assert all(pruners.get(name).traits["summary"] for name in pruners)


@pytest.mark.parametrize("name", CLASSES)
def test_each_name_is_a_pruner_that_judges(name: str) -> None:
    assert type(make_pruner(name)).__name__ == CLASSES[name]
    studies = Studies(EarlyStopping(name))
    for setting in range(3):
        config = trial_config(0.5, setting=setting)
        said = [studies.report_round(config.key(), config, values(n, 0.8)) for n in range(1, 6)]
        studies.end(config.key(), value=0.8)
        assert said[-1] == ""  # at its last round
    (study,) = studies._groups.values()
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("medien", "unknown stop 'medien'; did you mean median"),
        ("median(n_startup=2)", "unknown option of median 'n_startup'; did you mean n_startup_trials"),
        ("percentile(percentile=101.0)", r"it must be in \[0, 100\]"),
        ("threshold(lower=0.9, upper=0.1)", "lower must not be above upper"),
        ("patient(wrapped='patient')", "cannot wrap itself"),
        ("patient(wrapped='medien')", "did you mean median"),
        ("hyperband(min_resource=3, max_resource=2)", "it must be 0 or at least 3"),
    ],
)
def test_bad_texts(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_pruner(text)


def test_the_median_of_the_group_decides() -> None:
    studies = Studies(EarlyStopping("median(n_startup_trials=2)"))
    for setting in range(2):
        config = trial_config(0.5, setting=setting)
        assert [studies.report_round(config.key(), config, values(n, 0.9)) for n in range(1, 6)] == [""] * 5
        studies.end(config.key(), value=0.9)
    worse = trial_config(0.5, setting=2)
    assert studies.report_round(worse.key(), worse, values(1, 0.9)) == ""
    low = [studies.report_round(worse.key(), worse, values(n, 0.1)) for n in (2, 3)]
    assert low[0] == ""  # its best so far is what is compared
    (study,) = studies._groups.values()
    studies.end(worse.key(), value=None, stopped=True)
    other = trial_config(0.5, setting=3)
    why = "round 1: validation accuracy 0.1000, by median(n_startup_trials=2)"
    assert studies.report_round(other.key(), other, values(1, 0.1)) == why
    studies.end(other.key(), value=None)
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [trial.state for trial in study.trials] == states


def test_99_percent_is_not_killed_by_10() -> None:
    studies = Studies(EarlyStopping("median(n_startup_trials=2)"))
    for setting in range(3):
        config = trial_config(0.1, setting=setting)
        studies.report_round(config.key(), config, values(1, 0.9))
        studies.end(config.key(), value=0.9)
    sparse = trial_config(0.99)
    assert studies.report_round(sparse.key(), sparse, values(1, 0.2)) == ""
    everyone = Studies(EarlyStopping("median(n_startup_trials=2)", group_by=("dataset",)))
    for setting in range(3):
        config = trial_config(0.1, setting=setting)
        everyone.report_round(config.key(), config, values(1, 0.9))
        everyone.end(config.key(), value=0.9)
    assert "by median(n_startup_trials=2) within dataset" in everyone.report_round(
        sparse.key(), sparse, values(1, 0.2)
    )


def test_what_ended_before_this_sweep_is_compared_with() -> None:
    told = Told(
        "median(n_startup_trials=2)",
        *(
            PreviousTrial(
                trial_config(0.5, setting=setting), tuple(values(n, 0.9) for n in range(1, 6)), accuracy
            )
            for setting, accuracy in enumerate([0.9, 0.9, None])
        ),
    )
    assert told.reasons == {}
    worse = point_of(trial_config(0.5, setting=5))
    told.result(worse, {SUCCEEDED: 0, "task": worse.key, **values(1, 0.1)})
    assert told.reasons.keys() == {worse.key}
    (study,) = told.scheduler._studies._groups.values()
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
    assert [trial.state for trial in study.trials] == states


def test_settings_compete_with_settings_and_never_the_seeds_of_one(tmp_path: Path) -> None:
    """Nine good seeds of one setting, and its tenth, which is bad, goes on; a bad setting does not."""
    studies = Studies(EarlyStopping("median(n_startup_trials=1)"))
    for seed in range(9):
        config = trial_config(0.5, seed=seed)
        assert studies.report_round(config.key(), config, values(1, 0.9)) == ""
        studies.end(config.key(), value=0.9)
    unlucky = trial_config(0.5, seed=9)
    assert studies.report_round(unlucky.key(), unlucky, values(1, 0.1)) == ""
    worse = trial_config(0.5, seed=3, setting=1)
    assert studies.report_round(worse.key(), worse, values(1, 0.5)).startswith(
        "round 1: validation accuracy 0.5000"
    )


def test_groups_are_of_one_seed_and_what_makes_trials_comparable() -> None:
    config = trial_config(0.5)
    first = ("0.5", "64", "digits", "mlp(widths=[16, 8])", "iterative(rounds=3)")
    assert group_of(config, DEFAULT_GROUP_BY)[:5] == first
    assert group_of(config, DEFAULT_GROUP_BY)[-1] == "0"
    assert group_of(config, DEFAULT_GROUP_BY) == group_of(
        replace(config, technique="weight"), DEFAULT_GROUP_BY
    )
    assert group_of(config, DEFAULT_GROUP_BY) == group_of(trial_config(0.5, setting=4), DEFAULT_GROUP_BY)
    for other in (trial_config(0.5, seed=3), trial_config(0.6), trial_config(0.5, count=7)):
        assert group_of(config, DEFAULT_GROUP_BY) != group_of(other, DEFAULT_GROUP_BY)
    longer = replace(config, dense=replace(DENSE, train=Train(epochs=2)))
    assert group_of(config, DEFAULT_GROUP_BY) != group_of(longer, DEFAULT_GROUP_BY)
    assert group_of(config, ()) == ("0",)
    assert group_of(config, ("start", "train.channels_last")) == ("scratch", "False", "0")


class Told:
    """A scheduler, and the reasons that it tells; trials by their points."""

    def __init__(self, text: str, *past: PreviousTrial) -> None:
        self.reasons: dict[str, str] = {}
        self.scheduler = OptunaStopping(EarlyStopping(text), self.reasons.__setitem__, past)

    def result(self, point: Task, result: dict[str, Any]) -> str:
        return self.scheduler.on_trial_result(None, self.trial(point), result)  # type: ignore[arg-type]

    def complete(self, point: Task, outcome: dict[str, Any]) -> None:
        result = {OUTCOMES: json.dumps({point.key: outcome})}
        self.scheduler.on_trial_complete(None, self.trial(point), result)  # type: ignore[arg-type]

    @staticmethod
    def trial(point: Task) -> Any:
        return type("Trial", (), {"config": {TASKS: dump_tasks([point])}})


def test_only_rounds_of_trials_count() -> None:
    told = Told("threshold(lower=0.5)")
    dense, trial = Task(DENSE.key(), "dense", DENSE), point_of(trial_config(0.5))
    assert told.result(dense, {SUCCEEDED: 0, "task": dense.key, **values(1, 0.1)}) == "CONTINUE"
    assert told.result(trial, {SUCCEEDED: 0, "epoch": 1.0, "val_accuracy": 0.1}) == "CONTINUE"
    assert told.reasons == {}
    assert told.result(trial, {SUCCEEDED: 0, "task": trial.key, **values(1, 0.1)}) == "CONTINUE"
    why = "round 1: validation accuracy 0.1000, by threshold(lower=0.5)"
    assert told.reasons == {trial.key: why}
    told.complete(trial, {STOPPED: why})
    told.complete(dense, {METRICS: {"final/val_accuracy": 0.9}})
    (study,) = told.scheduler._studies._groups.values()
    assert [found.state for found in study.trials] == [TrialState.PRUNED]


def test_a_walk_ends_where_it_is_told_and_never_at_its_last_round() -> None:
    heard: list[Round] = []

    def at_two(round: Round) -> str:
        heard.append(round)
        return "enough" if round.number == 2 else ""

    config = trial_config(0.9, count=4)
    stopped = run_trial(config, load_dataset("digits"), store=Trained(), on_round=at_two)
    assert (len(stopped.rounds), stopped.stopped_because) == (2, "enough")
    assert [(round.number, round.rounds) for round in heard] == [(1, 4), (2, 4)]
    assert heard[1].measurement == stopped.last.measurement
    assert heard[1].ipa == stopped.ipa
    whole = run_trial(
        trial_config(0.9, count=2),
        load_dataset("digits"),
        store=Trained(),
        on_round=lambda _: "" if _.number < 2 else "x",
    )
    assert (len(whole.rounds), whole.stopped_because) == (2, "")


RULE = EarlyStopping("threshold(lower=0.5, upper=1.0, n_warmup_steps=0, interval_steps=1)")


def place(folder: Path, stop: EarlyStopping | None) -> tuple[Tracker, WorkerSettings]:
    uri = default_uri(folder)
    tracking.initialise(uri)
    tracker = Tracker(uri, "x")
    sweep = tracker.start("sweep", "x", tags={}).run_id
    return tracker, WorkerSettings(uri, "x", sweep, None, models.__file__, stop)


def test_a_stopped_run_is_finished_and_marked_and_never_whole(tmp_path: Path) -> None:
    tracker, where = place(tmp_path, RULE)
    run_task(Task(DENSE.key(), "dense", DENSE), where)
    point = point_of(trial_config(0.9))
    heard: list[dict[str, float]] = []

    def judge(values: dict[str, float]) -> str:
        heard.append(values)
        return "hopeless" if values["round"] == 2 else ""

    assert run_task(point, where, should_stop=judge) == {}
    (row,) = tracker.search(f"tags.point = '{point.key}'")
    assert row.status == "FINISHED"
    marks = {"stopped_key": point.key, "stop": str(RULE), "stopped_because": "hopeless", "phase": NOT_SEEN}
    assert row.tags.items() >= marks.items()
    assert "key" not in row.tags
    assert not [name for name in row.metrics if name.startswith("final/")]
    assert row.metrics["round/val_accuracy"] == heard[-1]["val_accuracy"]
    table = json.loads(tracker.read_text(row, "rounds.json"))
    assert [line[table["columns"].index("phase")] for line in table["data"]] == [NOT_SEEN] * 2
    assert set(tracker.find_all_stopped({point.key}, str(RULE))) == {point.key}
    assert tracker.find_all_stopped({point.key}, "median") == tracker.find_all_finished({point.key}) == {}
    assert tracker.find_all_failed({point.key}) == {}

    final = run_task(point, where, should_stop=lambda values: "")
    assert final["final/sparsity"] > 0.8
    assert tracker.find_all_finished({point.key})[point.key].tags["phase"] == NOT_SEEN


SPACE = """\
version: 1
axes:
  model: ["mlp(widths=[16, 8])"]
  dataset: [digits]
  technique: [unstructured]
  schedule: [iterative(rounds=4)]
  amount: [20%, 40%, 60%, 100%]
train: {epochs: 4, lr: 1e-2}
recover: finetune(epochs=1)
"""


def space(folder: Path, more: str = "") -> Any:
    file = folder / "stopping.yaml"
    file.write_text(SPACE + more)
    return load_space(str(file))


def test_a_space_says_how_trials_are_stopped(tmp_path: Path) -> None:
    assert stop_rule(space(tmp_path)) is None
    found = space(tmp_path, "stop: {method: threshold, lower: 0.5}\n")
    assert stop_rule(found) == RULE
    assert stop_rule(found, "none") is None
    assert stop_rule(found, "threshold(lower=0.5)") == RULE
    found = space(tmp_path, "stop: threshold(lower=0.5)\nstop_within: [model, dataset]\n")
    assert str(stop_rule(found)) == f"{RULE.text} within dataset, model"


@pytest.mark.parametrize(
    ("more", "sets", "said"),
    [
        ("stop: median\n", (), "median would stop nothing: settings compete at one seed and equal amount, "
         "batch_size, dataset, model, schedule, 6 are needed, and there are 1 at most; give more settings, "
         "fewer axes in stop_within, or --stop none"),
        ("stop: median\n", ("seed=0..9",), "6 are needed, and there are 1 at most"),
        ("stop: halving\n", ("seed=0..9",), "2 are needed, and there are 1 at most"),
        ("stop: {method: patient, wrapped: wilcoxon}\n", (), "2 are needed, and there are 1 at most"),
        ("stop: median\n", ("technique=weight,neuron,structured,random",),
         "6 are needed, and there are 4 at most; give n_startup_trials=3, more settings"),
        ("stop: median\nstop_within: [dataset]\n", ("seed=0..9",), "6 are needed, and there are 4 at most"),
        ("stop: threshold(lower=0.5)\n", ("schedule=one_shot",),
         "would stop nothing: trials are stopped between rounds, and each here has one; give a schedule of "
         "several, such as iterative(rounds=5), or --stop none"),
        ("stop: pq_index\n", ("when=during", "recover=none"), "each here has one"),
    ],
)  # fmt: skip
def test_a_rule_that_can_stop_nothing_is_refused_before_the_sweep(
    more: str, sets: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    space(tmp_path, more)
    found = load_space(str(tmp_path / "stopping.yaml"), sets)
    with pytest.raises(SpaceError) as raised:
        run_sweep(found, SweepOptions(), uri=default_uri(tmp_path))
    assert said in str(raised.value)
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("more", "sets"),
    [
        ("stop: median(n_startup_trials=3)\n", ("technique=weight,neuron,structured,random",)),
        ("stop: median\nstop_within: [dataset]\n", ("technique=weight,neuron",)),
        ("stop: threshold(lower=0.5)\n", ()),
        ("stop: {method: patient, wrapped: threshold}\n", ()),
        ("stop: halving\n", ("technique=weight,neuron",)),
    ],
)
def test_a_rule_that_can_stop_something_is_taken(more: str, sets: tuple[str, ...], tmp_path: Path) -> None:
    space(tmp_path, more)
    found = load_space(str(tmp_path / "stopping.yaml"), sets)
    rule = stop_rule(found)
    assert rule is not None
    assert early_stopping_conflict(make_plan(found), rule) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("stop: medain\n", "10: stop: unknown stop 'medain'; did you mean median"),
        ("stop: {method: median, startup: 2}\n", "unknown option of median 'startup'; did you mean"),
        ("stop: median\nstop_within: [amuont]\n", "unknown axis 'amuont'; did you mean amount"),
    ],
)
def test_a_space_that_says_it_wrong_is_refused(more: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=said):
        space(tmp_path, more)


def test_the_command_line_that_says_it_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--stop medain: unknown stop 'medain'; did you mean median"):
        stop_rule(space(tmp_path), "medain")


@pytest.mark.slow
def test_a_sweep_stops_the_hopeless_and_one_without_runs_them_whole(tmp_path: Path) -> None:
    """At 100% a network is at chance from its last rounds on; the others stay well above the bound."""
    found, uri = space(tmp_path), default_uri(tmp_path)
    one_worker = SweepOptions(max_concurrent=1)
    stopping = replace(one_worker, stop="threshold(lower=0.5)")
    summary = run_sweep(found, stopping, uri=uri)
    tracker = Tracker(uri, found.name)
    table = summary.results.set_index("amount")
    assert dict(table["status"]) == {0.2: "finished", 0.4: "finished", 0.6: "finished", 1.0: "stopped"}
    assert (summary.failed, summary.stopped, summary.failures) == (0, 1, {})
    row = tracker.get_run(str(table.loc[1.0, "run_id"]))
    key = row.tags["stopped_key"]
    assert row.status == "FINISHED"
    assert "key" not in row.tags
    assert "by threshold(lower=0.5" in row.tags["stopped_because"]
    measured = rounds(found.name, uri=uri)
    counts = measured.groupby("key")["round"].count()
    assert 0 < counts[key] < 4
    assert sorted(counts.drop(key)) == [4, 4, 4]
    assert set(measured["phase"]) <= {NOT_SEEN, REGULARISING, UNDERFITTING, "collapsing"}

    rule = stop_rule(found, stopping.stop)
    assert rule is not None
    past = list(previous_trials(make_plan(found), tracker, rule))
    assert [trial.config.prune.amount for trial in past] == [0.2, 0.4, 0.6, 1.0]
    assert [trial.val_accuracy is None for trial in past] == [False, False, False, True]
    assert [len(trial.rounds) for trial in past][:3] == [4] * 3
    assert all(measured["rounds"] == 4 for trial in past for measured in trial.rounds)
    told = Told("threshold(lower=0.5)", *past)
    assert told.reasons == {}

    again = run_sweep(found, stopping, uri=uri)
    assert (again.outcome.results, again.reused, again.stopped) == ((), 4, 1)

    whole = run_sweep(found, one_worker, uri=uri)
    assert [outcome.task.key for outcome in whole.outcome.results] == [key]
    assert set(whole.results["status"]) == {"finished"}
    assert tracker.find_all_finished({key})[key].run_id != row.run_id
    open_runs = tracker.search("attributes.status = 'RUNNING'")
    assert open_runs == []


# ---- Optuna counts steps from 0, and rounds count from 1


def rounds_judged(text: str, *, count: int = 8) -> list[int]:
    """The rounds after which the rule would stop a hopeless trial, ten good ones being finished."""
    studies = Studies(EarlyStopping(text, ()))
    for setting in range(10):
        config = trial_config(0.5 + setting / 100)
        for number in range(1, count + 1):
            studies.report_round(str(setting), config, values(number, 0.8, count=count))
        studies.end(str(setting), value=0.8)
    hopeless = trial_config(0.7)
    return [
        number
        for number in range(1, count + 1)
        if studies.report_round("hopeless", hopeless, values(number, 0.1, count=count + 1))
    ]


@pytest.mark.parametrize("rule", ["median", "percentile(percentile=50.0)", "threshold(lower=0.5)"])
def test_warm_up_and_interval_are_counted_in_rounds(rule: str) -> None:
    """n_warmup_steps=1 spares the first round, and no other; the first check comes right after."""

    def judged(options: str) -> list[int]:
        name, _, more = rule.rstrip(")").partition("(")
        return rounds_judged(f"{name}({', '.join(filter(None, (more, options)))})")

    assert judged("") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert judged("n_warmup_steps=1") == [2, 3, 4, 5, 6, 7, 8]
    assert judged("n_warmup_steps=7") == [8]
    assert judged("interval_steps=2") == [1, 3, 5, 7]
    assert judged("n_warmup_steps=1, interval_steps=3") == [2, 5, 8]


@pytest.mark.parametrize(("warm_up", "interval"), [(0, 1), (0, 2), (1, 1), (1, 3), (3, 2)])
def test_rounds_are_judged_where_optuna_judges_steps_from_0(warm_up: int, interval: int) -> None:
    """The judge is Optuna's own pruner in a study whose steps begin at 0, as its documentation asks."""
    options = {"n_warmup_steps": warm_up, "interval_steps": interval}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, **options)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for _ in range(10):
        trial = study.ask()
        for step in range(8):
            trial.report(0.8, step)
        study.tell(trial, 0.8)
    hopeless, expected = study.ask(), []
    for step in range(8):
        hopeless.report(0.1, step)
        expected += [step + 1] if hopeless.should_prune() else []
    assert rounds_judged(f"median(n_warmup_steps={warm_up}, interval_steps={interval})") == expected


def test_the_first_rung_of_halving_is_after_min_resource_rounds() -> None:
    assert rounds_judged("halving(min_resource=1)")[0] == 1
    assert rounds_judged("halving(min_resource=3, reduction_factor=2)")[0] == 3
    assert rounds_judged("halving(min_resource=2, reduction_factor=2, min_early_stopping_rate=1)")[0] == 4


@pytest.mark.parametrize("count", [8, 9])
def test_hyperband_takes_the_number_of_rounds_for_its_largest_resource(count: int) -> None:
    """Brackets: floor(log_3 rounds) + 1; 8 rounds have two, and 9 three."""
    pruner = make_pruner("hyperband")
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="brackets")
    expected = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=count, reduction_factor=3)
    judged = optuna.create_study(direction="maximize", pruner=expected, study_name="brackets")
    for place in (study, judged):
        trial = place.ask()
        for number in range(1, count + 1):
            trial.report(0.8, number)
            assert not (place is study and trial.should_prune())
        place.tell(trial, 0.8)
    for _ in range(30):
        ours, theirs = study.ask(), judged.ask()
        for number in range(1, count + 1):
            ours.report(0.5 - 0.01 * ours.number, number)
            theirs.report(0.5 - 0.01 * theirs.number, number)
            assert ours.should_prune() == theirs.should_prune()
    (inner,) = [part for part in vars(pruner).values() if isinstance(part, optuna.pruners.HyperbandPruner)]
    assert len(inner._pruners) == {8: 2, 9: 3}[count]


def test_patience_counts_rounds() -> None:
    """The best of all but the last three rounds must be above all of those: not before round 4."""
    rule = "patient(wrapped='threshold(lower=0.5)', patience=2)"
    studies, config = Studies(EarlyStopping(rule)), trial_config(0.5)
    found = [bool(studies.report_round("a", config, values(n, 0.4 - 0.01 * n, count=9))) for n in range(1, 7)]
    assert found == [False, False, False, True, True, True]
