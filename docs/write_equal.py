"""Write docs/results/equal.md: methods at equal density and at equal training cost, paired by seed.

    python docs/write_equal.py

Reads the latest sweeps of `adaptive-pqi` and `lottery-ticket`; runs nothing.
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
SAYS = "## What it says"
DENSITIES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)


def at_density(curve: pd.DataFrame, density: float) -> float | None:
    """Accuracy of one trial at a density, linear in log density between its rounds; None outside them."""
    x = np.log(1 - curve["sparsity"].to_numpy())
    wanted = np.log(density)
    if not x.min() <= wanted <= x.max():
        return None
    order = np.argsort(x)
    return float(np.interp(wanted, x[order], curve["accuracy"].to_numpy()[order]))


def at_epochs(curve: pd.DataFrame, epochs: float) -> float | None:
    """Accuracy of one trial after the last round that had cost at most `epochs` since init."""
    done = curve[curve["epochs"] <= epochs]
    return None if done.empty else float(done["accuracy"].iloc[-1])


def table(
    frame: pd.DataFrame,
    methods: dict[str, pd.Series],
    points: Sequence[float],
    read: Callable[..., float | None],
) -> tuple[list[list[str]], list[Interval]]:
    """A row per point: each method's mean over seeds, and its paired difference to the last method.

    All differences come back beside the rows.
    """
    rows, gains = [], []
    for point in points:
        found = {
            name: {seed: read(curve, point) for seed, curve in frame[chosen].groupby("seed")}
            for name, chosen in methods.items()
        }
        row = [f"{point:g}"]
        for name in methods:
            values = [value for value in found[name].values() if value is not None]
            row.append(str(interval(values)) if values else "not reached")
        baseline = found[list(methods)[-1]]
        for name in list(methods)[:-1]:
            pairs = [(found[name][s], baseline[s]) for s in baseline if found[name].get(s) is not None]
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            gains += [interval(differences, bounds=DIFFERENCE)] if differences else []
            row.append(gains[-1].text(sign="+") if differences else "")
        rows.append(row)
    return rows, gains


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pqi() -> tuple[str, list[Interval]]:
    frame = orchestrator.rounds("adaptive-pqi")
    sap, ticket = frame["schedule"].str.startswith("pq_index"), frame["schedule"].str.startswith("iterative")
    methods = {f"SAP, {scope}": sap & (frame["scope"] == scope) for scope in ("unit", "layer", "global")}
    methods["lottery ticket, layer"] = ticket & (frame["scope"] == "layer")
    header = ["density", *methods, *(f"{name}: difference" for name in list(methods)[:-1])]
    rows, gains = table(frame, methods, DENSITIES, at_density)
    return markdown(header, rows), gains


def cost(space: str, axis: str, baseline: str, names: dict[str, str]) -> tuple[str, list[Interval]]:
    frame = orchestrator.rounds(space)
    methods = {
        label: frame[axis].str.startswith(start) for start, label in names.items() if start != baseline
    }
    methods[names[baseline]] = frame[axis].str.startswith(baseline)
    longest = int(frame["epochs"].max())
    points = [longest * share for share in (0.25, 0.5, 0.75, 1.0)]
    header = ["epochs since init", *methods, *(f"{name}: difference" for name in list(methods)[:-1])]
    rows, gains = table(frame, methods, points, at_epochs)
    return markdown(header, rows), gains


def main() -> None:
    names = {"rewind": "rewind", "reinit": "reinit", "finetune": "finetune"}
    density, density_gains = pqi()
    same_cost, cost_gains = cost("lottery-ticket", "recover", "reinit", names)
    facts = environment()
    kept = PAGE.read_text().partition(SAYS)[2] if PAGE.exists() else "\n"
    parts = [
        "# Equal density, equal cost",
        "Test accuracy in %, mean and half of the 95% t interval over seeds; differences are paired by seed, "
        "to the last method of the table. [lowest to highest] where there are two seeds, -a/+b where an "
        "interval is cut at a bound. "
        f"{verdict([*density_gains, *cost_gains])}",
        f"Sweeps of `adaptive-pqi` and `lottery-ticket`; {facts['processor']}, revision {facts['commit']}.",
        "```\n$ python docs/write_equal.py\n```",
        "## SAP against the lottery ticket at equal density\n\nRounds of `adaptive-pqi` on digits, "
        "interpolated in log density.",
        density,
        "## Lottery tickets and their controls at equal cost\n\nThe round of `lottery-ticket` on digits that "
        "each method has reached by then; the dense training counts.",
        same_cost,
        f"{SAYS}{kept}",
    ]
    PAGE.write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
