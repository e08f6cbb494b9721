"""Comparisons for programs: a record per setting, with what is asked of it."""

from __future__ import annotations

import json
import math

import pandas
import pytest
from result_rows import frame, row

from orchestrator.analysis.paired import read_baseline
from orchestrator.analysis.setting_means import ComparisonOptions, comparison_records
from orchestrator.analysis.tables import markdown, pivot_tables, tables


def test_one_label_for_two_criteria_does_not_mix_them() -> None:
    results = frame(
        row("weight", criterion="magnitude"),
        row("snip/weight/layer", criterion="snip", accuracy=0.8),
        row("snip/weight/layer", criterion="snip(passes=100)", accuracy=0.6),
    )
    assert [record["accuracy"] for record in comparison_records(results)] == [0.9, 0.8, 0.6]


def test_trials_that_did_not_finish_are_left_out() -> None:
    results = frame(row(accuracy=0.8), row(seed=1, status="failed", accuracy=math.nan))
    (record,) = comparison_records(results)
    assert (record["accuracy"], record["accuracy_ci95"], record["seeds"]) == (0.8, None, 1)
    nothing = frame(row(status="missing"))
    assert comparison_records(nothing) == []
    assert list(pivot_tables(nothing)) == []
    assert markdown(tables(nothing)) == ""


def test_records_hold_means_intervals_and_the_speedup() -> None:
    (record,) = comparison_records(
        frame(row(amount=0.75, accuracy=0.9), row(amount=0.75, accuracy=0.8, seed=1))
    )
    # Two values have no interval: they are told themselves.
    assert record["accuracy"] == pytest.approx(0.85)
    assert (record["accuracy_ci95"], record["interval"]) == (None, "lowest to highest")
    assert (record["accuracy_low"], record["accuracy_high"]) == (0.8, 0.9)
    assert record["speedup_theoretical"] == 4.0
    assert json.dumps(record)
    (dead,) = comparison_records(frame(row(amount=1.0)))
    assert dead["speedup_theoretical"] is None


# ---- what is asked beside the means


def two_methods() -> pandas.DataFrame:
    """Of each method two amounts and two seeds; dense: 0.95 on test, 0.90 on validation images."""
    accuracies = {("weight", 0.5): (0.94, 0.95), ("weight", 0.9): (0.60, 0.70)}
    accuracies |= {("neuron", 0.5): (0.90, 0.93), ("neuron", 0.9): (0.30, 0.30)}
    validation = {("weight", 0.5): 0.90, ("weight", 0.9): 0.89, ("neuron", 0.5): 0.85, ("neuron", 0.9): 0.3}
    return frame(
        *(
            row(t, a, seed, value, **{"final/val_accuracy": validation[t, a], "ipa/val_accuracy": 0.90})
            for (t, a), values in accuracies.items()
            for seed, value in enumerate(values)
        )
    )


def test_nothing_is_told_that_was_not_asked() -> None:
    (record, *_) = comparison_records(two_methods())
    assert not [name for name in record if "within" in name or "difference" in name or "front" in name]


def test_a_bootstrap_interval_is_told_by_its_ends() -> None:
    (record,) = comparison_records(
        frame(*(row(seed=s, accuracy=0.94) for s in range(6))), ComparisonOptions(method="bootstrap")
    )
    assert "accuracy_ci95" not in record
    assert (record["accuracy_low"], record["accuracy_high"], record["interval"]) == (
        0.94,
        0.94,
        "95% bootstrap",
    )


def test_a_record_counts_what_its_tables_mark() -> None:
    rows = [row(seed=s, at_chance=s == 0, empty_layers=False) for s in range(3)]
    (record,) = comparison_records(frame(*rows, row(seed=3, status="stopped")))
    names = ("seeds", "seeds_stopped", "seeds_at_chance", "seeds_empty_layers")
    assert [record[name] for name in names] == [3, 1, 1, 0]
    assert (record["amount_text"], record["dense_accuracy"]) == ("50%", pytest.approx(0.95))


def test_a_record_names_its_runs_in_order_of_seeds() -> None:
    (record,) = comparison_records(frame(*(row(seed=s, run_id=f"{s}" * 32) for s in range(3))))
    assert record["run_ids"] == " ".join(f"{s}" * 32 for s in range(3))


def test_differences_limits_and_fronts_stand_in_the_record_of_their_setting() -> None:
    results = two_methods()
    asked = ComparisonOptions(baseline=read_baseline("weight", results), tolerance=0.01, cost="macs")
    records = {(r["technique"], r["amount"]): r for r in comparison_records(results, asked)}
    assert len({tuple(record) for record in records.values()}) == 1  # the columns of a CSV file
    neuron = records["neuron", 0.9]
    assert (neuron["baseline"], neuron["pairs"]) == ("technique=weight", 2)
    assert neuron["difference"] == pytest.approx((0.3 - 0.6 + 0.3 - 0.7) / 2)
    base = records["weight", 0.9]
    assert (base["baseline"], base["pairs"], base["difference"]) == ("technique=weight", 0, None)
    # By validation accuracy: weight keeps within a point up to 90%, neuron at no amount.
    assert [records["weight", a]["sparsity_within"] for a in (0.5, 0.9)] == [0.9, 0.9]
    assert records["weight", 0.9]["accuracy_within"] == pytest.approx(0.65)
    assert records["weight", 0.9]["loss_within"] == pytest.approx(0.30)
    assert (neuron["sparsity_within"], neuron["seeds_within"]) == (None, 0)
    assert [r["on_front_macs"] for r in records.values()] == [True, True, False, False]


def test_a_metric_that_is_not_there_for_all_is_no_number() -> None:
    rows = [row(amount=0.5, **{"final/latency_ms_p50": 1.5}), row(amount=0.9)]
    first, second = comparison_records(frame(*rows))
    assert first["latency_ms_p50"] == 1.5
    assert (second["latency_ms_p50"], second["latency_ms_p50_ci95"]) == (None, None)
