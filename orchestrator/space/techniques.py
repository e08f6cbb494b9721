"""Named techniques: combinations of criterion, granularity and scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.config import Json, method_text
from orchestrator.errors import unknown_name
from pruning.criteria import criteria


@dataclass(frozen=True)
class Technique:
    """A named combination; `criterion` is a name in TECHNIQUES, and its canonical text from `resolve`."""

    criterion: str
    granularity: str
    scope: str
    about: str


TECHNIQUES = {
    "weight": Technique("magnitude", "weight", "layer", "the smallest weights of each layer"),
    "unstructured": Technique("magnitude", "weight", "global", "the smallest weights of the whole network"),
    "neuron": Technique("l2", "unit", "layer", "the neurons or filters with the smallest incoming weights"),
    "structured": Technique("l2", "channel", "layer", "whole channels, then cut out of the network"),
    "random": Technique("random", "weight", "global", "weights drawn by lot: the baseline to beat"),
}


def resolve(name: str, options: Mapping[str, Json]) -> Technique:
    """Return a technique whose criterion has these options. ValueError for an unknown name or option."""
    if name not in TECHNIQUES and name in criteria:
        raise ValueError(f"{name} is a criterion and no technique; give it as criterion: [{name}]")
    if name not in TECHNIQUES:
        raise ValueError(unknown_name("technique", name, TECHNIQUES))
    criterion = criteria.get({"method": TECHNIQUES[name].criterion, **options})
    return replace(TECHNIQUES[name], criterion=method_text(criterion.name, criterion.options))
