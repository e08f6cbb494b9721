"""Comparisons as tables of texts, for the terminal, for Markdown and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.comparing.compare import Asked
from orchestrator.comparing.interval import NAMES, How, Interval, interval
from orchestrator.comparing.paired import Baseline, differences
from orchestrator.comparing.pareto import COSTS, candidates, members
from orchestrator.comparing.setting import method_label, panel_title, percent, point_label, settings
from orchestrator.comparing.sparsest import sparsest

if TYPE_CHECKING:
    from pandas import DataFrame

CAPTION = f"test accuracy in %, {NAMES['t']}"
MOST_METHODS = 6  # columns of a pivoted table
LISTED = [
    "method",
    "amount",
    "accuracy",
    "loss",
    "sparsity",
    "MACs",
    "MACs cut",
    "parameters cut",
    "epochs",
    "GFLOPs",
    "seeds",
]


@dataclass(frozen=True)
class Table:
    """A table of texts for one network and data set, or for all; `note` says how to read it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def caption(how: How = "t") -> str:
    return f"test accuracy in %, {NAMES[how]}"


def tables(results: DataFrame, *, how: How = "t") -> list[Table]:
    """Accuracies, amounts by methods, where a few methods share their amounts; else a row per setting."""
    if objectives := results.attrs.get("objectives"):
        return [searched(results, objectives, how=how)]
    few = pivoted(results, how=how)
    widest = max((len(table.header) for table in few), default=0)
    full = all(all(row) for table in few for row in table.rows)
    side_by_side = widest <= 1 + MOST_METHODS and full and any(len(t.rows) > 1 for t in few)
    return few if side_by_side else listed(results, how=how)


def asked_tables(results: DataFrame, asked: Asked) -> list[Table]:
    """`tables`, and one table for each thing that is asked."""
    found = tables(results, how=asked.how)
    if asked.tolerance is not None:
        found.append(sparsest_table(results, tolerance=asked.tolerance, how=asked.how))
    if asked.baseline is not None:
        found.append(differences_table(results, asked.baseline, how=asked.how))
    if asked.cost is not None:
        found.append(front_table(results, asked.cost, how=asked.how))
    return found


def pivoted(results: DataFrame, *, how: How = "t") -> list[Table]:
    """A row of mean test accuracies per amount, a column per method."""
    cells: dict[str, dict[float, dict[str, str]]] = {}
    methods: dict[str, dict[str, None]] = {}
    for setting, rows in settings(results):
        title, method = panel_title(setting), method_label(setting)
        methods.setdefault(title, {})[method] = None
        cell = str(interval(rows["final/accuracy"].tolist(), how=how))
        cells.setdefault(title, {}).setdefault(float(str(setting["amount"])), {})[method] = cell
    return [
        Table(
            f"{title}: {caption(how)}",
            ["amount", *methods[title]],
            [[percent(a), *(row.get(m, "") for m in methods[title])] for a, row in sorted(by_amount.items())],
        )
        for title, by_amount in cells.items()
    ]


def listed(results: DataFrame, *, how: How = "t") -> list[Table]:
    """A row per setting: how well it does, what is left of it, and what it has cost since the first epoch."""
    found: dict[str, list[list[str]]] = {}
    for setting, rows in settings(results):
        found.setdefault(panel_title(setting), []).append(
            [
                method_label(setting),
                percent(float(str(setting["amount"]))),
                str(interval(rows["final/accuracy"].tolist(), how=how)),
                *_costs(rows),
                str(len(rows)),
            ]
        )
    return [Table(f"{title}: {caption(how)}", LISTED, rows) for title, rows in found.items()]


def searched(results: DataFrame, objectives: Mapping[str, str], *, how: How = "t") -> Table:
    """A row per point of a search, the best by the first objective first."""
    first, way = next(iter(objectives.items()))
    own = [name.removeprefix("final/") for name in objectives]
    found = sorted(settings(results), key=lambda pair: float(pair[1][first].mean()), reverse=way == "max")
    rows = [
        [
            panel_title(setting),
            point_label(setting),
            percent(float(str(setting["amount"]))),
            *(figure(float(rows[name].mean())) for name in objectives),
            str(interval(rows["final/accuracy"].tolist(), how=how)),
            *_costs(rows),
            str(len(rows)),
        ]
        for setting, rows in found
    ]
    goals = ", ".join(f"{name}: {way}" for name, way in objectives.items())
    header = ["network", "method", "amount", *own, *LISTED[2:]]
    return Table(f"every point, by {goals}; {caption(how)}", header, rows)


