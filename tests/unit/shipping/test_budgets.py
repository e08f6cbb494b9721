"""Budgets: their texts, the space that is searched, and the run that answers, by hand on small tables."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from orchestrator.errors import UsageError
from orchestrator.planning.amounts import budget_conflict
from orchestrator.planning.plan import make_plan
from orchestrator.shipping.budgets import Answer, choose, front_lines, parse_budgets, space_text
from orchestrator.space.space import Space, load_space

# run -> validation accuracy, test accuracy, MACs, parameters, bytes; dense: 0.95, 1,000 MACs, 100 parameters
ROWS = {
    "a": (0.94, 0.90, 600, 60, 240),
    "b": (0.93, 0.99, 400, 45, 180),
    "c": (0.90, 0.91, 250, 30, 120),
    "d": (0.93, 0.93, 350, 50, 200),
}


def results(**changed: str) -> pandas.DataFrame:
    rows = [
        {
            "run_id": name,
            "status": changed.get(name, "finished"),
            "ipa/val_accuracy": 0.95,
            "final/val_accuracy": val,
            "final/accuracy": test,
            "final/macs_physical": macs,
            "final/macs_dense": 1000,
            "final/parameters_physical": parameters,
            "final/parameters_dense": 100,
            "final/bytes_physical": size,
            "final/bytes_dense": 400,
        }
        for name, (val, test, macs, parameters, size) in ROWS.items()
    ]
    return pandas.DataFrame(rows)


def answer(*budgets: str, within: float | None = None, ms: dict[str, float] | None = None) -> tuple[str, str]:
    times = ms or {}
    chosen = choose(results(), parse_budgets(budgets), within=within, measure=lambda run: times[run])
    assert chosen is not None
    return chosen.run_id, chosen.missed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("macs<=50%", "macs <= 50%"),
        ("MACS <= 5M", "macs <= 5000000"),
        ("macs< 5 MMACs", "macs <= 5000000"),
        ("bytes=<100kB", "bytes <= 100000"),
        ("parameters<=100_000", "parameters <= 100000"),
        ("latency<=2ms", "latency <= 2 ms"),
        ("latency<=500us", "latency <= 0.5 ms"),
    ],
)
def test_budgets_are_parsed(text: str, shown: str) -> None:
    (budget,) = parse_budgets([text])
    assert str(budget) == shown


@pytest.mark.parametrize(
    "text", ["macs", "macs=5", "macs>=5", "mac<=5", "macs<=", "macs<=0", "latency<=0ms", ""]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_budgets([text])


def test_a_time_without_a_unit_is_not_guessed() -> None:
    with pytest.raises(UsageError, match=r"2 of which unit[?] Write one of 2us, 2ms, 2s"):
        parse_budgets(["latency<=2"])


def test_a_quantity_has_one_limit() -> None:
    with pytest.raises(UsageError, match="macs is named twice"):
        parse_budgets(["macs<=5", "MACs<=50%"])


def test_the_most_accurate_within_the_budget_on_validation_images_answers() -> None:
    assert answer("macs<=70%") == ("a", "")
    assert answer("macs<=50%") == ("d", "")  # as accurate as b, and smaller; b is better on test images
    assert answer("macs<=50%", "parameters<=45") == ("b", "")
    assert answer("bytes<=30%") == ("c", "")


def test_without_a_budget_the_smallest_that_is_accurate_enough_answers() -> None:
    assert answer(within=0.02) == ("d", "")
    assert answer(within=0.05) == ("c", "")
    assert answer(within=0.01) == ("a", "")


def test_where_nothing_answers_the_nearest_says_by_how_much() -> None:
    run, missed = answer("macs<=200")
    assert (run, missed) == ("c", "it is 25.0% above the budget")
    run, missed = answer("macs<=50%", within=0.01)
    assert run in ("b", "d")
    assert missed == "it is 2.00 points below dense, and 1 were allowed"


def test_latency_is_measured_of_the_front_the_most_accurate_first() -> None:
    times = {"a": 3.0, "d": 2.0, "c": 1.0}  # b is beaten by d, and never timed
    assert answer("latency<=5ms", ms=times) == ("a", "")
    assert answer("latency<=2ms", ms=times) == ("d", "")
    assert answer("latency<=0.5ms", ms=times) == ("c", "it takes 1.000 ms, and 0.5 ms were allowed")


@pytest.mark.parametrize(("budget", "said"), [("macs<=70%", "1.00 points above"), ("bytes<=30%", "below")])
def test_the_answer_says_how_far_it_is_from_dense(budget: str, said: str) -> None:
    chosen = choose(results(), parse_budgets([budget]), within=None, measure=float)
    assert chosen is not None
    row = chosen.row.copy()
    if said.endswith("above"):
        row["ipa/val_accuracy"] = row["final/val_accuracy"] - 0.01
    first = next(Answer(chosen.run_id, row).lines())
    assert f"{said} dense" in first
    assert "+" not in first


def test_only_finished_trials_answer() -> None:
    assert (
        choose(results(a="failed", b="failed", c="failed", d="failed"), (), within=0.1, measure=float) is None
    )
    chosen = choose(results(a="failed"), parse_budgets(["macs<=70%"]), within=None, measure=float)
    assert chosen is not None
    assert chosen.run_id == "d"


def test_the_front_has_what_no_other_run_beats_the_smallest_first() -> None:
    runs = [line.split()[-1] for line in front_lines(results())][1:]
    assert runs == ["c", "d", "a"]


def space(tmp_path: Path, *budgets: str, trials: int = 60, starts_from_model: bool = False) -> Space:
    text = space_text(
        model="cnn(widths=[6, 10])",
        dataset="digits",
        budgets=parse_budgets(budgets),
        trials=trials,
        seeds=2,
        epochs=4,
        starts_from_model=starts_from_model,
    )
    (tmp_path / "own.yaml").write_text(text)
    return load_space(str(tmp_path / "own.yaml"))


def test_the_space_says_the_same_as_the_command(tmp_path: Path) -> None:
    loaded = space(tmp_path, "macs<=50%", "bytes<=3kB", "latency<=2ms")
    assert loaded.axes.amount == ("{macs: 50%, bytes: 3000}",)
    assert loaded.search.method == "tpe"
    assert loaded.points == 120
    whole = space(tmp_path, "macs<=50%", trials=1000)
    assert whole.search.method == "grid"
    plan = make_plan(whole)
    assert len(plan.trials) == 2 * 3 * 4 * 3 * 6  # seeds, criteria, allocations, schedules, recoveries
    assert all(trial.config.recover.endswith(", on='cut')") for trial in plan.trials)
    assert {trial.config.prune.limits for trial in plan.trials} == {
        (("macs", plan.trials[0].config.prune.limits[0][1]),)
    }


def test_a_budget_that_no_trial_can_meet_is_known_before_any_runs(tmp_path: Path) -> None:
    assert budget_conflict(space(tmp_path, "macs<=50%")) is None
    conflict = budget_conflict(space(tmp_path, "macs<=1"))
    assert conflict is not None
    assert "pruning by channel leaves" in conflict
