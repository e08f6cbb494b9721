"""The best points of a search: the front by hand and by Optuna, and the table of it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.best_points import best_points, best_table, finished_points
from orchestrator.analysis.pareto import front
from orchestrator.analysis.plots import accuracy_against_sparsity
from orchestrator.analysis.settings import settings
from orchestrator.analysis.tables import tables
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.plan_file import load_planned_rows
from orchestrator.planning.resume import plan_text
from orchestrator.space.space import load_space

TEXT = """\
search: {method: random, trials: 4, objectives: {final/val_accuracy: max, final/macs_effective: min}}
axes:
  model: slp
  dataset: digits
  batch_size: {low: 16, high: 1024, log: true}
  amount: {low: 0.5, high: 0.9}
  schedule: pq_index
  pq_index.gamma: {low: 1, high: 9}
  recover: [none, finetune]
  train.lr: {low: 1e-4, high: 1e-1, log: true}
  seed: [0, 1]
"""
# Point -> (validation accuracy, MACs, test accuracy) for both seeds; the third is beaten by the first
VALUES = {1: (0.8, 300.0, 0.5), 2: (0.9, 400.0, 0.7), 3: (0.7, 350.0, 0.99), 4: (0.6, 100.0, 0.6)}


def searched(tmp_path: Path, constraints: str = "") -> tuple[Plan, pandas.DataFrame]:
    """A plan of four points with two seeds each, and results as they come from a store."""

    file = tmp_path / "mine.yaml"
    file.write_text(TEXT.replace("trials: 4,", f"trials: 4, constraints: {{{constraints}}},"))
    plan = make_plan(load_space(str(file)))
    rows = []
    for number, row in enumerate(load_planned_rows(plan_text(plan))):
        val, macs, test = VALUES[number // 2 + 1]
        shift = 0.01 if number % 2 else -0.01
        numbers = {
            "final/val_accuracy": val + shift,
            "final/macs_effective": macs,
            "final/accuracy": test + shift,
            "ipa/accuracy": 0.95,
            "final/sparsity": row["amount"],
        }
        others = ("loss", "macs_dense", "macs_physical", "parameters_physical", "epochs", "train_flops")
        costs = {f"final/{name}": 640.0 for name in others}
        rows.append(
            {**row, "status": "finished", "run_id": "r", "reason": None, "notes": "", **numbers, **costs}
        )
    results = pandas.DataFrame(rows)
    results.attrs["objectives"] = dict(plan.space.search.objectives)
    return plan, results


def test_the_best_points_are_those_that_no_other_beats(tmp_path: Path) -> None:
    plan, results = searched(tmp_path)
    best = best_points(plan, results)
    assert [point.number for point in best] == [2, 1, 4]
    assert [round(point.objectives["final/val_accuracy"], 9) for point in best] == [0.9, 0.8, 0.6]
    assert [(point.seeds, round(point.accuracy, 9)) for point in best] == [(2, 0.7), (2, 0.5), (2, 0.6)]
    assert best[0].params == plan.points[1].params
    assert best[0].to_json()["means"]["final/macs_effective"] == 400.0


def test_a_point_counts_once_all_its_seeds_are_there(tmp_path: Path) -> None:
    plan, results = searched(tmp_path)
    results.loc[3, "status"] = "failed"
    assert [point.number for point in finished_points(plan, results)] == [1, 3, 4]
    assert [point.number for point in best_points(plan, results)] == [1, 4]


def test_the_table_has_what_was_searched_and_what_came_of_it(tmp_path: Path) -> None:
    plan, results = searched(tmp_path)
    table = best_table(plan, results)
    assert table is not None
    assert table.title == "Pareto front of final/val_accuracy (max) and final/macs_effective (min)"
    searched_axes = {"batch_size", "amount", "pq_index.gamma", "recover", "train.lr"}
    assert table.header[0] == "point"
    assert set(table.header[1:6]) == searched_axes
    assert table.header[6:] == ["val_accuracy", "macs_effective", "test accuracy", "seeds"]
    assert [row[0] for row in table.rows] == ["2", "1", "4"]
    assert table.rows[0][6:] == ["0.9", "400", "0.7", "2"]
    assert "did not decide" in table.note
    results["status"] = "missing"
    assert best_table(plan, results) is None


def test_tables_and_picture_of_a_search_have_a_row_and_a_dot_for_every_point(tmp_path: Path) -> None:
    _, results = searched(tmp_path)
    (table,) = tables(results)
    assert [row[3] for row in table.rows] == ["0.9", "0.8", "0.7", "0.6"]
    assert table.header[3:5] == ["val_accuracy", "macs_effective"]
    assert all("train.lr=" in row[1] and "pq_index" in row[1] for row in table.rows)
    assert max(len(row[1]) for row in table.rows) < 90
    assert len(list(settings(results))) == 4
    assert accuracy_against_sparsity(results, title="x").startswith(b"\x89PNG")


def test_a_search_without_a_point_yet_has_no_table(tmp_path: Path) -> None:
    empty = pandas.DataFrame([], columns=("key", "status", "seed"))
    empty.attrs["objectives"] = {"final/val_accuracy": "max"}
    (table,) = tables(empty)
    assert table.rows == []
    assert best_points(searched(tmp_path)[0], empty) == []


# Laws

SCORES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(SCORES)
def test_the_front_is_optuna_s(scores: list[tuple[int, int, int]]) -> None:
    study = optuna.create_study(directions=["maximize"] * 3)
    study.add_trials([optuna.trial.create_trial(values=[float(v) for v in row]) for row in scores])
    assert sorted(front(scores)) == sorted(trial.number for trial in study.best_trials)


def test_the_best_points_keep_to_the_constraints(tmp_path: Path) -> None:
    plan, results = searched(tmp_path, 'final/macs_effective: "<= 50%"')  # of 640
    assert [point.number for point in best_points(plan, results)] == [1, 4]
    table = best_table(plan, results)
    assert table is not None
    assert "with final/macs_effective <= 50%" in table.title


def test_where_no_point_keeps_to_them_the_nearest_is_named(tmp_path: Path) -> None:
    plan, results = searched(tmp_path, 'final/macs_effective: "<= 80"')
    (nearest,) = best_points(plan, results)
    assert nearest.number == 4
    assert nearest.violation == 0.25
    assert nearest.to_json()["violation"] == 0.25
    table = best_table(plan, results)
    assert table is not None
    assert "no point keeps to final/macs_effective <= 80: the nearest misses it by 25.00%" in table.title