def _costs(rows: DataFrame) -> list[str]:
    def mean(name: str) -> float:
        return float(rows[f"final/{name}"].mean())

    return [
        f"{mean('loss'):.3f}",
        percent(mean("sparsity")),
        percent(mean("macs_effective") / mean("macs_dense")),
        percent(mean("macs_physical") / mean("macs_dense")),
        f"{mean('parameters_physical'):.0f}",
        f"{mean('epochs'):g}",
        f"{mean('train_flops') / 1e9:.3g}",
    ]


def sparsest_table(results: DataFrame, *, tolerance: float, how: How = "t", rounds: bool = False) -> Table:
    """A row per method: the highest sparsity that it reaches within the tolerance of dense.

    `rounds`: the rows are of rounds, and not of whole trials.
    """
    header = ["network", "method", "sparsity %", "compression", "accuracy %", "below dense", "seeds"]
    rows = []
    for found in sparsest(results, tolerance=tolerance, how=how):
        compression = "" if found.compression is None else f"{found.compression:.3g}x"
        means = [_or_none(found.sparsity), compression, _or_none(found.accuracy), _or_none(found.loss)]
        seeds = f"{found.found} of {found.seeds}"
        rows.append([panel_title(found.method), method_label(found.method), *means, seeds])
    limit = f"{100 * tolerance:g} {points(100 * tolerance)}"
    note = (
        f"Seed by seed: the sparsest network of a method whose validation accuracy is at most {limit} below "
        "that of the same seed's dense network; then its test accuracy, and by how many points that is below "
        f"the dense network's. {_sentence(NAMES[how].replace('over seeds', 'over the seeds that have one'))} "
        f"Only networks at the end of a {'round' if rounds else 'trial'} are looked at."
    )
    return Table(f"highest sparsity within {limit} of dense", header, rows, note)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _or_none(found: Interval | None) -> str:
    return "none" if found is None else str(found)


def points(number: float) -> str:
    """The word that goes with a number of percentage points."""
    return "point" if number == 1 else "points"


def differences_table(results: DataFrame, baseline: Baseline, *, how: How = "t") -> Table:
    """A row per setting that pairs with the baseline: how much better it is, in points of test accuracy."""
    rows = [
        [
            panel_title(found.setting),
            method_label(found.setting),
            percent(float(str(found.setting["amount"]))),
            found.difference.text(sign="+"),
            str(found.difference.count),
        ]
        for found in differences(results, baseline, how=how)
    ]
    other = "its dense network" if baseline.is_dense else baseline.text
    note = (
        f"Test accuracy minus that of {other} at the same amount and seed, all else equal, in points; "
        f"{NAMES[how].replace('over seeds', 'over pairs')}. Each interval stands alone: it is not widened "
        "for there being many."
    )
    header = ["network", "method", "amount", "difference", "pairs"]
    return Table(f"difference to {baseline.text}, paired by seed", header, rows, note)


def front_table(results: DataFrame, cost: str, *, how: How = "t") -> Table:
    """The Pareto front, cheapest first within each data set."""
    rows = [
        [
            str(one.setting["dataset"]),
            one.network,
            one.method,
            "" if one.amount is None else percent(one.amount),
            cost_text(cost, one.cost),
            f"{100 * one.val_accuracy:.1f}",
            str(one.accuracy),
        ]
        for one in members(candidates(results, cost, how=how))
    ]
    note = (
        f"{cost}: {COSTS[cost].about}; means over seeds. No network of these sweeps, dense ones included, is "
        "at least as cheap and as accurate on validation images as one of these and better in one. "
        f"{_sentence(caption(how))} What is equal to a dense network is left out."
    )
    header = ["data set", "network", "method", "amount", cost, "validation %", "accuracy %"]
    return Table(f"Pareto front of accuracy against {cost}", header, rows, note)


def cost_text(cost: str, value: float) -> str:
    return f"{value:.3g}" if cost == "latency" else f"{value:,.0f}"


def figure(value: float) -> str:
    """A number of any size: `0.9556`, `134,975`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for table in found:
        rows = (table.header, ["---"] * len(table.header), *table.rows)
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"**{table.title}**\n\n{lines}" + (f"\n\n{table.note}" if table.note else ""))
    return "\n\n".join(parts)
