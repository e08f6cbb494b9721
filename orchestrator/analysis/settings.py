"""Which columns tell configurations apart, and their labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.config import method_name
from orchestrator.formatting import format_percent

if TYPE_CHECKING:
    from pandas import DataFrame


AXES = (
    "model",
    "dataset",
    "batch_size",
    "start",
    "technique",
    "criterion",
    "granularity",
    "scope",
    "when",
    "schedule",
    "control",
    "prepare",
    "recover",
    "distill",
)
TRIPLE = ("criterion", "granularity", "scope")  # a technique is these three
NETWORK = ("model", "dataset", "batch_size")  # one panel of a figure, one table of accuracies
NON_CONFIG_COLUMNS = (
    "key",
    "dense_key",
    "seed",
    "requested_batch_size",
    "status",
    "run_id",
    "reason",
    "notes",
    "at_chance",
    "dense_at_chance",
    "empty_layers",
    "amount_text",
)
STOPPED = "stopped"  # in the attrs of a setting's rows: how many of its seeds were stopped early
ADAPTIVE = ("pq_index", "threshold", "column_mean", "mean_norm", "score_below")  # `amount` is their maximum
HASH = re.compile("([0-9a-f]{8})[0-9a-f]{56}")  # of a source model
LONG_NUMBER = re.compile(r"\d+\.\d{4,}(e-?\d+)?")
DEFAULT_LABELS = ("none", "after", "None")  # left out of labels


def is_by_criterion(results: DataFrame) -> bool:
    """Return whether the space has an axis `criterion`, which `technique` repeats, as in `magnitude/unit`."""
    if "technique" not in results or "criterion" not in results:
        return False
    pairs = results[["technique", "criterion"]].drop_duplicates().astype(str)
    labels = zip(pairs["technique"], pairs["criterion"], strict=True)
    return all(label == criterion or label.startswith(f"{criterion}/") for label, criterion in labels)


def axis_columns(results: DataFrame) -> list[str]:
    """Return every column that is an axis or a field of the configuration, those of AXES first."""
    columns = [c for c in results.columns if c not in NON_CONFIG_COLUMNS and "/" not in c]
    return [*(c for c in AXES if c in columns), *(c for c in columns if c not in AXES)]


def distinguishing_columns(results: DataFrame, first: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return `first`, and in their order those of `columns` that tell apart what the ones before do not."""
    distinguishing, count = list(first), results.groupby(list(first), dropna=False).ngroups
    for column in columns:
        if column in distinguishing or results[column].nunique(dropna=False) <= 1:
            continue
        finer_count = results.groupby([*distinguishing, column], dropna=False).ngroups
        if finer_count > count:
            distinguishing, count = [*distinguishing, column], finer_count
    return distinguishing


def setting_columns(results: DataFrame) -> list[str]:
    """Return the columns that tell settings apart, the amount last: what was swept, without the seed.

    A column that adds nothing to those before it, as a technique's criterion, is left out. A search keeps
    every axis that varies: there the amount alone may tell all points apart.
    """
    if results.attrs.get("objectives"):
        return _searched_columns(results)
    first = [c for c in (*NETWORK, "technique", "amount") if c in results.columns]
    columns = distinguishing_columns(results, first, axis_columns(results))
    return [*(c for c in columns if c != "amount"), "amount"]


def _searched_columns(results: DataFrame) -> list[str]:
    """The axes and the fields of the recipe that vary; a technique's name implies granularity and scope."""
    implied = {*NETWORK, "technique", "granularity", "scope"}
    if results.groupby("technique")["criterion"].nunique().max() == 1:
        implied.add("criterion")
    columns = [c for c in axis_columns(results) if c in AXES or c.startswith("train.")]
    varied = [c for c in columns if c not in implied and results[c].nunique(dropna=False) > 1]
    return [*NETWORK, "technique", *varied, "amount"]


def varied_columns(results: DataFrame) -> list[str]:
    """Return the columns that say how settings differ, the amount last: what all share is left out.

    Where a technique is a label of a criterion, a granularity and a scope, as `magnitude/unit`, those of the
    three that vary stand for it.
    """
    ended = results[results["status"].isin(("finished", "stopped"))]
    columns = [column for column in setting_columns(results) if ended[column].nunique(dropna=False) > 1]
    if "technique" not in columns or not is_by_criterion(results):
        return columns
    triple = [c for c in TRIPLE if ended[c].nunique(dropna=False) > 1]
    number = columns.index("technique")
    split = [*columns[:number], *triple, *columns[number + 1 :]]
    split = list(dict.fromkeys(split))
    counts = [ended.groupby(names, dropna=False).ngroups if names else 1 for names in (columns, split)]
    return split if counts[0] == counts[1] else columns


