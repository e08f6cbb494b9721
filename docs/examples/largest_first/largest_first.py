"""A criterion in a package of its own."""

from __future__ import annotations

from pruning.criteria import ScoringContext, criteria
from pruning.masking import Scores


@criteria.register(summary="removes the largest weights first: the worst choice, for comparison")
def largest_first(context: ScoringContext) -> Scores:
    """Return -|w| for every weight; the lowest scores are removed."""
    return {name: -weight.double().abs() for name, weight in context.weights.items()}
