"""The ways of pruning that people ask for by name: points on the axes criterion, granularity and scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config import Json, method_text
from orchestrator.errors import unknown_name
from pruning.criteria import criteria


@dataclass(frozen=True)
class Technique:
    """`criterion` is a name here; what `resolve` gives holds its full text."""

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
    """A technique, its criterion in full text; `options` are the criterion's. ValueError for unknown ones."""
    if name not in TECHNIQUES:
        raise ValueError(unknown_name("technique", name, TECHNIQUES))
    known = TECHNIQUES[name]
    method = criteria.get({"method": known.criterion, **options})
    return Technique(method_text(method.name, method.options), known.granularity, known.scope, known.about)
