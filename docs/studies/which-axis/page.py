"""Fill the text of the study, `paper.md.in`, with numbers of `results.json`, and check what the text claims.

A field is `{{function; argument; ...}}`. Functions that claim something (`ahead`, `behind`, `undecided`,
`apart`, `alike`, `turned`, `holds`, `unmoved`) write nothing, and raise ClaimError where the numbers say
otherwise: a text must not survive the numbers that it was written for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pairs import Record, sign, turns

from orchestrator.analysis.intervals import Interval

FOLDER = Path(__file__).parent
FIELD = re.compile(r"\{\{([^{}]+)\}\}")
AXES = ("amount", "sparsity", "parameters", "effective", "physical", "latency")
HEADERS = {"parameters": "living parameters", "effective": "effective MACs", "physical": "physical MACs"}
NO_RANGE = "no range in common"


class ClaimError(ValueError):
    """The text claims what the numbers do not say."""


def fill(text: str, results: Record) -> str:
    """Return the text with every field replaced; ClaimError for a claim that does not hold."""

    def replace(match: re.Match[str]) -> str:
        name, *arguments = (part.strip() for part in match[1].split(";"))
        try:
            return FIELDS[name](results, *arguments)
        except (KeyError, TypeError, IndexError) as error:
            raise ClaimError(f"{match[0]}: there is no such number ({error!r})") from error

    return FIELD.sub(replace, text)


def page(folder: Path = FOLDER) -> str:
    """Return the page that the template and the numbers of a folder give."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return fill((FOLDER / "paper.md.in").read_text(encoding="utf-8"), results)


# ---- numbers


def find_pair(results: Record, section: str, panel: str, first: str, second: str) -> Record:
    for pair in results[section]["pairs"]:
        if (pair["panel"], pair["first"], pair["second"]) == (panel, first, second):
            return dict(pair)
    raise KeyError(f"{panel}: {first} and {second}")


def gain_text(gain: Record, *, p: bool = True) -> str:
    """Return `+5.2 ± 2.2 (p = 0.003)` with the p-value after correction, or that no range is shared."""
    if not gain:
        return NO_RANGE
    mean = Interval(gain["mean"], gain["low"], gain["high"], gain["n"], is_cut=gain["cut"])
    return mean.text(sign="+") + (f" ({p_text(gain)})" if p else "")


def p_text(gain: Record) -> str:
    p = gain.get("p_holm")
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def gain(results: Record, section: str, panel: str, first: str, second: str, axis: str) -> str:
    return gain_text(find_pair(results, section, panel, first, second)["gains"][axis])


def find_point(
    results: Record, section: str, panel: str, first: str, second: str, axis: str, value: str
) -> Record:
    for point in results[section]["points"]:
        names = (point["panel"], point["first"], point["second"], point["axis"])
        if names == (panel, first, second, axis) and value in ("", f"{point['value']:g}"):
            return dict(point["gains"][axis])
    raise KeyError(f"{panel}: {first} and {second} at {axis} {value}")


def at(results: Record, section: str, panel: str, first: str, second: str, axis: str, value: str = "") -> str:
    return gain_text(find_point(results, section, panel, first, second, axis, value))


def value(results: Record, path: str, form: str = "g") -> str:
    """Return the number at a path of keys joined by `>`; `points` is for fractions, in points of per cent."""
    number: Any = results
    for key in path.split(">"):
        number = number[int(key)] if isinstance(number, list) else number[key.strip()]
    if form.startswith("points"):
        return f"{100 * number:{form.removeprefix('points') or '.1f'}}"
    return format(number, form)


def turn_count(results: Record, section: str, kind: str = "turns") -> str:
    """Return `12 of 340`: the pairs of methods that turn, of all panels."""
    panels = results[section]["census"]["panels"].values()
    return f"{sum(p[kind] for p in panels)} of {sum(p['pairs'] for p in panels)}"


