"""Budgets of `orchestrate compress`: what they ask for, the space that is searched, and the run that answers.

MACs, parameters and bytes are met by every trial of the space, whose amounts say what may be left. Latency
is measured of exported files, the best networks first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.analysis.pareto import front
from orchestrator.errors import UsageError, unknown_name
from orchestrator.shipping.selection import ACCURACY, MACS, PARAMETERS, ROUNDING
from pruning.target_amounts import QUANTITIES, canonical_target, count_limits, read_target

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LATENCY = "latency"
BUDGET = re.compile(r"\s*([A-Za-z]+)\s*(<=|=<|<)?\s*(.*?)\s*")
DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(us|ms|s)?")
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
BYTES = "final/bytes_physical"
COLUMNS = {"macs": MACS, "parameters": PARAMETERS, "bytes": BYTES}
DENSE = {name: f"final/{name}_dense" for name in QUANTITIES}
TIMED = 12  # networks at most whose latency is measured
# Where no budget says how much is to go: parts of the dense network's MACs.
LADDER = ("80%", "65%", "50%", "40%", "30%", "20%", "15%", "10%", "7%", "5%")
AXES: Mapping[str, Sequence[Any]] = {  # values of YAML
    "criterion": ("l2", "taylor", "fpgm"),
    "allocate": ("uniform", "global", "per_mac", "sensitivity"),
    "schedule": ("one_shot", "iterative(rounds=3)", "iterative(rounds=6)"),
}
RATES = (1.0, 0.1)  # of fine-tuning, times the last of the dense training
PARTS = (0.25, 0.5, 1.0)  # of the epochs, a round


@dataclass(frozen=True)
class Budget:
    """At most so much of a quantity: a limit as in an amount's target, or milliseconds."""

    quantity: str
    text: str
    milliseconds: float | None = None

    def __str__(self) -> str:
        return f"{self.quantity} <= {self.text}"


def parse_budget(text: str) -> Budget:
    """Parse `macs<=50%`, `bytes<=100kB` or `latency<=2ms`. UsageError for anything else."""
    example = "such as 'macs<=50%', 'parameters<=100k', 'bytes<=100kB' or 'latency<=2ms'"
    match = BUDGET.fullmatch(text)
    if match is None or match[2] is None:
        raise UsageError(f"--budget {text[:80]!r}: give a quantity, <= and a limit, {example}")
    name, value = match[1].lower(), match[3]
    if name not in (*QUANTITIES, LATENCY):
        raise UsageError(f"--budget: {unknown_name('quantity', name, (*QUANTITIES, LATENCY))}")
    if name != LATENCY:
        try:
            canonical = canonical_target({name: value})
        except ValueError as error:
            raise UsageError(f"--budget {text[:80]!r}: {error}") from error
        return Budget(name, canonical.partition(": ")[2][:-1])
    milliseconds = _parse_milliseconds(text, value)
    return Budget(name, f"{milliseconds:g} ms", milliseconds)


