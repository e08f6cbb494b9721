"""A pruning for one model: its layers in place of patterns, counts in place of percentages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product

from orchestrator.config import DenseConfig, Prune, method_name
from orchestrator.errors import SpaceError
from orchestrator.planning.constraints import amount_conflict, model_conflict, protected_names, shape_of
from orchestrator.space.space import Space
from orchestrator.space.values import listed_values
from orchestrator.trial.structure import layer_amounts_of, settled_amounts_of
from orchestrator.trial.target_masks import dense_quantities, least_quantities
from pruning.amounts import check_one_amount, read_amounts
from pruning.granularity import granularities
from pruning.schedules import schedules
from pruning.target_amounts import (
    check_target_fits,
    count_limits,
    is_target,
    quantity_hint,
    read_target,
)


def of_model(space: Space, dense: DenseConfig, prune: Prune) -> Prune:
    """Return the pruning with this model's layers in place of patterns and `only`."""
    return settled_amounts(dense.model, dense.dataset, with_protected_layers(space, dense, prune))


def with_protected_layers(space: Space, dense: DenseConfig, prune: Prune) -> Prune:
    """Return the pruning with the names of this model's layers in place of `protect` and `only`."""
    protect = protected_names(dense.model, dense.dataset, space.protect, space.only)
    return prune if protect == prune.protect else replace(prune, protect=protect)


@lru_cache(maxsize=4096)
def pattern_conflict(model: str, dataset: str, amounts: str) -> str | None:
    """Check that every entry of amounts by layer, in canonical text, decides a layer of the model."""
    try:
        layer_amounts_of((model, *shape_of(dataset)), amounts)
    except ValueError as error:
        return f"{method_name(model)}: {error}{quantity_hint(read_amounts(amounts))}"
    return None


def check_patterns(amounts: Iterable[object], models: Sequence[str], datasets: Sequence[str]) -> None:
    """Raise SpaceError for amounts by layer that fit no model of a space: a name is wrong."""
    for text in (amount for amount in amounts if isinstance(amount, str) and not is_target(amount)):
        pairs = [pair for pair in product(models, datasets) if model_conflict(*pair) is None]
        conflicts = [pattern_conflict(*pair, text) for pair in pairs]
        if conflicts and all(conflicts):
            raise SpaceError(str(conflicts[0]))


def settled_amounts(model: str, dataset: str, prune: Prune) -> Prune:
    """Return the pruning with the amounts of this model's layers in place of patterns; with one if equal."""
    if not prune.amount_label:
        return prune
    if is_target(prune.amount_label):
        return with_limits(model, dataset, prune)
    amount, layer_amounts = settled_amounts_of(
        (model, *shape_of(dataset)), method_name(prune.granularity), prune.protect, prune.amount_label
    )
    label = prune.amount_label if layer_amounts else ""
    return replace(prune, amount=amount, layer_amounts=layer_amounts, amount_label=label)


def with_limits(model: str, dataset: str, prune: Prune) -> Prune:
    """Return the pruning with the counts that its target allows to be left of this model."""
    dense = dense_quantities((model, *shape_of(dataset)))
    limits = count_limits(read_target(prune.amount_label), dense)
    part = max(1 - min(limit / max(dense[name], 1), 1) for name, limit in limits.items())
    return replace(prune, amount=part, limits=tuple(limits.items()))


def target_conflict(model: str, dataset: str, prune: Prune) -> str | None:
    """Check that the methods leave a choice of how much goes, and that so little can be left."""
    architecture = (model, *shape_of(dataset))
    try:
        check_target_fits(granularities.get(prune.granularity), schedules.get(prune.schedule))
        granularity = method_name(prune.granularity)
        least = least_quantities(architecture, granularity, prune.protect)
    except ValueError as error:
        return str(error)
    dense = dense_quantities(architecture)
    for name, limit in with_limits(model, dataset, prune).limits:
        if least[name] > limit:
            hint = f"; or {limit}%?" if 0 < limit <= 100 and "%" not in prune.amount_label else ""
            return (
                f"{name}: at most {limit:,} of {dense[name]:,} may be left, and pruning by {granularity} "
                f"leaves {least[name]:,} ({least[name] / dense[name]:.2%}) at least{hint}"
            )
    return None


def budget_conflict(space: Space) -> str | None:
    """Return why no trial of a space whose amounts are targets can meet them; None where one may."""
    conflicts: list[str | None] = []
    amounts = listed_values(space.axes.amount or ())
    for model, dataset, amount in product(space.axes.model, space.axes.dataset, amounts):
        prune = Prune("l2", "channel", "layer", "one_shot", 0.0, amount_label=str(amount))
        conflicts.append(model_conflict(model, dataset) or target_conflict(model, dataset, prune))
    return conflicts[0] if conflicts and all(conflicts) else None


def layer_amounts_conflict(model: str, dataset: str, prune: Prune) -> str | None:
    """Check amounts by layer: the patterns, and that the methods leave a choice of the amount."""
    if not prune.amount_label:
        return None
    if is_target(prune.amount_label):
        return target_conflict(model, dataset, prune)
    if reason := pattern_conflict(model, dataset, prune.amount_label):
        return reason
    settled = settled_amounts(model, dataset, prune)
    if not settled.layer_amounts:
        return amount_conflict(prune.granularity, settled.amount)
    try:
        check_one_amount(granularities.get(prune.granularity), schedules.get(prune.schedule))
    except ValueError as error:
        return str(error)
    return None