def settings(results: DataFrame) -> Iterator[tuple[dict[str, object], DataFrame]]:
    """Yield each setting of the finished trials with its rows, one per seed, in the order of the plan."""
    yield from _grouped(results, setting_columns)


def methods(results: DataFrame) -> Iterator[tuple[dict[str, object], DataFrame]]:
    """Yield each method, a setting without its amount, with the rows of all its finished trials."""
    yield from _grouped(results, lambda rows: [c for c in setting_columns(rows) if c != "amount"])


def _grouped(
    results: DataFrame, columns_of: Callable[[DataFrame], list[str]]
) -> Iterator[tuple[dict[str, object], DataFrame]]:
    if not (results["status"] == "finished").any():
        return
    columns = columns_of(results)
    ended = results[results["status"].isin(("finished", "stopped"))]
    for values, group in ended.groupby(columns, sort=False, dropna=False):
        is_finished = group["status"] == "finished"
        if is_finished.any():
            rows = group[is_finished]
            rows.attrs = {**results.attrs, STOPPED: int((~is_finished).sum())}
            yield dict(zip(columns, map(_plain, values), strict=True)), rows


def _plain(value: object) -> object:
    """Convert a number of numpy's to Python's: pandas before 3 groups by them, and json cannot write them."""
    return value.item() if hasattr(value, "item") else value


def panel_title(setting: Mapping[str, object]) -> str:
    """Return the title of the table and the figure that a setting belongs to."""
    return f"{setting['model']} on {setting['dataset']}, batch {setting['batch_size']}"


def method_label(setting: Mapping[str, object]) -> str:
    """Return the method of a setting, as `weight, one_shot, finetune`; without values for "none"."""
    values = [value for name, value in setting.items() if name not in (*NETWORK, "amount")]
    # NaN (v != v): in a table of several sweeps, only another sweep has the axis.
    texts = [_text(v) for v in values if v is not None and v == v and v not in DEFAULT_LABELS]
    return ", ".join(HASH.sub(r"\1", text) for text in texts) or "nothing"


def point_label(setting: Mapping[str, object]) -> str:
    """Return the method of a point of a search: numbers with four digits, fields of the recipe by name."""
    texts = [
        _text(value) if name in AXES else f"{name}={_text(value)}"
        for name, value in setting.items()
        if name not in (*NETWORK, "amount") and value not in DEFAULT_LABELS
    ]
    return LONG_NUMBER.sub(lambda match: f"{float(match[0]):.4g}", ", ".join(texts)) or "nothing"


def _text(value: object) -> str:
    """Write 2.0 as `2`: a missing value makes a column of whole numbers one of floats."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def method_names(setting: Mapping[str, object]) -> str:
    """Return the method of a setting without options and numbers, which points of a search share."""
    values = [setting[name] for name in AXES if name in setting and name not in NETWORK]
    return ", ".join(method_name(str(v)) for v in values if v not in DEFAULT_LABELS) or "nothing"


def amount_label(rows: DataFrame) -> str:
    """Return how much was pruned, as planned: `50%`, `0% (trained on)`, `by pq_index, at most 90%`."""
    first = rows.iloc[0]
    text = first.get("amount_text")
    if isinstance(text, str) and text:
        return text
    # A plan of an earlier version has no `amount_text`.
    amount, name = float(first["amount"]), method_name(str(first.get("schedule")))
    if amount == 0:
        return "0%" if str(first.get("recover")) in ("none", "None", "nan") else "0% (trained on)"
    if name in ADAPTIVE:
        return f"by {name}" + ("" if amount >= 1 else f", at most {format_percent(amount)}")
    return format_percent(amount)


def join_labels(labels: Sequence[str]) -> str:
    """Join several labels of one amount in few words: `0%, or trained on`."""
    amounts = {text.partition(" (")[0] for text in labels}
    notes = [text.partition(" (")[2].removesuffix(")") for text in labels if " (" in text]
    if len(labels) == 1 or len(amounts) > 1 or len(notes) == len(labels):
        return " or ".join(labels)
    return f"{amounts.pop()}, or {' or '.join(notes)}"


def dense_sets(settings: Sequence[DataFrame]) -> list[tuple[int, DataFrame]]:
    """Return the dense networks to average, one row per seed, each with the index of its first setting.

    One set of all seeds where each seed has one dense network, though some settings lack a seed; else one
    set for each combination of networks.
    """
    import pandas

    if not settings:
        return []
    key = "dense_key" if all("dense_key" in rows for rows in settings) else "seed"
    networks = pandas.concat(list(settings)).drop_duplicates(key)
    if networks["seed"].is_unique:
        return [(0, networks)]
    sets: dict[tuple[str, ...], tuple[int, DataFrame]] = {}
    for number, rows in enumerate(settings):
        sets.setdefault(tuple(sorted(map(str, rows[key]))), (number, rows))
    return list(sets.values())
