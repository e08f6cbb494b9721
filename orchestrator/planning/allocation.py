"""`allocate` of a space: the scope that it is, and why it cannot be had."""

from __future__ import annotations

from orchestrator.config import Prune, Start, When
from pruning.allocation import PER_MAC, SCOPES_BY_ALLOCATION, SENSITIVITY
from pruning.granularity import granularities
from pruning.prune import check_allocation_fits
from pruning.schedules import schedules

ALLOCATED = (PER_MAC, SENSITIVITY)  # scopes in which layers compete by more than the scores
Technique = tuple[str, str, str, str]  # label, criterion, granularity, scope


def with_allocations(techniques: list[Technique], allocations: tuple[str, ...]) -> list[Technique]:
    """Return the techniques with every allocation's scope in place of their own; of several it is named."""
    if not allocations:
        return techniques
    return [
        (
            label if len(allocations) == 1 else f"{label}/{allocation}",
            criterion,
            granularity,
            SCOPES_BY_ALLOCATION[allocation],
        )
        for label, criterion, granularity, _ in techniques
        for allocation in allocations
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
