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
NETWORK = ("model", "dataset", "batch_size")  # a panel of a picture, a table of accuracies
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
ADAPTIVE = ("pq_index", "threshold", "column_mean", "mean_norm", "score_below")  # `amount` is their ceiling
HASH = re.compile("([0-9a-f]{8})[0-9a-f]{56}")  # of an ancestor
LONG_NUMBER = re.compile(r"\d+\.\d{4,}(e-?\d+)?")
DEFAULT_LABELS = ("none", "after", "None")  # that nothing was done goes without saying


def is_by_criterion(results: DataFrame) -> bool:
    """Whether the space has an axis `criterion`: `technique` then repeats it, as in `magnitude/unit`."""
    if "technique" not in results or "criterion" not in results:
        return False
    pairs = results[["technique", "criterion"]].drop_duplicates().astype(str)
    labels = zip(pairs["technique"], pairs["criterion"], strict=True)
    return all(label == criterion or label.startswith(f"{criterion}/") for label, criterion in labels)


def axis_columns(results: DataFrame) -> list[str]:
    """Every column that is an axis or a field of the configuration, those of AXES first."""
    others = [c for c in results.columns if c not in NON_CONFIG_COLUMNS and "/" not in c]
    return [*(c for c in AXES if c in others), *(c for c in others if c not in AXES)]


def distinguishing_columns(results: DataFrame, first: Sequence[str], columns: Sequence[str]) -> list[str]:
    """`first`, and of `columns`, in their order, those that tell apart what those before them do not."""
    chosen, count = list(first), results.groupby(list(first), dropna=False).ngroups
    for column in columns:
        if column in chosen or results[column].nunique(dropna=False) <= 1:
            continue
        more = results.groupby([*chosen, column], dropna=False).ngroups
        if more > count:
            chosen, count = [*chosen, column], more
    return chosen


def setting_columns(results: DataFrame) -> list[str]:
    """The columns that tell settings apart, the amount last: what was swept, without the seed.

    A column that says nothing beyond those before it, as a technique's criterion does, is left out. Of a
    search, where an amount alone may tell all points apart, every axis that was searched is told.
    """
    if results.attrs.get("objectives"):
        return _searched_columns(results)
    first = [c for c in (*NETWORK, "technique", "amount") if c in results.columns]
    chosen = distinguishing_columns(results, first, axis_columns(results))
    return [*(c for c in chosen if c != "amount"), "amount"]


def _searched_columns(results: DataFrame) -> list[str]:
    """The axes and the fields of the recipe that vary; a technique tells granularity and scope."""
    known = [c for c in axis_columns(results) if c in AXES or c.startswith("train.")]
    told = {*NETWORK, "technique", "granularity", "scope"}
    if results.groupby("technique")["criterion"].nunique().max() == 1:
        told.add("criterion")
    varied = [c for c in known if c not in told and results[c].nunique(dropna=False) > 1]
    return [*NETWORK, "technique", *varied, "amount"]


def settings(results: DataFrame) -> Iterator[tuple[dict[str, object], DataFrame]]:
    """Each setting of the finished trials, with its rows (one per seed), in the order of the plan."""
    yield from _grouped(results, setting_columns)


def methods(results: DataFrame) -> Iterator[tuple[dict[str, object], DataFrame]]:
    """Each method, a setting without its amount, with the rows of all its finished trials."""
    yield from _grouped(results, lambda rows: [c for c in setting_columns(rows) if c != "amount"])


def _grouped(
    results: DataFrame, columns_of: Callable[[DataFrame], list[str]]
) -> Iterator[tuple[dict[str, object], DataFrame]]:
    if not (results["status"] == "finished").any():
        return
    columns = columns_of(results)
    ended = results[results["status"].isin(("finished", "stopped"))]
    for values, group in ended.groupby(columns, sort=False, dropna=False):
        is_whole = group["status"] == "finished"
        if is_whole.any():
            rows = group[is_whole]
            rows.attrs = {**results.attrs, STOPPED: int((~is_whole).sum())}
            yield dict(zip(columns, map(_plain, values), strict=True)), rows


