"""Write docs/results/equal.md: methods at equal density and at equal training cost, paired by seed.

    python docs/write_equal.py

It reads the latest sweeps of `adaptive-pqi` and `lottery-ticket`, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import orchestrator
from orchestrator.analysis.intervals import DIFFERENCE, Interval, interval
from orchestrator.analysis.paired import verdict
from orchestrator.system.provenance import environment

PAGE = Path(__file__).parent / "results" / "equal.md"
CONCLUSION = "## What it says"  # this section is written by hand and kept
DENSITIES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)


def at_density(curve: pd.DataFrame, density: float) -> float | None:
    """Return the accuracy of a trial at a density, interpolated in log density; None outside its rounds."""
    x = np.log(1 - curve["sparsity"].to_numpy())
    target = np.log(density)
    if not x.min() <= target <= x.max():
        return None
    order = np.argsort(x)
    return float(np.interp(target, x[order], curve["accuracy"].to_numpy()[order]))


def at_epochs(curve: pd.DataFrame, epochs: float) -> float | None:
    """Return the accuracy of a trial after its last round within `epochs` since init, or None."""
    rounds = curve[curve["epochs"] <= epochs]
    return None if rounds.empty else float(rounds["accuracy"].iloc[-1])


def table(
    frame: pd.DataFrame,
    methods: dict[str, pd.Series],
    points: Sequence[float],
    read_accuracy: Callable[..., float | None],
) -> tuple[list[list[str]], list[Interval]]:
    """Return a row per point, and all paired differences.

    A row has each method's mean over seeds, and its difference to the last method, paired by seed.
    """
    rows, differences = [], []
    for point in points:
        accuracies = {
            name: {seed: read_accuracy(curve, point) for seed, curve in frame[is_method].groupby("seed")}
            for name, is_method in methods.items()
        }
        row = [f"{point:g}"]
        for name in methods:
            values = [value for value in accuracies[name].values() if value is not None]
            row.append(str(interval(values)) if values else "not reached")
        baseline = accuracies[list(methods)[-1]]
        for name in list(methods)[:-1]:
            pairs = [(accuracies[name].get(seed), baseline[seed]) for seed in baseline]
            values = [a - b for a, b in pairs if a is not None and b is not None]
            differences += [interval(values, bounds=DIFFERENCE)] if values else []
            row.append(differences[-1].text(sign="+") if values else "")
        rows.append(row)
    return rows, differences


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pqi() -> tuple[str, list[Interval]]:
    frame = orchestrator.rounds("adaptive-pqi")
    sap, ticket = frame["schedule"].str.startswith("pq_index"), frame["schedule"].str.startswith("iterative")
    methods = {f"SAP, {scope}": sap & (frame["scope"] == scope) for scope in ("unit", "layer", "global")}
    methods["lottery ticket, layer"] = ticket & (frame["scope"] == "layer")
    header = ["density", *methods, *(f"{name}: difference" for name in list(methods)[:-1])]
    rows, differences = table(frame, methods, DENSITIES, at_density)
    return markdown(header, rows), differences


def cost(space: str, axis: str, baseline: str, names: dict[str, str]) -> tuple[str, list[Interval]]:
    frame = orchestrator.rounds(space)
    methods = {
        label: frame[axis].str.startswith(start) for start, label in names.items() if start != baseline
    }
    methods[names[baseline]] = frame[axis].str.startswith(baseline)
    longest = int(frame["epochs"].max())
    points = [longest * share for share in (0.25, 0.5, 0.75, 1.0)]
    header = ["epochs since init", *methods, *(f"{name}: difference" for name in list(methods)[:-1])]
    rows, differences = table(frame, methods, points, at_epochs)
    return markdown(header, rows), differences


def datasets(space: str) -> str:
    return " and ".join(orchestrator.results(space)["dataset"].unique())


def main() -> None:
    names = {"rewind": "rewind", "reinit": "reinit", "finetune": "finetune"}
    density, density_differences = pqi()
    same_cost, cost_differences = cost("lottery-ticket", "recover", "reinit", names)
    facts = environment()
    conclusion = PAGE.read_text().partition(CONCLUSION)[2] if PAGE.exists() else "\n"
    parts = [
        "# Equal density and equal cost",
        "Test accuracy in %, mean and half of the 95% t interval over seeds. Differences are to the last "
        "method of the table, paired by seed. [lowest to highest] for two seeds, -a/+b for an interval "
        "that is cut at a bound. "
        f"{verdict([*density_differences, *cost_differences])}",
        f"Sweeps of `adaptive-pqi` and `lottery-ticket`; {facts['processor']}, revision {facts['commit']}.",
        "```\n$ python docs/write_equal.py\n```",
        "## SAP against the lottery ticket at equal density\n\n"
        f"Rounds of `adaptive-pqi` on {datasets('adaptive-pqi')}, interpolated in log density.",
        density,
        "## Lottery tickets and their controls at equal cost\n\n"
        f"The last round of `lottery-ticket` on {datasets('lottery-ticket')} within these epochs, including "
        "the dense training.",
        same_cost,
        f"{CONCLUSION}{conclusion}",
    ]
    PAGE.write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
