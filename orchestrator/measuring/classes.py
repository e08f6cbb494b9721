"""What a pruned network has forgotten: its accuracy class by class, beside the dense network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassRow:
    """One class: its test images, and the fraction of them that each network gets right."""

    label: str
    images: int
    accuracy_dense: float
    accuracy: float

    @property
    def drop(self) -> float:
        """What pruning cost, in accuracy; below 0 where the pruned network does better."""
        return self.accuracy_dense - self.accuracy


def class_rows(names: Sequence[str], *, dense: Tensor, pruned: Tensor) -> tuple[ClassRow, ...]:
    """A row per class with test images, from confusion matrices [true, predicted] of the same images."""
    rows = []
    for number, (before, after) in enumerate(zip(dense.tolist(), pruned.tolist(), strict=True)):
        if images := sum(after):
            rows.append(ClassRow(names[number], images, before[number] / images, after[number] / images))
    return tuple(rows)


def worst(rows: Sequence[ClassRow]) -> ClassRow:
    """The class that has lost most; the first of several."""
    return max(rows, key=lambda row: row.drop)


def class_metrics(rows: Sequence[ClassRow]) -> dict[str, float]:
    """The lowest accuracy of a class, and the largest loss of one, which may be another."""
    return {
        "worst_class_accuracy": min(row.accuracy for row in rows),
        "worst_class_drop": worst(rows).drop,
    }
