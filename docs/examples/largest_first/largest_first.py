"""A criterion of a third party: the decorator is all there is to it."""

from __future__ import annotations

from pruning.criteria import Scene, criteria
from pruning.masking import Scores


@criteria.register(summary="the largest weights leave first: the worst that one can do")
def largest_first(scene: Scene) -> Scores:
    """-|w|; larger stays."""
    return {name: -weight.double().abs() for name, weight in scene.weights.items()}
