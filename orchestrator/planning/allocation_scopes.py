"""Techniques of a space, and `allocate`: the scope that it is, and why it cannot be had."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product

from orchestrator.config import Prune, Start, When
from orchestrator.space import techniques
from orchestrator.space.overrides import TECHNIQUE_AXES
from orchestrator.space.space import Lists, Space
from orchestrator.space.values import listed_values
from orchestrator.trial.params import without_defaults
from pruning.allocation import PER_MAC, SCOPES_BY_ALLOCATION, SENSITIVITY
from pruning.granularity import granularities
from pruning.prune import check_allocation_fits
from pruning.registry import parse_method
from pruning.schedules import schedules

ALLOCATED = (PER_MAC, SENSITIVITY)  # scopes in which layers compete by more than the scores
Technique = tuple[str, str, str, str]  # label, criterion, granularity, scope


def techniques_of(space: Space, lists: Lists) -> list[Technique]:
    """Return (label, criterion, granularity, scope), by the technique axis or by the three others.

    The label is in the space's own words: a technique's name, or the criterion's, and beside it the
    granularity and the scope, or the allocation in its place, where the space has several.
    """
    if "technique" in lists:
        resolved = [(text, techniques.resolve(*parse_method(text))) for text in lists["technique"]]
        named = [(text, t.criterion, t.granularity, t.scope) for text, t in resolved]
        return _with_allocations(named, space, lists)
    choices = space.choices()
    several = [axis for axis in ("granularity", "scope") if len(listed_values(choices[axis])) > 1]
    triples = product(*(lists[axis] for axis in TECHNIQUE_AXES))
    labels = [
        (_label(dict(zip(TECHNIQUE_AXES, triple, strict=True)), several), *triple) for triple in triples
    ]
    return _with_allocations(labels, space, lists)


def _label(triple: Mapping[str, str], several: Collection[str]) -> str:
    return "/".join(
        without_defaults(axis, triple[axis]) if axis != "scope" else triple[axis]
        for axis in ("criterion", *several)
    )


def _with_allocations(named: list[Technique], space: Space, lists: Lists) -> list[Technique]:
    """Return the techniques with every allocation's scope in place of their own."""
    if "allocate" not in lists:
        return named
    has_several = len(listed_values(space.choices()["allocate"])) > 1  # a search draws them one by one
    return [
        (
            f"{label}/{allocation}" if has_several else label,
            criterion,
            granularity,
            SCOPES_BY_ALLOCATION[allocation],
        )
        for label, criterion, granularity, _ in named
        for allocation in lists["allocate"]
    ]


def allocation_point(scope: str) -> dict[str, str]:
    """Return the allocation that a scope is, by its axis; "" where it is none."""
    names = {of_scope: name for name, of_scope in SCOPES_BY_ALLOCATION.items()}
    return {"allocate": names.get(scope, "")}


def allocation_conflict(prune: Prune, when: When, prepare: str) -> str | None:
    """Check that the methods leave a choice of how much every layer loses, and that it can be measured."""
    if prune.scope not in ALLOCATED:
        return None
    try:
        check_allocation_fits(granularities.get(prune.granularity), schedules.get(prune.schedule))
    except ValueError as error:
        return f"allocate {prune.scope}: {error}"
    if prune.scope == SENSITIVITY and when != "after":
        return "allocate sensitivity is measured on the trained dense network: it needs when: after"
    if prune.scope == SENSITIVITY and prepare != "none":
        return "allocate sensitivity is measured on the dense network, and prepare changes that: prepare none"
    return None


def start_allocation_conflict(prune: Prune, start: Start) -> str | None:
    """Check that nothing of the dense network is pruned already where its sensitivity is to be measured."""
    if prune.scope == SENSITIVITY and start == "masked":
        return "allocate sensitivity is measured on a dense network, and start masked has none: start weights"
    return None
