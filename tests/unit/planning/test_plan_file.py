"""The plan's record, written and read back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planning.plan_file import dump_plan, load_planned_rows

Row = dict[str, Any]


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
    text = dump_plan(rows, space="x", excluded=[{"reason": "y", "count": 2}])
    assert load_planned_rows(text) == [{**rows[0], "recover.epochs": None}, rows[1]]
    content = json.loads(text)
    assert content["shared"] == {"model": "slp", "protect": ""}
    assert (content["space"], content["excluded"]) == ("x", [{"reason": "y", "count": 2}])


def test_what_looks_alike_is_not_shared() -> None:
    rows: list[Row] = [{"key": "a", "x": 1}, {"key": "b", "x": "1"}]
    assert load_planned_rows(dump_plan(rows)) == rows
    absent: list[Row] = [{"key": "a"}, {"key": "b", "x": "None"}]
    assert load_planned_rows(dump_plan(absent)) == [{"key": "a", "x": None}, {"key": "b", "x": "None"}]


VALUES = st.one_of(st.integers(-5, 5), st.floats(0, 1), st.booleans(), st.text(max_size=3))


@given(st.lists(st.fixed_dictionaries({"key": st.uuids().map(str), "a": VALUES, "b": VALUES}), max_size=6))
def test_any_plan_is_read_back(rows: list[Row]) -> None:
    again = load_planned_rows(dump_plan(rows))
    assert again == rows
    assert [[type(value) for value in row.values()] for row in map(by_name, again)] == [
        [type(value) for value in row.values()] for row in map(by_name, rows)
    ]


def by_name(row: Row) -> Row:
    return dict(sorted(row.items()))
