"""Comparisons as tables for papers: a column for each thing that was varied, the best in bold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from orchestrator.analysis.intervals import Interval, dense_interval, interval, interval_note
from orchestrator.analysis.leaders import Leaders, find_leaders
from orchestrator.analysis.notes import SURVIVORS, dense_marks, legend, marks, stopped_note
from orchestrator.analysis.paired import DENSE, Baseline, differences, verdict
from orchestrator.analysis.pareto import COSTS, candidates, cost_text, members
from orchestrator.analysis.setting_means import ComparisonOptions, sparsest
from orchestrator.analysis.settings import (
    HASH,
    NETWORK,
    amount_label,
    dense_sets,
    settings,
    varied_columns,
)
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

Spread = Literal["ci", "std"]
DEVIATION = "mean ± sample standard deviation over seeds"
NAMES = {"dataset": "data set", "batch_size": "batch size"}
DENSE_FIELDS = ("train.", "model.", "start")  # columns of a dense network, beside NETWORK
Setting = tuple[dict[str, object], "DataFrame"]


@dataclass(frozen=True)
class PaperTable:
    """A table of texts. Its first `text_columns` say what was varied; the others are numbers.

    `bold` are the rows whose first number is in bold; a group of rows begins at each of `breaks`.
    """

    label: str
    title: str
    header: list[str]
    rows: list[list[str]]
    text_columns: int
    note: str = ""
    bold: frozenset[int] = frozenset()
    breaks: tuple[int, ...] = ()


def paper_tables(results: DataFrame, options: ComparisonOptions, spread: Spread = "ci") -> list[PaperTable]:
    """Return the table of each of tolerance, baseline and cost that is set; without any, that of accuracies.

    Raises UsageError where nothing has finished, and for more settings than can be tested against each other.
    """
    if not (results["status"] == "finished").any():
        raise UsageError("no trial of these sweeps has finished; there is no table to print")
    shown = []
    if options.tolerance is not None:
        shown.append(_sparsest_table(results, options, options.tolerance, spread))
    if options.baseline is not None:
        shown.append(_differences_table(results, options, options.baseline, spread))
    if options.cost is not None:
        shown.append(_front_table(results, options, options.cost, spread))
    return shown or [accuracy_table(results, options, spread)]


def accuracy_table(results: DataFrame, options: ComparisonOptions, spread: Spread = "ci") -> PaperTable:
    """Return a row per setting, with dense networks above; those compete that share network and amount."""
    columns = varied_columns(results)
    groups = _groups(results)
    leaders = find_leaders([[rows for _, rows in group] for group in groups])
    lines: list[list[str]] = []
    bold, breaks, means = [], [], []
    last_panel: tuple[object, ...] = ()
    for group, flags in zip(groups, leaders.flags, strict=True):
        breaks.append(len(lines))
        if (panel := _panel(group[0][0])) != last_panel:
            last_panel = panel
            for cells, mean in _dense_rows(results, panel, columns, options, spread):
                lines.append(cells)
                means.append(mean)
        for (setting, rows), leads in zip(group, flags, strict=True):
            accuracy = interval(rows["final/accuracy"].tolist(), method=options.method)
            means.append(accuracy)
            bold += [len(lines)] if leads else []
            cells = [value_text(setting, rows, column) for column in columns]
            numbers = [_share(rows, "sparsity"), _share(rows, "macs_effective", of="macs_dense")]
            lines.append([*cells, mean_text(accuracy, spread) + marks(rows), *numbers, str(len(rows))])
    header = [*map(_name, columns), "accuracy %", "sparsity %", "MACs %", "seeds"]
    note = " ".join(
        filter(
            None,
            (_bold_note(leaders, is_search=bool(results.attrs.get("objectives"))), stopped_note(results)),
        )
    )
    title = f"Test accuracy in %, {_meaning(means, options, spread)}"
    table = PaperTable(
        "accuracy", title, header, lines, len(columns), note, frozenset(bold), tuple(breaks[1:])
    )
    return _finished(table, results)


def _groups(results: DataFrame) -> list[list[Setting]]:
    """Return the settings that compete: of one network and amount; in a search, all of one data set."""
    is_search = _is_search(results)
    panels: dict[object, int] = {}
    groups: dict[tuple[int, float], list[Setting]] = {}
    for setting, rows in settings(results):
        panel = panels.setdefault(setting["dataset"] if is_search else _panel(setting), len(panels))
        amount = 0.0 if is_search else float(str(setting["amount"]))
        groups.setdefault((panel, amount), []).append((setting, rows))
    return [groups[key] for key in sorted(groups)]


def _is_search(results: DataFrame) -> bool:
    return bool(results.attrs.get("objectives"))


def _panel(setting: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(setting[name] for name in NETWORK)


def _dense_rows(
    results: DataFrame,
    panel: tuple[object, ...],
    columns: Sequence[str],
    options: ComparisonOptions,
    spread: Spread,
) -> Iterator[tuple[list[str], Interval]]:
    """Yield a row for each set of dense networks, unless the settings of 0% are dense networks themselves."""
    own = [pair for pair in settings(results) if _panel(pair[0]) == panel]
    if _is_search(results) or any(amount_label(rows) == "0%" for _, rows in own):
        return
    methods = [column for column in columns if not _is_of_dense(column)]
    for _, rows in dense_sets([rows for _, rows in own]):
        if (dense := dense_interval(rows, method=options.method)) is None:
            continue
        texts = {
            column: value_text({}, rows, column)
            for column in columns
            if _is_of_dense(column) and rows[column].nunique(dropna=False) == 1
        }
        texts |= {methods[0]: DENSE} if methods else {}
        cells = [texts.get(column, "") for column in columns]
        accuracy = mean_text(dense, spread) + dense_marks(rows)
        yield [*cells, accuracy, "0.0", "100.0", str(dense.count)], dense


def _is_of_dense(column: str) -> bool:
    return column in NETWORK or column.startswith(DENSE_FIELDS)


def _share(rows: DataFrame, metric: str, *, of: str = "") -> str:
    """Return a mean in percent, of the mean of another metric; "" for runs of before it was measured."""
    names = [f"final/{name}" for name in (metric, of) if name]
    if any(name not in rows or rows[name].isna().any() for name in names):
        return ""
    return f"{100 * float(rows[names[0]].mean()) / (float(rows[names[1]].mean()) if of else 1):.1f}"


def _bold_note(leaders: Leaders, is_search: bool) -> str:
    untested = f" {leaders.untested} more could not be tested." if leaders.untested else ""
    if not leaders.pairs:
        reason = "a test needs three seeds or more that two settings share"
        return f"Nothing is in bold: {reason}." if leaders.untested else ""
    tests = f"paired t tests by seed at 5%, Holm's correction for {leaders.pairs} pairs"
    if not leaders.any:
        return f"Nothing is in bold: no setting differs from the best of its group ({tests}).{untested}"
    group = "data set" if is_search else "network and amount"
    return (
        f"Bold: the best of its {group}, and what does not differ from it, where any differs "
        f"({tests}).{untested}"
    )


def _sparsest_table(
    results: DataFrame, options: ComparisonOptions, tolerance: float, spread: Spread
) -> PaperTable:
    columns = [column for column in varied_columns(results) if column != "amount"]
    lines, means = [], []
    first_rows = {_method_key(setting): rows for setting, rows in settings(results)}
    for best in sparsest(results, tolerance=tolerance, method=options.method, earlier=options.earlier):
        shown = (best.sparsity, best.accuracy, best.loss)
        means += [mean for mean in shown if mean is not None]
        texts = ["none" if mean is None else mean_text(mean, spread) for mean in shown]
        rows = first_rows[_method_key(best.method)]
        seeds = f"{best.seeds_within} of {best.seeds}" + (SURVIVORS if best.stopped else "")
        lines.append([*(value_text(best.method, rows, column) for column in columns), *texts, seeds])
    header = [*map(_name, columns), "sparsity %", "accuracy %", "below dense", "seeds"]
    limit = f"{100 * tolerance:g} {'point' if 100 * tolerance == 1 else 'points'}"
    title = f"Highest sparsity within {limit} of dense, in %, {_meaning(means, options, spread)}"
    note = (
        f"Chosen seed by seed on validation images, at most {limit} below the dense network; then test "
        "accuracy. A seed without such a network counts as its dense one."
    )
    return _finished(PaperTable("sparsest", title, header, lines, len(columns), note), results)


def _method_key(setting: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(value) for name, value in setting.items() if name != "amount")


def _differences_table(
    results: DataFrame, options: ComparisonOptions, baseline: Baseline, spread: Spread
) -> PaperTable:
    columns = varied_columns(results)
    rows_of = {tuple(map(str, setting.values())): rows for setting, rows in settings(results)}
    pairs = differences(results, baseline, method=options.method)
    lines = []
    for pair in pairs:
        rows = rows_of[tuple(map(str, pair.setting.values()))]
        gain = mean_text(pair.difference, spread, sign="+") + pair.marks
        cells = [value_text(pair.setting, rows, column) for column in columns]
        lines.append([*cells, gain, str(pair.difference.count), pair.p_text])
    gains = [pair.difference for pair in pairs]
    bold = frozenset(number for number, pair in enumerate(pairs) if pair.survives)
    header = [*map(_name, columns), "difference", "pairs", "p, Holm"]
    other = "the dense network of the same seed" if baseline.is_dense else f"{baseline.text}, paired by seed"
    meaning = _meaning(gains, options, spread).replace("over seeds", "over pairs")
    title = f"Test accuracy minus that of {other}, in points, {meaning}"
    note = verdict(gains) + (" Bold: what differs after the correction." if bold else "")
    table = PaperTable("difference", title, header, lines, len(columns), note, bold)
    return _finished(table, results)


def _front_table(results: DataFrame, options: ComparisonOptions, cost: str, spread: Spread) -> PaperTable:
    columns = varied_columns(results)
    rows_of = {tuple(map(str, setting.values())): rows for setting, rows in settings(results)}
    front = members(candidates(results, cost, method=options.method))
    lines = []
    for member in front:
        rows = rows_of.get(tuple(map(str, member.setting.values())))
        if rows is None:  # a dense network
            methods = [column for column in columns if not _is_of_dense(column)]
            texts = {name: _text(value) for name, value in member.setting.items()}
            texts |= {methods[0]: DENSE} if methods else {}
            cells = [texts.get(column, "") for column in columns]
        else:
            cells = [value_text(member.setting, rows, column) for column in columns]
        accuracy = mean_text(member.accuracy, spread) + member.marks
        lines.append([*cells, cost_text(cost, member.cost), f"{100 * member.val_accuracy:.1f}", accuracy])
    header = [*map(_name, columns), cost, "validation %", "accuracy %"]
    meaning = _meaning([member.accuracy for member in front], options, spread)
    title = f"Pareto front of validation accuracy against {cost}; test accuracy in %, {meaning}"
    note = f"{cost}: {COSTS[cost].about}; means over seeds. What equals a dense network is left out."
    return _finished(PaperTable(f"front-{cost}", title, header, lines, len(columns), note), results)


def value_text(setting: Mapping[str, object], rows: DataFrame, column: str) -> str:
    """Return a setting's value of a column: of `amount` as planned, `50%` or `by pq_index, at most 90%`."""
    if column == "amount":
        return amount_label(rows)
    return _text(setting[column] if column in setting else rows[column].iloc[0])


