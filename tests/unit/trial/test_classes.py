"""What was forgotten, by hand."""

from __future__ import annotations

import pytest
import torch

from orchestrator.trial.metrics import ClassRow, class_metrics, class_rows, worst

NAMES = ("cat", "dog", "owl", "none")
DENSE = torch.tensor([[8, 2, 0, 0], [1, 9, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]])
PRUNED = torch.tensor([[7, 3, 0, 0], [0, 10, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
ROWS = class_rows(NAMES, dense=DENSE, pruned=PRUNED)


def test_a_row_per_class_that_has_images() -> None:
    expected = (("cat", 10, 0.8, 0.7), ("dog", 10, 0.9, 1.0), ("owl", 4, 0.75, 0.25))
    assert tuple(ClassRow(*values) for values in expected) == ROWS
    assert [row.drop for row in ROWS] == pytest.approx([0.1, -0.1, 0.5])


def test_the_class_that_has_lost_most() -> None:
    assert worst(ROWS).label == "owl"
    assert class_metrics(ROWS) == {"worst_class_accuracy": 0.25, "worst_class_drop": 0.5}


def test_the_worst_class_and_the_one_that_lost_most_may_differ() -> None:
    rows = (ClassRow("hard", 10, 0.3, 0.3), ClassRow("lost", 10, 1.0, 0.6))
    assert class_metrics(rows) == {"worst_class_accuracy": 0.3, "worst_class_drop": pytest.approx(0.4)}
    assert worst(rows).label == "lost"


def test_where_every_class_has_gained_the_drop_is_below_zero() -> None:
    rows = (ClassRow("a", 10, 0.5, 0.7), ClassRow("b", 10, 0.5, 0.6))
    assert class_metrics(rows)["worst_class_drop"] == pytest.approx(-0.1)
