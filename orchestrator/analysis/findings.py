"""What a sweep found, in sentences made from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.analysis.intervals import IntervalMethod, interval
from orchestrator.analysis.notes import count_seeds
from orchestrator.analysis.paired import DENSE, Baseline, Difference, differences
from orchestrator.analysis.settings import (
    NETWORK,
    amount_label,
    method_label,
    panel_title,
    point_label,
    settings,
)
from orchestrator.formatting import joined

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_METHODS = 8  # that a sentence names
Setting = tuple[dict[str, object], "DataFrame"]
OWN_DENSE = Baseline(DENSE, {})


@dataclass
class MethodDifferences:
    """A method of a network, and its differences to a baseline by rising amount."""

    name: str
    pairs: list[Difference] = field(default_factory=list)


def findings(
    results: DataFrame,
    baseline: Baseline,
    *,
    method: IntervalMethod = "t",
    tolerance: float = 0.01,
    pairs: Sequence[Difference] | None = None,
) -> list[str]:
    """Return sentences: what is not done yet, what differs, where accuracy falls off, what is at chance.

    Differences count after Holm's correction for all comparisons with the same baseline. Where too few seeds
    allow no test, `tolerance`, a fraction, says from where on mean accuracy is below that of dense networks.
    `pairs` are the differences to the baseline, if the caller has them.
    """
    if not (results["status"] == "finished").any():
        return []
    all_settings = list(settings(results))
    sentences = [*_unfinished(results), *_dense_at_chance(all_settings)]
    if results.attrs.get("objectives"):
        sentences += _best_point(all_settings, results.attrs["objectives"])
        return sentences + list(_at_chance(all_settings, is_search=True))
    pairs = differences(results, baseline, method=method) if pairs is None else pairs
    if not baseline.is_dense:
        sentences += _compared(pairs, baseline)
        pairs = differences(results, OWN_DENSE, method=method)
    sentences += _falls(pairs, tolerance)
    return sentences + list(_at_chance(all_settings, is_search=False))


def _unfinished(results: DataFrame) -> Iterator[str]:
    """Yield a warning where trials are to run yet: sentences from a part of them may change."""
    finished, missing = ((results["status"] == status).sum() for status in ("finished", "missing"))
    if missing:
        yield f"{finished:,} of {len(results):,} trials have finished; what follows is of these alone."


def _dense_at_chance(all_settings: Sequence[Setting]) -> Iterator[str]:
    panels: dict[str, list[DataFrame]] = {}
    for setting, rows in all_settings:
        panels.setdefault(panel_title(setting), []).append(rows)
    for panel, group in panels.items():
        if any(count_seeds(rows, "dense_at_chance") for rows in group):
            yield (
                f"Dense networks of {panel} are at chance on validation images at one seed or more: what is "
                "pruned from them says nothing about pruning."
            )


def _compared(pairs: Sequence[Difference], baseline: Baseline) -> Iterator[str]:
    """Yield which settings differ from the baseline after the correction, and which do not."""
    name = ", ".join(map(str, baseline.values.values()))
    tested = [pair for pair in pairs if pair.p_holm is not None]
    if not pairs:
        return
    if not tested:
        yield f"Nothing is tested against {name}: a test needs t intervals, and three seeds that both have."
        return
    tests = _tests(len(tested))
    surviving = [pair for pair in tested if pair.survives]
    if not surviving:
        yield f"No setting is shown to differ from {name} in test accuracy ({tests})."
        return
    for word, is_more in (("higher", True), ("lower", False)):
        pairs_that_way = [pair for pair in surviving if (pair.difference.mean > 0) is is_more]
        if texts := [
            f"{m.name} at {_amounts(m.pairs)} ({_points(m.pairs)})" for m in _methods(pairs_that_way)
        ]:
            yield f"Test accuracy is {word} than that of {name} ({tests}): {_listed(texts)}."
            tests = "the same tests"
    if others := [f"{m.name} at {_amounts(m.pairs)}" for m in _methods(_without(tested, surviving))]:
        yield f"No difference to {name} is shown for {_listed(others)}."
    if untested := [f"{m.name} at {_amounts(m.pairs)}" for m in _methods(_without(pairs, tested))]:
        yield f"Not tested, with fewer than three pairs or without a spread: {_listed(untested)}."


def _tests(count: int) -> str:
    comparisons = f"{count} {'comparison' if count == 1 else 'comparisons'}"
    return f"paired by seed, 5% after Holm's correction for {comparisons}"


def _without(pairs: Sequence[Difference], others: Sequence[Difference]) -> list[Difference]:
    """Return the differences that are not among others, in their order."""
    identities = set(map(id, others))
    return [pair for pair in pairs if id(pair) not in identities]


def _falls(pairs: Sequence[Difference], tolerance: float) -> Iterator[str]:
    """Yield from which amount on each method is below the dense networks, by differences to those."""
    if not pairs:
        return
    tested = [pair for pair in pairs if pair.p_holm is not None]
    below = {id(pair) for pair in tested if pair.survives and pair.difference.mean < 0}
    how = _tests(len(tested))
    verb = "is below"
    if not tested:
        below = {id(pair) for pair in pairs if pair.difference.mean < -tolerance}
        how = "by the means, without a test"
        limit = f"{100 * tolerance:g} {'point' if 100 * tolerance == 1 else 'points'}"
        verb = f"is more than {limit} below"
    falling, level = [], []
    for line in _methods(pairs):
        number = _first_below(line.pairs, below)
        if number is None:
            level.append(f"{line.name} {_up_to(line.pairs)}")
        else:
            falling.append(f"{line.name} {_from(line.pairs, number)}")
    if falling:
        yield f"Test accuracy {verb} that of the same seed's dense network ({how}) for {_listed(falling)}."
    if level:
        shown = f"No such fall is shown for {_listed(level)}."
        yield shown if falling else f"No fall below the dense networks is shown ({how}): {_listed(level)}."


def _first_below(pairs: Sequence[Difference], below: set[int]) -> int | None:
    """Return the first number from which on all are below; None where the last is not."""
    first = None
    for number in reversed(range(len(pairs))):
        if id(pairs[number]) not in below:
            break
        first = number
    return first


def _from(pairs: Sequence[Difference], number: int) -> str:
    first, last = pairs[number], pairs[-1]
    if len(pairs) == 1:
        return f"at {first.amount} ({_signed(first)} points)"
    if first is last:
        return f"at {first.amount}, the largest amount ({_signed(first)} points)"
    return f"from {first.amount} on ({_signed(first)} points there, {_signed(last)} at {last.amount})"


def _up_to(pairs: Sequence[Difference]) -> str:
    return f"at {pairs[0].amount}" if len(pairs) == 1 else f"up to {pairs[-1].amount}"


def _at_chance(all_settings: Sequence[Setting], *, is_search: bool) -> Iterator[str]:
    """Yield which settings are at chance on validation images, and at how many seeds."""
    names = _names([setting for setting, _ in all_settings])
    lines: dict[str, list[str]] = {name: [] for name in names.values()}
    for setting, rows in sorted(all_settings, key=lambda pair: float(str(pair[0]["amount"]))):
        if count := count_seeds(rows, "at_chance"):
            name = point_label(setting) if is_search else names[_identity(setting)]
            lines.setdefault(name, []).append(f"{amount_label(rows)} ({count} of {len(rows)})")
    if texts := [f"{name} at {joined(amounts)}" for name, amounts in lines.items() if amounts]:
        yield f"At chance on validation images, with the number of seeds: {_listed(texts)}."


def _best_point(all_settings: Sequence[Setting], objectives: Mapping[str, str]) -> Iterator[str]:
    """Yield the best point of a search by its first objective; test images did not choose it."""
    name, goal = next(iter(objectives.items()))
    ranked = sorted(all_settings, key=lambda pair: pair[1][name].mean(), reverse=goal == "max")
    setting, rows = ranked[0]
    accuracy = interval(rows["final/accuracy"].tolist())
    yield (
        f"Of {len(ranked):,} points the best by {name.removeprefix('final/')} ({goal}) is "
        f"{point_label(setting)} at {amount_label(rows)}, with a test accuracy of {accuracy}%."
    )


def _methods(pairs: Sequence[Difference]) -> list[MethodDifferences]:
    """Return the differences by method, in the order of the plan, each by rising amount."""
    names = _names([pair.setting for pair in pairs])
    lines: dict[str, MethodDifferences] = {}
    for pair in sorted(pairs, key=lambda pair: float(str(pair.setting["amount"]))):
        name = names[_identity(pair.setting)]
        lines.setdefault(name, MethodDifferences(name)).pairs.append(pair)
    return [lines[name] for name in dict.fromkeys(names[_identity(pair.setting)] for pair in pairs)]


def _names(all_settings: Sequence[Mapping[str, object]]) -> dict[tuple[str, str], str]:
    """Return the name of each method; with what tells its network apart where there are several."""
    varied = [name for name in NETWORK if len({str(setting[name]) for setting in all_settings}) > 1]
    names = {}
    for setting in all_settings:
        network = ", ".join(
            f"batch {setting[name]}" if name == "batch_size" else str(setting[name]) for name in varied
        )
        names[_identity(setting)] = method_label(setting) + (f" of {network}" if network else "")
    return names


def _identity(setting: Mapping[str, object]) -> tuple[str, str]:
    return panel_title(setting), method_label(setting)


def _amounts(pairs: Sequence[Difference]) -> str:
    return joined([pair.amount for pair in pairs])


def _points(pairs: Sequence[Difference]) -> str:
    """Return by how many points: `by 3.1 points`, `by 3.1 to 12.0 points`."""
    gaps = sorted((f"{100 * abs(pair.difference.mean):.1f}" for pair in pairs), key=float)
    return f"by {gaps[0]} points" if gaps[0] == gaps[-1] else f"by {gaps[0]} to {gaps[-1]} points"


def _signed(pair: Difference) -> str:
    return f"{100 * pair.difference.mean:+z.1f}"


def _listed(texts: Sequence[str]) -> str:
    hidden = len(texts) - MOST_METHODS
    return "; ".join([*texts[:MOST_METHODS], *([f"and {hidden} more"] if hidden > 0 else [])])
