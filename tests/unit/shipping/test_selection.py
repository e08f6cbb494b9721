"""The best run of a sweep: by validation accuracy, or the smallest near it, and never by test images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas
import pytest

from orchestrator.errors import StoreError, UsageError
from orchestrator.shipping import selection
from orchestrator.shipping.selection import choose_best, parse_within

# run, status, validation, test, MACs, parameters
ROWS = [
    ("a", "finished", 0.97, 0.10, 900, 90),
    ("b", "finished", 0.98, 0.20, 800, 80),
    ("c", "finished", 0.98, 0.99, 850, 85),
    ("d", "finished", 0.97, 0.30, 300, 35),
    ("e", "finished", 0.97, 0.30, 300, 30),
    ("f", "finished", 0.96, 0.99, 100, 10),
    ("g", "stopped", 0.99, 0.99, 50, 5),
    ("h", "finished", float("nan"), 0.99, 50, 5),
]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> pandas.DataFrame:
    names = ["run_id", "status", "final/val_accuracy", "final/accuracy"]
    frame = pandas.DataFrame(ROWS, columns=[*names, "final/macs_physical", "final/parameters_physical"])
    frame["dataset"], frame["ipa/val_accuracy"] = "digits", 0.985
    monkeypatch.setattr(selection, "open_store", lambda uri, name: None)
    monkeypatch.setattr(selection, "find_sweep", lambda tracker, name: None)
    monkeypatch.setattr(selection, "load_results", lambda *_: SimpleNamespace(results=frame))
    return frame


@pytest.mark.parametrize(
    ("within", "run"),
    [(None, "b"), (0.0, "b"), (0.005, "b"), (0.01, "e"), (0.019, "e"), (0.02, "f"), (0.9, "f")],
)
def test_the_smallest_within_so_much_of_the_best(sweep: pandas.DataFrame, within: Any, run: str) -> None:
    choice = choose_best("made-up", within=within, uri="")
    assert choice.run_id == run
    assert choice.candidates == 6
    text = "\n".join(choice.lines())
    assert "chosen by validation accuracy alone; its dense network has 98.50% there" in text
    assert "test images had no part in it" in text
    if within is None:
        assert "the most accurate of 6 finished trials of made-up on validation images: 98.00%, 800" in text
    if within == 0.01:
        assert "the smallest of 5 of 6 finished trials of made-up within 1 point of the best" in text
        assert "on validation images, 98.00%: 300 MACs, 97.00% there" in text


def test_test_accuracy_decides_nothing(sweep: pandas.DataFrame) -> None:
    before = [choose_best("made-up", within=w, uri="").run_id for w in (None, 0.01)]
    sweep["final/accuracy"] = 1 - sweep["final/accuracy"]
    assert [choose_best("made-up", within=w, uri="").run_id for w in (None, 0.01)] == before


def test_several_data_sets_do_not_compare(sweep: pandas.DataFrame) -> None:
    sweep.loc[0, "dataset"] = "mnist-5k"
    with pytest.raises(UsageError, match=r"2 data sets \(mnist-5k, digits\), .*orchestrate compare made-up"):
        choose_best("made-up", uri="")


def test_nothing_finished(sweep: pandas.DataFrame) -> None:
    sweep["status"] = "failed"
    with pytest.raises(StoreError, match="no trial of made-up has finished; `orchestrate status made-up`"):
        choose_best("made-up", uri="")


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.5 %", 0.005), ("0.01", 0.01), ("0", 0.0), (".02", 0.02)]
)
def test_points_are_read(text: str, value: float) -> None:
    assert parse_within(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "match"), [("1", "1% or 0.01"), ("100%", "such as 1%"), ("x", "such as 1%"), ("-1%", "such as")]
)
def test_what_is_no_points_is_refused(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        parse_within(text)
    assert "\n" not in str(caught.value)