def _plain(value: object) -> object:
    """Python's own number: pandas before 3 groups by numpy's, of which json knows nothing."""
    return value.item() if hasattr(value, "item") else value


def panel_title(setting: Mapping[str, object]) -> str:
    """What a setting's table and picture are called."""
    return f"{setting['model']} on {setting['dataset']}, batch {setting['batch_size']}"


def method_label(setting: Mapping[str, object]) -> str:
    """What was done, without the values that mean that nothing was."""
    told = [value for name, value in setting.items() if name not in (*NETWORK, "amount")]
    # A table of several sweeps has no value where only another sweep has the axis.
    said = (_text(v) for v in told if v is not None and v == v and v not in DEFAULT_LABELS)
    return ", ".join(HASH.sub(r"\1", text) for text in said) or "nothing"


def point_label(setting: Mapping[str, object]) -> str:
    """What was done at a point of a search: options with four digits, a field of the recipe by its name."""
    told = [
        _text(value) if name in AXES else f"{name}={_text(value)}"
        for name, value in setting.items()
        if name not in (*NETWORK, "amount") and value not in DEFAULT_LABELS
    ]
    return LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", ", ".join(told)) or "nothing"


def _text(value: object) -> str:
    """Whole numbers of a column in which others are missing are floats, and are read as whole ones."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def method_names(setting: Mapping[str, object]) -> str:
    """What was done, without options and numbers: what points of a search may have in common."""
    axes = [name for name in AXES if name in setting and name not in NETWORK]
    return (
        ", ".join(method_name(str(setting[a])) for a in axes if setting[a] not in DEFAULT_LABELS) or "nothing"
    )


def amount_label(rows: DataFrame) -> str:
    """How much went, as the plan says it: `50%`, `0% (trained on)`, `by pq_index, at most 90%`."""
    first = rows.iloc[0]
    text = first.get("amount_text")
    if isinstance(text, str) and text:
        return text
    return _amount_text(float(first["amount"]), str(first.get("schedule")), str(first.get("recover")))


def either(labels: Sequence[str]) -> str:
    """Several labels of one amount in few words: `0%, or trained on`."""
    same = {text.partition(" (")[0] for text in labels}
    if len(labels) == 1 or len(same) > 1:
        return " or ".join(labels)
    more = [text.partition(" (")[2].removesuffix(")") for text in labels if " (" in text]
    return f"{same.pop()}, or {' or '.join(more)}" if len(more) < len(labels) else " or ".join(labels)


def _amount_text(amount: float, schedule: str, recover: str) -> str:
    """The same for a plan that was written before it said so."""
    if amount == 0:
        return "0%" if recover in ("none", "None", "nan") else "0% (trained on)"
    name = method_name(schedule)
    if name in ADAPTIVE:
        return f"by {name}" + ("" if amount >= 1 else f", at most {format_percent(amount)}")
    return format_percent(amount)


def dense_sets(settings: Sequence[DataFrame]) -> list[tuple[int, DataFrame]]:
    """The rows to average, one per seed, and before which of the settings their mean is told.

    One set of all seeds where each seed has one dense network, though some settings lack a seed; else a
    set for each choice of networks.
    """
    import pandas

    if not settings:
        return []
    key = "dense_key" if all("dense_key" in rows for rows in settings) else "seed"
    every = pandas.concat(list(settings)).drop_duplicates(key)
    if every["seed"].is_unique:
        return [(0, every)]
    seen: set[tuple[str, ...]] = set()
    sets = []
    for number, rows in enumerate(settings):
        names = tuple(sorted(map(str, rows[key])))
        if names not in seen:
            seen.add(names)
            sets.append((number, rows))
    return sets
