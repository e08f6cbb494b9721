"""Write docs/results/search.md: the results of searches, from the JSON of `orchestrate sweep --json`.

python docs/write_search.py tpe=FILE,... random=FILE,...
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.analysis.intervals import ANY, interval
from orchestrator.analysis.paired import verdict
from orchestrator.system.provenance import environment

PAGE = Path(__file__).parent / "results" / "search.md"
CONCLUSION = "## What it says\n"  # this section is written by hand and kept
Point = tuple[float, float]  # validation accuracy, log10 of the effective MACs


def front(file: str) -> list[dict[str, float]]:
    """Return the Pareto front of a search: the means of each point by metric."""
    best = json.loads(Path(file).read_text())["best"]
    return sorted((point["means"] for point in best), key=lambda means: means["final/macs_effective"])


def hypervolume(points: Sequence[Point], corner: Point) -> float:
    """Return the area between a front and a reference point that is worse than all of it."""
    area, accuracy = 0.0, corner[0]
    for height, cost in sorted(points, key=lambda point: point[1]):
        if height > accuracy:
            area += (height - accuracy) * (corner[1] - cost)
            accuracy = height
    return area


def plane(means: dict[str, float]) -> Point:
    return means["final/val_accuracy"], math.log10(max(1.0, means["final/macs_effective"]))


def paired(areas: Mapping[tuple[str, int], float]) -> Iterator[str]:
    """Yield the differences of the first search's hypervolume to each other search's, paired by seed."""
    first, *baselines = dict.fromkeys(method for method, _ in areas)
    gains = [
        interval(
            [areas[first, n] - areas[other, n] for m, n in areas if m == first and (other, n) in areas],
            bounds=ANY,
        )
        for other in baselines
    ]
    for other, gain in zip(baselines, gains, strict=True):
        ends = "" if gain.low is None else f" [{gain.low:.3f} to {gain.high:.3f}], {gain.kind}"
        yield f"Hypervolume of {first} minus {other}, {gain.count} pairs: {gain.mean:.3f}{ends}."
    yield verdict(gains)


def machine() -> str:
    facts = environment()
    return f"Written with revision {facts['commit']} on {facts['processor']}."


def main() -> None:
    fronts = {
        (method, number): front(file)
        for method, _, files in (word.partition("=") for word in sys.argv[1:])
        for number, file in enumerate(files.split(","))
    }
    corner = (0.0, max(plane(means)[1] for points in fronts.values() for means in points))
    lines = ["| search | seed | points on the front | hypervolume |", "|---|---|---|---|"]
    for (method, number), points in fronts.items():
        area = hypervolume([plane(means) for means in points], corner)
        lines.append(f"| {method} | {number} | {len(points)} | {area:.3f} |")
    areas = {key: hypervolume([plane(means) for means in points], corner) for key, points in fronts.items()}
    lines += ["", *paired(areas), "", machine()]
    lines += [
        "",
        "The fronts of seed 0:",
        "",
        "| search | effective MACs | validation % | test % |",
        "|---|---|---|---|",
    ]
    for (method, number), points in fronts.items():
        for means in points if number == 0 else ():
            accuracies = f"{100 * means['final/val_accuracy']:.1f} | {100 * means['final/accuracy']:.1f}"
            lines.append(f"| {method} | {means['final/macs_effective']:,.0f} | {accuracies} |")
    head, _, rest = PAGE.read_text().partition("<!-- table -->\n")
    conclusion = rest[rest.index(CONCLUSION) :]
    PAGE.write_text(f"{head}<!-- table -->\n" + "\n".join(lines) + f"\n\n{conclusion}")


if __name__ == "__main__":
    main()
