"""A criterion in a package of its own."""

from __future__ import annotations

from pruning.criteria import Scene, criteria
from pruning.masking import Scores


@criteria.register(summary="removes the largest weights first: the worst choice, for comparison")
def largest_first(scene: Scene) -> Scores:
    """Return -|w| for every weight; the lowest scores are removed."""
    return {name: -weight.double().abs() for name, weight in scene.weights.items()}
