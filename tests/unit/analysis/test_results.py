"""Columns of their own type."""

from __future__ import annotations

import pandas
import pytest

from orchestrator.analysis.results import with_typed_columns


def test_options_are_numbers_where_they_are_numbers() -> None:
    table = with_typed_columns(
        pandas.DataFrame(
            {
                "schedule.p": ["0.5", "1.0", None],
                "prepare.strength": ["0.001", "0.01", "0.01"],
                "schedule.published": ["True", "False", "True"],
                "recover.epochs": ["2", "50%", "None"],
                "schedule.rounds": ["5", "10", "5"],
                "train.decay_at": ["[1, 2]", "[1, 2]", "[]"],
                "technique": ["weight", "0.5", "True"],
            }
        )
    )
    assert list(table[table["schedule.p"] == 0.5].index) == [0]
    assert table["schedule.p"].isna().tolist() == [False, False, True]
    assert list(table[table["prepare.strength"] > 0.005].index) == [1, 2]
    assert table["schedule.published"].dtype == bool
    assert table["schedule.rounds"].dtype == "int64"
    assert table["recover.epochs"].tolist()[:2] == [2, "50%"]
    assert pandas.isna(table["recover.epochs"][2])
    assert table["train.decay_at"].tolist() == ["[1, 2]", "[1, 2]", "[]"]
    assert table["technique"].tolist() == ["weight", "0.5", "True"]  # names are names


@pytest.mark.parametrize("dtype", [object, "string"])
def test_texts_of_any_dtype_are_read(dtype: object) -> None:
    table = with_typed_columns(pandas.DataFrame({"schedule.p": pandas.Series(["0.5", "2"], dtype=dtype)}))  # type: ignore[call-overload]
    assert table["schedule.p"].tolist() == [0.5, 2]
