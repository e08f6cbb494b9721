"""Read sweeps from a store as frames with one column `technique` for the method, and one for the panel."""

from __future__ import annotations

from dataclasses import dataclass

import pandas
from pandas import DataFrame

from orchestrator.analysis.intervals import FEWEST_FOR_INTERVAL
from orchestrator.analysis.results import combine_earlier_networks, combine_sweeps, is_planned
from orchestrator.errors import StoreError
from orchestrator.tracking import Tracker
from pruning.registry import parse_method

WIDTHS = {"mlp": (1000, 1000, 500, 200), "cnn": (16, 32, 64)}
GRANULARITIES = {"weight": "weights", "unit": "units", "channel": "channels", "nm": "2:4"}
METRICS = (
    *("accuracy", "amount", "sparsity", "pq_index"),
    *("parameters_dense", "parameters_nonzero", "macs_dense", "macs_effective", "macs_physical"),
)
DENSE_METRICS = ("ipa/accuracy",)
LABELS = (
    *("weights", "weights, global", "units", "channels", "2:4"),
    *("SAP, unit", "SAP, layer", "SAP, global"),
    *("lottery ticket, unit", "lottery ticket, layer", "lottery ticket, global"),
    *("weights, taylor", "weights, taylor, global", "units, taylor", "channels, taylor", "2:4, taylor"),
    *("weights, random", "units, random", "channels, random", "2:4, random"),
)
NETWORK = ("model", "dataset", "batch_size")
LATENCY = "final/latency_ms_p50"


@dataclass(frozen=True)
class Source:
    """A store, and whether all sweeps of a space count, of a study that was run in parts, or the latest."""

    uri: str
    has_parts: bool = False

    def sweeps(self, space: str) -> list[str]:
        """Return what `combine_sweeps` takes for a space. StoreError where nothing was run."""
        if not self.has_parts:
            return [space]
        tracker = Tracker(self.uri, space)
        sweeps = tracker.search("tags.kind = 'sweep'")
        planned = [sweep.run_id for sweep in sweeps if is_planned(tracker, sweep)]
        if not planned:
            raise StoreError(f"there is no sweep of {space} in {self.uri}; `make.py --only sweeps` runs it")
        return planned


def read_sweep(space: str, source: Source, *, fewest: int = FEWEST_FOR_INTERVAL) -> DataFrame:
    """Return the finished trials of a space: complete seeds of the methods that have the `fewest` or more.

    Columns are those of `orchestrator.results`, `panel` (network/data/epochs) and `technique`, the label of
    the method. Of schedules of several rounds the network after each round is a row, with `round`.
    """
    results = combine_sweeps(source.sweeps(space), uri=source.uri)
    results["panel"] = [panel_of(row) for row in results.to_dict("records")]
    results["technique"] = [label_of(row) for row in results.to_dict("records")]
    lines = [results[name] for name in ("panel", "technique", "dataset", "seed")]
    is_complete = results["status"].eq("finished").groupby(lines).transform("all")
    complete = results[is_complete]
    seeds = complete.groupby([complete["panel"], complete["technique"]])["seed"].transform("nunique")
    finished = complete[seeds >= fewest].reset_index(drop=True)
    if finished.empty:
        return finished
    earlier = combine_earlier_networks(finished, uri=source.uri)
    rows = pandas.concat([earlier, finished], ignore_index=True)
    rows["round"] = rows.groupby("key").cumcount() + 1
    rows["requested"], rows["amount"] = rows["amount"], rows["final/amount"]
    return rows


def comparable(rows: DataFrame) -> DataFrame:
    """Return the columns that a comparison reads, methods in the order of LABELS.

    Rows of one label are one method, whatever its settings.
    """
    metrics = [name for name in (*(f"final/{m}" for m in METRICS), *DENSE_METRICS) if name in rows]
    latency = [name for name in (LATENCY, "ipa/latency_ms_p50") if name in rows]
    columns = ["panel", *NETWORK, "technique", "amount", "requested", "seed", "status", *metrics, *latency]
    return rows[columns].sort_values("technique", key=lambda label: label.map(LABELS.index), kind="stable")


def panel_of(row: dict[str, object]) -> str:
    """Return `mlp/digits/10`: the network, the data and the epochs of the training.

    A network with other widths than the study's own has them in its name, `mlp-300-100`, and no other option.
    """
    dataset = str(row["dataset"]).partition("(")[0]
    model, options = parse_method(str(row["model"]))
    widths = options.get("widths")
    if isinstance(widths, (list, tuple)) and tuple(widths) != WIDTHS.get(model):
        model = "-".join((model, *map(str, widths)))
    return f"{model}/{dataset}/{int(str(row['train.epochs']))}"


def label_of(row: dict[str, object]) -> str:
    """Return the method in the words of the page: `weights, taylor, global`; not magnitude and layer."""
    schedule = str(row["schedule"])
    scope = str(row["scope"])
    if schedule.startswith("pq_index"):
        published = ", published" if "published=True" in schedule else ""
        return f"SAP, {scope}{published}"
    if schedule.startswith("iterative"):
        return f"lottery ticket, {scope}"
    granularity = GRANULARITIES[str(row["granularity"]).partition("(")[0]]
    criterion = str(row["criterion"]).partition("(")[0]
    parts = [granularity]
    parts += [criterion] if criterion not in ("l2", "magnitude") else []
    parts += ["global"] if scope == "global" and criterion != "random" else []
    return ", ".join(parts)
