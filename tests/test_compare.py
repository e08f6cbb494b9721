"""Means over seeds against scipy, tables in the order of the plan, and the plan's record."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.compare import (
    CAPTION,
    METRICS,
    Interval,
    compared,
    interval,
    listed,
    markdown,
    method_label,
    pivoted,
    setting_columns,
    settings,
    tables,
)
from orchestrator.figures import accuracy_against_sparsity
from orchestrator.records import plan_record, planned_rows

Row = dict[str, Any]


def row(
    technique: str = "weight", amount: float = 0.5, seed: int = 0, accuracy: float = 0.9, **others: Any
) -> Row:
    base: Row = {
        "model": "slp",
        "dataset": "digits",
        "batch_size": 64,
        "technique": technique,
        "criterion": "magnitude",
        "granularity": "weight",
        "scope": "layer",
        "amount": amount,
        "seed": seed,
        "status": "finished",
        "final/accuracy": accuracy,
        "final/sparsity": amount,
        "final/macs_dense": 640.0,
        "final/macs_effective": 640.0 * (1 - amount),
        "final/macs_physical": 640.0,
        "final/parameters_physical": 650.0,
        "final/loss": 0.5,
        "final/epochs": 10.0,
        "final/train_flops": 3e9,
        "ipa/accuracy": 0.95,
    }
    return {f"final/{name}": 0.0 for name in METRICS} | base | others


def frame(*rows: Row) -> pandas.DataFrame:
    return pandas.DataFrame(list(rows))


# ---- intervals


def test_an_interval_by_hand() -> None:
    # Mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445: 2.776445 * sqrt(2.5 / 5) = 1.963243.
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half_width == pytest.approx(1.963243, abs=1e-6)


THOUSANDTHS = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)


@given(st.lists(THOUSANDTHS, min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_intervals_are_scipys(values: list[float]) -> None:
    found = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert interval([0.5]) == Interval(0.5, None, 1)
    assert interval([0.5, 0.5]) == Interval(0.5, 0.0, 2)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_intervals_are_shown_in_percent() -> None:
    assert str(Interval(0.98765, 0.0123, 5)) == "98.8 ± 1.2"
    assert str(Interval(0.5, None, 1)) == "50.0"


# ---- settings


def test_settings_are_in_the_order_of_the_plan_and_seeds_together() -> None:
    results = frame(*(row(t, a, s) for t in ("weight", "neuron") for a in (0.9, 0.5) for s in (1, 0)))
    found = [(setting["technique"], setting["amount"], len(rows)) for setting, rows in settings(results)]
    assert found == [("weight", 0.9, 2), ("weight", 0.5, 2), ("neuron", 0.9, 2), ("neuron", 0.5, 2)]


def test_what_was_not_swept_is_not_shown_save_what_names_a_setting() -> None:
    always = ["model", "dataset", "batch_size", "technique"]
    plain = frame(row(seed=0, **{"train.lr": 0.1}), row(seed=1, **{"train.lr": 0.1}))
    assert setting_columns(plain) == [*always, "amount"]
    crossed = [row(**{"train.lr": lr, "recover": how}) for lr in (0.1, 0.2) for how in ("none", "finetune")]
    assert setting_columns(frame(*crossed)) == [*always, "recover", "train.lr", "amount"]


def test_one_label_for_two_criteria_does_not_mix_them() -> None:
    results = frame(
        row("weight", criterion="magnitude"),
        row("snip/weight/layer", criterion="snip", accuracy=0.8),
        row("snip/weight/layer", criterion="snip(passes=100)", accuracy=0.6),
    )
    assert [record["accuracy"] for record in compared(results)] == [0.9, 0.8, 0.6]


def test_trials_that_did_not_finish_are_left_out() -> None:
    results = frame(row(accuracy=0.8), row(seed=1, status="failed", accuracy=math.nan))
    (record,) = compared(results)
    assert (record["accuracy"], record["accuracy_ci95"], record["seeds"]) == (0.8, None, 1)
    nothing = frame(row(status="missing"))
    assert compared(nothing) == []
    assert list(pivoted(nothing)) == []
    assert markdown(tables(nothing)) == ""


def test_records_hold_means_intervals_and_the_speedup() -> None:
    (record,) = compared(frame(row(amount=0.75, accuracy=0.9), row(amount=0.75, accuracy=0.8, seed=1)))
    # Two values 0.1 apart: t(0.975, 1) = 12.7062, times 0.05.
    assert record["accuracy"] == pytest.approx(0.85)
    assert record["accuracy_ci95"] == pytest.approx(0.635310, abs=1e-6)
    assert record["speedup_theoretical"] == 4.0
    assert json.dumps(record)
    (dead,) = compared(frame(row(amount=1.0)))
    assert dead["speedup_theoretical"] is None


# ---- tables


def test_a_table_for_each_model_with_amounts_ascending() -> None:
    results = frame(
        row("weight", 0.9, accuracy=0.7),
        row("weight", 0.5, accuracy=0.9),
        row("neuron", 0.5, accuracy=0.8),
        row("weight", 0.5, accuracy=0.99, model="mlp"),
    )
    first, second = pivoted(results)
    assert [first.title, second.title] == [
        f"{model} on digits, batch 64: {CAPTION}" for model in ("slp", "mlp")
    ]
    assert first.header == ["amount", "weight", "neuron"]
    assert first.rows == [["50%", "90.0", "80.0"], ["90%", "70.0", ""]]
    assert (second.header, second.rows) == (["amount", "weight"], [["50%", "99.0"]])


def test_a_row_per_setting_with_what_it_costs() -> None:
    (table,) = listed(frame(row(amount=0.75, accuracy=0.9), row(amount=0.75, accuracy=0.8, seed=1)))
    assert dict(zip(table.header, table.rows[0], strict=True)) == {
        "method": "weight",
        "amount": "75%",
        "accuracy": "85.0 ± 63.5",
        "loss": "0.500",
        "sparsity": "75%",
        "MACs": "25%",
        "MACs cut": "100%",
        "parameters cut": "650",
        "epochs": "10",
        "GFLOPs": "3",
        "seeds": "2",
    }


def test_few_methods_at_the_same_amounts_are_set_side_by_side() -> None:
    side_by_side = frame(*(row(t, a) for t in ("weight", "neuron") for a in (0.5, 0.9)))
    assert tables(side_by_side) == pivoted(side_by_side)
    with_a_gap = frame(row("weight", 0.5), row("weight", 0.9), row("neuron", 0.9))
    assert tables(with_a_gap) == listed(with_a_gap)


def test_a_method_is_called_by_what_was_done() -> None:
    setting = {"model": "slp", "technique": "weight", "recover": "none", "when": "after", "amount": 0.5}
    assert method_label(setting) == "weight"
    assert method_label({**setting, "recover": "finetune"}) == "weight, finetune"


def test_markdown_has_a_line_per_amount() -> None:
    text = markdown(tables(frame(row("weight", 0.5), row("weight", 0.925))))
    assert f"**slp on digits, batch 64: {CAPTION}**" in text
    assert "| amount | weight |\n| --- | --- |\n| 50% | 90.0 |\n| 92.5% | 90.0 |" in text


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture(format: str, start: bytes) -> None:
    results = frame(*(row(t, a, s) for t in ("weight", "neuron") for a in (0.5, 0.9) for s in (0, 1)))
    assert accuracy_against_sparsity(results, title="x", format=format).startswith(start)


# ---- the plan's record


def test_a_plans_record_is_read_back() -> None:
    rows = [
        {"key": "a", "model": "slp", "amount": 0.5, "protect": "", "recover": "none"},
        {
            "key": "b",
            "model": "slp",
            "amount": 0.9,
            "protect": "",
            "recover": "finetune",
            "recover.epochs": "1",
        },
    ]
    text = plan_record(rows, space="x", excluded=[{"reason": "y", "count": 2}])
    assert planned_rows(text) == [{**rows[0], "recover.epochs": None}, rows[1]]
    content = json.loads(text)
    assert content["shared"] == {"model": "slp", "protect": ""}
    assert (content["space"], content["excluded"]) == ("x", [{"reason": "y", "count": 2}])


def test_what_looks_alike_is_not_shared() -> None:
    rows: list[Row] = [{"key": "a", "x": 1}, {"key": "b", "x": "1"}]
    assert planned_rows(plan_record(rows)) == rows
    absent: list[Row] = [{"key": "a"}, {"key": "b", "x": "None"}]
    assert planned_rows(plan_record(absent)) == [{"key": "a", "x": None}, {"key": "b", "x": "None"}]


VALUES = st.one_of(st.integers(-5, 5), st.floats(0, 1), st.booleans(), st.text(max_size=3))


@given(st.lists(st.fixed_dictionaries({"key": st.uuids().map(str), "a": VALUES, "b": VALUES}), max_size=6))
def test_any_plan_is_read_back(rows: list[Row]) -> None:
    again = planned_rows(plan_record(rows))
    assert again == rows
    assert [[type(value) for value in row.values()] for row in map(by_name, again)] == [
        [type(value) for value in row.values()] for row in map(by_name, rows)
    ]


def by_name(row: Row) -> Row:
    return dict(sorted(row.items()))
