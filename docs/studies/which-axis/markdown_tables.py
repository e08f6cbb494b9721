"""The tables of the study as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from numbers_text import gain_text
from pairs import Record, sign

AXES = ("amount", "sparsity", "parameters", "effective", "physical", "latency")
HEADERS = {"parameters": "living parameters", "effective": "effective MACs", "physical": "physical MACs"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def pair_table(results: Record, section: str, first: str, second: str) -> str:
    """A row per panel, a column per axis; bold where the difference survives the correction."""
    of_pair = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    axes = [a for a in AXES if any(a in pair["gains"] for pair in of_pair)]
    if not any(pair["gains"].get("latency") for pair in of_pair):
        axes = [a for a in axes if a != "latency"]
    rows = []
    for pair in of_pair:
        cells = []
        for axis in axes:
            text = gain_text(pair["gains"][axis], p=False)
            cells.append(f"**{text}**" if sign(pair["gains"][axis]) else text)
        rows.append([*panel_cells(pair["panel"]), pair_seeds(pair), *cells])
    return markdown(["network", "data", "epochs", "seeds", *(HEADERS.get(a, a) for a in axes)], rows)


def pair_seeds(pair: Record) -> str:
    """Return how many seeds both methods have."""
    return str(max((gain["n"] for gain in pair["gains"].values() if gain), default=0))


def panel_cells(panel: str) -> list[str]:
    return panel.split("/")


def seed_table(results: Record) -> str:
    """The dense networks and the number of seeds of each panel."""
    rows = []
    for section, kind in (("no_retraining", "none"), ("fine_tuned", "fine-tuned"), ("rewound", "rewound")):
        for panel, (fewest, most) in results[section]["seeds"].items():
            count = f"{fewest} to {most}" if fewest < most else str(most)
            dense = gain_text(results[section]["dense"][panel], p=False).lstrip("+")
            rows.append([*panel_cells(panel), kind, count, dense])
    return markdown(["network", "data", "epochs", "retraining", "seeds", "dense accuracy, %"], rows)


def pattern_table(results: Record, section: str) -> str:
    """2:4 against the other granularities."""
    points = [point for point in results[section]["points"] if point["first"] == "2:4"]
    others = ("weights", "units", "channels")
    rows = []
    for panel in dict.fromkeys(point["panel"] for point in points):
        cells = []
        for axis in ("sparsity", "effective"):
            for other in others:
                (gain,) = (
                    p["gains"][axis]
                    for p in points
                    if (p["panel"], p["second"], p["axis"]) == (panel, other, axis)
                )
                text = gain_text(gain, p=False)
                cells.append(f"**{text}**" if sign(gain) else text)
        rows.append([*panel_cells(panel), *cells])
    header = [f"{other}, {axis}" for axis in ("equal sparsity", "equal effective MACs") for other in others]
    return markdown(["network", "data", "epochs", *header], rows)


def cause_table(results: Record) -> str:
    """Standard deviations in points."""
    rows = []
    for name, causes in results["causes"].items():
        sds = [f"{100 * causes[cause]:.2f}" for cause in ("seed", "rest", "train", "test")]
        rows.append([name, f"{100 * causes['mean']:.1f}", *sds])
    return markdown(["result", "mean", "seed", "rest", "training images", "test images"], rows)


def rounding_table(results: Record) -> str:
    rows = []
    for record in results["rounding"]:
        accuracy = gain_text(record["accuracy"], p=False)
        last, first = record["last"], record["first"]
        rows.append(
            [
                *panel_cells(record["panel"]),
                record["scope"],
                f"{100 * record['removed'][-1]:.2f}",
                small_text(first),
                small_text(last),
                accuracy,
            ]
        )
    header = [
        "network",
        "data",
        "epochs",
        "scope",
        "formula removes, %",
        "program less, round 1",
        "at the end",
    ]
    return markdown([*header, "accuracy, formula minus program"], rows)


def small_text(gain: Record) -> str:
    """Return a difference in per cent with four digits, bold where it survives the correction."""
    half = (gain["high"] - gain["low"]) / 2 if gain["n"] > 2 else 0.0
    text = f"{100 * gain['mean']:.4f} ± {100 * half:.4f}"
    return f"**{text}**" if sign(gain) else text


def course_table(results: Record) -> str:
    rows = [
        [
            *panel_cells(course["panel"])[:2],
            course["method"],
            str(course["seeds"]),
            f"{100 * course['density'][0]:.0f} to {100 * course['density'][-1]:.1f}",
            f"{course['index'][0]:.3f} to {course['index'][-1]:.3f}",
            *(str(course["turns"][delta]) for delta in course["turns"]),
            *(str(course["collapses"][delta]) for delta in course["collapses"]),
        ]
        for course in results["courses"]
    ]
    header = ["network", "data", "method", "seeds", "density, %", "index", "turns by 0.01", "by 0.001"]
    return markdown([*header, "falls again by 0.01", "by 0.001"], rows)


def all_tables(results: Record) -> str:
    """Return all tables without the text, for the numbers of another run."""
    parts = ["# Does the order of pruning methods depend on the axis?", seed_table(results)]
    for section in ("no_retraining", "fine_tuned", "rewound"):
        pairs = results.get(section, {}).get("pairs", ())
        for first, second in dict.fromkeys((pair["first"], pair["second"]) for pair in pairs):
            parts += [f"## {section}: {first} minus {second}", pair_table(results, section, first, second)]
    parts += ["## 2:4", pattern_table(results, "no_retraining")] if "no_retraining" in results else []
    more = {"causes": cause_table, "courses": course_table, "rounding": rounding_table}
    for name, table in more.items():
        parts += [f"## {name}", table(results)] if results.get(name) else []
    return "\n\n".join(parts) + "\n"
