"""Sensitivities as tables: what removing parts of one layer or group alone costs, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from orchestrator.analysis.tables import Table
from orchestrator.config import DenseConfig
from orchestrator.formatting import format_number, format_percent
from orchestrator.trial.params import params, without_defaults
from orchestrator.trial.sensitivity import LEVELS, Sensitivity
from pruning.own_code import shown

SHOWN = (0.1, 0.3, 0.5)  # parts removed, in tables
PARTS = tuple(level for level in LEVELS if level < 1)
TENTH = 0.1
NOTE = (
    "Of one layer or group at a time, the part with the lowest scores is removed, without training; the rise "
    "of the loss and the points of accuracy are on validation images, the least sensitive layer first. A "
    "dash: the part is less than one unit."
)


@dataclass(frozen=True)
class NetworkSensitivity:
    """What was measured of one dense network; `run_id` is its run."""

    run_id: str
    dense: DenseConfig
    sensitivity: Sensitivity


@dataclass(frozen=True)
class GroupMeans:
    """A layer or group: means over networks of the rise of the loss, and the change of the accuracy, by part.

    None where a part is less than a unit.
    """

    name: str
    size: int
    macs: int
    rises: Mapping[float, float | None]
    changes: Mapping[float, float | None]

    @property
    def rise(self) -> float:
        """The rise after a tenth, by which groups are sorted; infinite where that is less than one unit."""
        value = self.rises[TENTH]
        return math.inf if value is None else value


@dataclass(frozen=True)
class SensitivityGroup:
    """Networks that differ in their seed alone, and what a criterion would remove of them."""

    title: str
    unit: str
    loss: float
    accuracy: float
    rows: tuple[GroupMeans, ...]


def group_sensitivities(networks: Sequence[NetworkSensitivity]) -> list[SensitivityGroup]:
    """Return the means over seeds, in the order of the networks; rows are in the order of the network."""
    alike: dict[tuple[object, ...], list[NetworkSensitivity]] = {}
    for network in networks:
        question = network.sensitivity.question
        what = (question.criterion, question.granularity, question.protect)
        alike.setdefault((replace(network.dense, seed=0), *what), []).append(network)
    return [_means(members) for members in alike.values()]


def _means(members: Sequence[NetworkSensitivity]) -> SensitivityGroup:
    dense, sensitivities = members[0].dense, [member.sensitivity for member in members]
    question = sensitivities[0].question
    values, count = params(dense), len(members)
    granularity = without_defaults("granularity", question.granularity)
    what = f"{without_defaults('criterion', question.criterion)}, {granularity}"
    first = [sensitivity.groups[0] for sensitivity in sensitivities if sensitivity.groups]
    networks = f"{count} networks" if count > 1 else f"seed {dense.seed}"
    return SensitivityGroup(
        f"{shown(str(values['model']))} on {shown(str(values['dataset']))}, {what}, {networks}",
        granularity,
        fmean(group.losses[0] for group in first) if first else math.nan,
        fmean(group.accuracies[0] for group in first) if first else math.nan,
        tuple(_group_means(number, sensitivities) for number in range(len(sensitivities[0].groups))),
    )


def _group_means(number: int, sensitivities: Sequence[Sensitivity]) -> GroupMeans:
    groups = [sensitivity.groups[number] for sensitivity in sensitivities]
    rises: dict[float, float | None] = {}
    changes: dict[float, float | None] = {}
    for part in PARTS:
        pairs = [(group, at) for group in groups if (at := group.at(part)) is not None]
        rises[part] = fmean(at[0] - group.losses[0] for group, at in pairs) if pairs else None
        changes[part] = fmean(at[1] - group.accuracies[0] for group, at in pairs) if pairs else None
    return GroupMeans(groups[0].name, groups[0].size, groups[0].macs, rises, changes)


def sensitivity_table(group: SensitivityGroup) -> Table:
    """Return the table of a group, the least sensitive layers first."""
    header = ["layer", f"{group.unit}s", "MACs"]
    header += [f"loss at -{format_percent(part)}" for part in SHOWN]
    header += [f"accuracy at -{format_percent(part)}" for part in SHOWN]
    rows = [
        [
            row.name,
            f"{row.size:,}",
            f"{row.macs:,}",
            *(_signed(row.rises[part], "{:+.4f}") for part in SHOWN),
            *(_signed(row.changes[part], "{:+.2f}", 100) for part in SHOWN),
        ]
        for row in sorted(group.rows, key=lambda row: row.rise)
    ]
    dense = f"dense: loss {format_number(group.loss)}, accuracy {group.accuracy:.2%}"
    return Table(f"{group.title}; {dense}", header, rows, NOTE)


def _signed(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(factor * value)


def sensitivity_records(networks: Sequence[NetworkSensitivity]) -> list[dict[str, Any]]:
    """Return a record for each group of each network; None where a part is no unit, or not finite."""
    return [record for network in networks for record in _records(network)]


def _records(network: NetworkSensitivity) -> Iterator[dict[str, Any]]:
    question, dense = network.sensitivity.question, network.dense
    values = params(dense)
    common = {
        "dense_run": network.run_id,
        "model": values["model"],
        "dataset": values["dataset"],
        "seed": dense.seed,
        "criterion": without_defaults("criterion", question.criterion),
        "granularity": without_defaults("granularity", question.granularity),
        "validation_images": network.sensitivity.images,
    }
    for group in network.sensitivity.groups:
        record = {**common, "layer": group.name, "size": group.size, "macs": group.macs}
        record |= {"loss": _finite(group.losses[0]), "accuracy": group.accuracies[0]}
        for part in PARTS:
            loss, accuracy = group.at(part) or (None, None)
            name = f"{100 * part:.0f}"
            record |= {f"loss_{name}": _finite(loss), f"accuracy_{name}": accuracy}
        yield record


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