def shown(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return `2 of 6`: the panels in which a pair differs at the first's own place, after the correction."""
    names = (first, second, axis)
    points = [p for p in results[section]["points"] if (p["first"], p["second"], p["axis"]) == names]
    gains = [point["gains"][axis] for point in points if point["gains"][axis]]
    return f"{sum(bool(sign(gain)) for gain in gains)} of {len(gains)}"


def largest(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return the largest mean difference of a pair, either way, over all panels, in points."""
    pairs = _panels_of(results, section, first, second, axis)
    return f"{100 * max(abs(pair['gains'][axis]['mean']) for pair in pairs):.1f}"


def span(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return `14.7 to 33.7`: the least and the largest mean gain of a pair over all panels, in points."""
    means = [p["gains"][axis]["mean"] for p in _panels_of(results, section, first, second, axis)]
    return f"{100 * min(means):.1f} to {100 * max(means):.1f}"


def survivors(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return `6 of 8`: the panels in which a pair differs after the correction."""
    pairs = _panels_of(results, section, first, second, axis)
    return f"{sum(bool(sign(pair['gains'][axis])) for pair in pairs)} of {len(pairs)}"


def _panels_of(results: Record, section: str, first: str, second: str, axis: str) -> list[Record]:
    pairs = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    return [pair for pair in pairs if pair["gains"][axis]]


def widening(results: Record, name: str, seeds: str) -> str:
    """Return how many times as wide an interval over so many seeds had to be to cover other splits."""
    causes = results["causes"][name]
    shown = (causes["seed"] ** 2 + causes["rest"] ** 2) / int(seeds)
    missed = causes["train"] ** 2 + causes["test"] ** 2
    return f"{((shown + missed) / shown) ** 0.5:.1f}"


def total(results: Record, what: str) -> str:
    """Return the trials or dense trainings of all spaces, which share some."""
    return f"{sum(size[what] for size in results['size'].values()):,}"


# ---- claims


def claim(is_true: bool, text: str) -> str:
    if not is_true:
        raise ClaimError(f"the text says that {text}, and the numbers do not; mend paper.md.in")
    return ""


def ahead(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(sign(gains[a]) == 1, f"{first} lead {second} over {a} ({panel})") for a in axes)


def behind(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(sign(gains[a]) == -1, f"{first} trail {second} over {a} ({panel})") for a in axes)


def undecided(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    text = f"{first} and {second} cannot be told apart over"
    return "".join(claim(bool(gains[a]) and sign(gains[a]) == 0, f"{text} {a} ({panel})") for a in axes)


def apart(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(not gains[a], f"{first} and {second} share no {a} ({panel})") for a in axes)


def turned(results: Record, section: str, first: str, second: str, *panels: str) -> str:
    """Claim that exactly these panels turn."""
    of_pair = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    found = [pair["panel"] for pair in of_pair if turns(pair)]
    return claim(sorted(found) == sorted(panels), f"{first} and {second} turn in {panels}, not in {found}")


def holds(results: Record, path: str, relation: str, bound: str) -> str:
    """Claim that the number at a path is below, above or equal to a bound."""
    number = float(value(results, path, ".12g"))
    relations = {"<": number < float(bound), ">": number > float(bound), "=": number == float(bound)}
    return claim(relations[relation], f"{path} {relation} {bound} (it is {number:g})")


def alike(results: Record, section: str, first: str, second: str, *excepted: str) -> str:
    """Claim that no axis shows a difference of two methods in any panel, but for those excepted."""
    pairs = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    signs = [sign(g) for pair in pairs if pair["panel"] not in excepted for g in pair["gains"].values()]
    return claim(bool(signs) and not any(signs), f"{first} and {second} differ nowhere else")


def unmoved(results: Record, section: str, name: str) -> str:
    """Claim that no gain of this name survives the correction."""
    moved = [r for r in results[section] if sign(r[name])]
    return claim(not moved, f"no {name} of {section} differs from 0")


# ---- tables


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


FIELDS: dict[str, Callable[..., str]] = {
    "gain": gain,
    "at": at,
    "value": value,
    "turn_count": turn_count,
    "total": total,
    "widening": widening,
    "shown": shown,
    "largest": largest,
    "ahead": ahead,
    "behind": behind,
    "undecided": undecided,
    "apart": apart,
    "turned": turned,
    "holds": holds,
    "unmoved": unmoved,
    "alike": alike,
    "span": span,
    "survivors": survivors,
    "pair_table": pair_table,
    "seed_table": seed_table,
    "pattern_table": pattern_table,
    "cause_table": cause_table,
    "rounding_table": rounding_table,
    "course_table": course_table,
}


def tables(results: Record) -> str:
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
