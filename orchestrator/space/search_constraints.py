"""Constraints of a search: `final/macs_physical: "<= 50%"`, what its points have to keep to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from pruning.target_amounts import PREFIXES

CONSTRAINT = re.compile(r"\s*(<=|>=)\s*(\d{1,15}(?:\.\d{1,9})?)\s*(%|[kKMG]i?)?(B)?\s*")
OF_DENSE = ("macs", "parameters", "bytes")  # of these a percentage is one of the dense network's
FRACTIONS = ("val_accuracy", "sparsity", "sparsity_chosen", "amount", "pq_index", "gini")
EXAMPLE = '"<= 50%", "<= 5M" or ">= 0.97"'


@dataclass(frozen=True)
class Constraint:
    """What the mean of a metric over a point's seeds has to be; `dense` is the metric that scales it."""

    metric: str
    is_upper: bool
    bound: float
    dense: str | None = None

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Return by how much the metrics miss the bound, as a part of it; 0 or less where they keep to it."""
        bound = self.limit(metrics)
        missed = metrics[self.metric] - bound if self.is_upper else bound - metrics[self.metric]
        return missed / max(abs(bound), 1e-12)

    def limit(self, metrics: Mapping[str, float]) -> float:
        """Return the bound in the metric's own unit."""
        return self.bound * (metrics[self.dense] if self.dense else 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that it reads."""
        return (self.metric, *([self.dense] if self.dense else []))


def parse_constraint(metric: str, text: str) -> Constraint:
    """Return the constraint of one entry. ValueError for a text that is none."""
    match = CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"{metric}: {text!r:.80} is no constraint; write {EXAMPLE}")
    sign, number, unit = match[1], Decimal(match[2]), match[3] or ""
    name = metric.removeprefix("final/")
    kind = name.partition("_")[0]
    if reason := _unit_conflict(name, number, unit, is_bytes=match[4] is not None):
        raise ValueError(f"{metric}: {text!r:.80}: {reason}")
    if unit == "%":
        dense = f"final/{kind}_dense" if kind in OF_DENSE else None
        return Constraint(metric, sign == "<=", float(number / 100), dense)
    return Constraint(metric, sign == "<=", float(number * PREFIXES[unit]))


def _unit_conflict(name: str, number: Decimal, unit: str, *, is_bytes: bool) -> str | None:
    """Return why a bound is none of its metric's, whose unit was left out or is another's."""
    is_fraction, kind = name in FRACTIONS, name.partition("_")[0]
    if is_bytes and (kind != "bytes" or unit == "%"):
        return "B is for bytes; leave it out"
    if is_fraction and unit not in ("", "%"):
        return f"{name} is a fraction from 0 to 1; give one, or a percentage"
    if is_fraction and not unit and number > 1:
        hint = f"; {number / 100} or {number}%?" if number <= 100 else ""
        return f"{name} is a fraction from 0 to 1{hint}"
    if kind in OF_DENSE and not unit and 0 < number < 1:
        return f"{kind} are counted in whole numbers; {(100 * number).normalize():f}%?"
    if unit == "%" and not is_fraction and kind not in OF_DENSE:
        return f"{name} has no percentage; give a number"
    return None
