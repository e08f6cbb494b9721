"""Numbers of the study as text: differences with their intervals and p-values, counts and spans."""

from __future__ import annotations

from typing import Any

from pairs import Record, sign

from orchestrator.analysis.intervals import Interval

NO_RANGE = "no range in common"


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
    pairs = panels_of(results, section, first, second, axis)
    return f"{100 * max(abs(pair['gains'][axis]['mean']) for pair in pairs):.1f}"


def span(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return `14.7 to 33.7`: the least and the largest mean gain of a pair over all panels, in points."""
    means = [p["gains"][axis]["mean"] for p in panels_of(results, section, first, second, axis)]
    return f"{100 * min(means):.1f} to {100 * max(means):.1f}"


def survivors(results: Record, section: str, first: str, second: str, axis: str) -> str:
    """Return `6 of 8`: the panels in which a pair differs after the correction."""
    pairs = panels_of(results, section, first, second, axis)
    return f"{sum(bool(sign(pair['gains'][axis])) for pair in pairs)} of {len(pairs)}"


def panels_of(results: Record, section: str, first: str, second: str, axis: str) -> list[Record]:
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