def _parse_milliseconds(budget: str, text: str) -> float:
    """Parse a time above 0 with its unit; UsageError, which names the budget, for anything else."""
    duration = DURATION.fullmatch(text)
    if duration is None or not float(duration[1]):
        raise UsageError(f"--budget {budget[:80]!r}: give a time above 0, such as 'latency<=2ms'")
    if duration[2] is None:
        units = ", ".join(f"{text}{unit}" for unit in MILLISECONDS)
        raise UsageError(f"--budget {budget[:80]!r}: {text} of which unit? Write one of {units}")
    return float(duration[1]) * MILLISECONDS[duration[2]]


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Parse several; UsageError for a quantity that is named twice."""
    budgets = tuple(map(parse_budget, texts))
    names = [budget.quantity for budget in budgets]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--budget: {repeated} is named twice; give one limit for it")
    return budgets


def space_text(
    *,
    model: str,
    dataset: str,
    budgets: Sequence[Budget],
    trials: int,
    seeds: int,
    epochs: int,
    starts_from_model: bool,
) -> str:
    """Return the text of the space file that says the same as the command.

    A network that is given trains for one more epoch; `epochs` are then those of the longest fine-tuning.
    """
    limits = {budget.quantity: budget.text for budget in budgets if budget.quantity in QUANTITIES}
    amounts = [limits] if limits else [{"macs": part} for part in LADDER]
    rounds = dict.fromkeys(max(1, round(part * epochs)) for part in PARTS)
    recoveries = [f"finetune(epochs={count}, lr={rate}, on=cut)" for count, rate in product(rounds, RATES)]
    points = prod(map(len, AXES.values())) * len(amounts) * len(recoveries)
    search: dict[str, Any] = {"method": "grid"}
    if points > trials:
        objectives = {ACCURACY: "max"} if limits else {ACCURACY: "max", MACS: "min"}
        search = {"method": "tpe", "trials": trials, "objectives": objectives}
    purpose = ", ".join(map(str, budgets)) or "as small as stays accurate"
    content = {
        "version": 1,
        "about": f"{model} on {dataset}, compressed: {purpose}.",
        "search": search,
        "axes": {
            "model": [model],
            "dataset": [dataset],
            "granularity": ["channel"],
            **{name: list(values) for name, values in AXES.items()},
            "amount": amounts,
            **({"start": ["weights"]} if starts_from_model else {}),
            "recover": recoveries,
            "seed": list(range(seeds)),
        },
        "train": {"epochs": 1 if starts_from_model else epochs},
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


@dataclass(frozen=True)
class Answer:
    """The run that answers, or the nearest one and by how much it misses what was asked (`missed`)."""

    run_id: str
    row: Series
    missed: str = ""
    milliseconds: float | None = None

    def lines(self) -> Iterator[str]:
        """Yield what the run has, against its dense network."""
        row = self.row
        dense = row.get("ipa/val_accuracy")
        accuracy = f"{row[ACCURACY]:.2%} on validation images"
        if dense is not None and dense == dense:
            points = 100 * (dense - row[ACCURACY])
            accuracy += f", {abs(points):.2f} points {'above' if points < 0 else 'below'} dense"
        yield f"run {self.run_id}: {accuracy}"
        yield f"  {row['final/accuracy']:.2%} on test images, which had no part in the choice"
        for name, column in COLUMNS.items():
            left, dense = int(row[column]), int(row[DENSE[name]])
            yield f"  {name:<10} {left:>14,} of {dense:,} ({left / dense:.1%})"
        if self.milliseconds is not None:
            yield f"  latency    {self.milliseconds:>11.3f} ms: one image, one thread, ONNX Runtime, median"


def choose(
    results: DataFrame,
    budgets: Sequence[Budget],
    *,
    within: float | None,
    measure: Callable[[str], float],
) -> Answer | None:
    """Return the most accurate finished trial within the budgets; without budgets of size, the smallest.

    `within` is how far below its dense network it may be, as a fraction of images; accuracies are those on
    validation images. `measure` returns the latency of a run in ms. None where no trial has finished.
    """
    rows = results.loc[results["status"] == "finished"]
    rows = rows.loc[rows[ACCURACY].notna()] if ACCURACY in rows else rows.iloc[:0]
    if rows.empty:
        return None
    sized = [budget for budget in budgets if budget.quantity in COLUMNS]
    excess = rows.apply(lambda row: max((_excess(row, budget) for budget in sized), default=0.0), axis=1)
    if (excess > ROUNDING).all():
        nearest = rows.iloc[int(excess.argmin())]
        return Answer(nearest["run_id"], nearest, f"it is {excess.min():.1%} above the budget")
    rows = rows.loc[excess <= ROUNDING]
    if within is not None:
        below = rows["ipa/val_accuracy"] - rows[ACCURACY]
        if (below > within + ROUNDING).all():
            nearest = rows.iloc[int(below.argmin())]
            points = f"{100 * below.min():.2f} points below dense, and {100 * within:g} were allowed"
            return Answer(nearest["run_id"], nearest, f"it is {points}")
        rows = rows.loc[below <= within + ROUNDING]
    accurate = [ACCURACY, MACS, PARAMETERS], [False, True, True]
    small = [MACS, PARAMETERS, ACCURACY], [True, True, False]
    columns, ascending = accurate if budgets else small
    rows = rows.sort_values(columns, ascending=ascending, kind="stable")
    latency = next((budget for budget in budgets if budget.milliseconds is not None), None)
    if latency is None or latency.milliseconds is None:
        return Answer(rows.iloc[0]["run_id"], rows.iloc[0])
    return _fast_enough(rows, latency.milliseconds, measure)


def _fast_enough(rows: DataFrame, limit: float, measure: Callable[[str], float]) -> Answer:
    """Return the first row that is fast enough, of those that no smaller one beats in accuracy."""
    scores = [[row[ACCURACY], -row[MACS]] for _, row in rows.iterrows()]
    on_front = sorted(front(scores), key=lambda n: scores[n], reverse=True)
    step = max(1, -(-len(on_front) // TIMED))
    timed: list[Answer] = []
    for number in on_front[::step]:
        row = rows.iloc[number]
        answer = Answer(row["run_id"], row, milliseconds=measure(row["run_id"]))
        if answer.milliseconds is not None and answer.milliseconds <= limit:
            return answer
        timed.append(answer)
    nearest = min(timed, key=lambda answer: answer.milliseconds or 0.0)
    return Answer(
        nearest.run_id,
        nearest.row,
        f"it takes {nearest.milliseconds:.3f} ms, and {limit:g} ms were allowed",
        nearest.milliseconds,
    )


def _excess(row: Series, budget: Budget) -> float:
    """Return by which part of its limit a row is above a budget; 0 or less where it is within."""
    dense = {name: int(row[column]) for name, column in DENSE.items()}
    limit = count_limits(read_target(f"{{{budget.quantity}: {budget.text}}}"), dense)[budget.quantity]
    return float((row[COLUMNS[budget.quantity]] - limit) / max(limit, 1))


def front_lines(results: DataFrame, *, most: int = 12) -> Iterator[str]:
    """Yield the front of accuracy and MACs that the answer lies on, the smallest network first."""
    rows = results.loc[results["status"] == "finished"]
    scores = [[float(row[ACCURACY]), -float(row[MACS])] for _, row in rows.iterrows()]
    on_front = sorted(front(scores), key=lambda n: -scores[n][1])
    distinct = list({tuple(scores[n]): n for n in reversed(on_front)}.values())[::-1]
    yield f"the front of {len(rows)} trials: {'MACs':>12}  validation  run"
    for number in distinct[:most]:
        row = rows.iloc[number]
        yield f"{int(row[MACS]):>37,}  {row[ACCURACY]:>10.2%}  {row['run_id']}"