def _text(value: object) -> str:
    if value is None or value != value:  # NaN: only another sweep of the comparison has the axis
        return ""
    return f"{value:g}" if isinstance(value, float) else HASH.sub(r"\1", str(value))


def _name(column: str) -> str:
    return NAMES.get(column, column)


def mean_text(mean: Interval, spread: Spread, *, sign: str = "") -> str:
    """Return a mean in percent with its interval, or with its standard deviation."""
    if spread == "ci":
        return mean.text(sign=sign)
    text = f"{100 * mean.mean:{sign}z.1f}"
    return text if mean.deviation is None else f"{text} ± {100 * mean.deviation:.1f}"


def _meaning(means: Sequence[Interval], options: ComparisonOptions, spread: Spread) -> str:
    if spread == "ci" or all(mean.deviation is None for mean in means):
        return interval_note(means, method=options.method)
    return DEVIATION


def _finished(table: PaperTable, results: DataFrame) -> PaperTable:
    """Move a column that is the same in all rows, and what no setting varies, to the title."""
    fixed = [column for column in (*NETWORK, "amount") if results[column].nunique(dropna=False) == 1]
    facts = [f"{_name(column)} {value_text({}, results, column)}" for column in fixed]
    header, rows = table.header, table.rows
    if header[-1] == "seeds" and len({row[-1] for row in rows}) == 1:
        facts.append(f"{rows[0][-1]} {'seed' if rows[0][-1] == '1' else 'seeds'}")
        header, rows = header[:-1], [row[:-1] for row in rows]
    title = f"{table.title} ({', '.join(facts)})." if facts else f"{table.title}."
    signs = legend(_cells(rows))
    note = f"{table.note} {signs}.".strip() if signs else table.note
    return replace(table, title=title, header=header, rows=rows, note=note)


def _cells(rows: Iterable[Iterable[str]]) -> Iterator[str]:
    for row in rows:
        yield from row
