"""Make of the sweeps in a store everything that the page and its figures show, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pandas
from extras import courses, latencies, rounding, spread_causes
from frames import LATENCY, Source, comparable, read_sweep
from pairs import (
    AXES,
    CHOICES,
    GRANULARITIES,
    Record,
    all_pairs,
    correct,
    gain_at_points,
    interval_record,
    of_names,
    turns,
)
from pandas import DataFrame

from orchestrator.analysis.intervals import interval, test_set_width
from orchestrator.analysis.results import combine_sweeps
from orchestrator.data.datasets import split_sizes
from orchestrator.latency.recorded_networks import find_runs
from orchestrator.latency.records import latency_records
from orchestrator.planning.plan import make_plan
from orchestrator.space.space import load_space
from orchestrator.system.provenance import environment
from orchestrator.tracking import open_store

ONE_SHOT = ("axis-digits", "axis-mnist", "axis-resnet")
SHARES = {"effective": "final/macs_effective", "physical": "final/macs_physical"}
POINTS = (  # (panel, first, second, axis, value): what was known before, and one common share
    *(("mlp/digits/10", "weights", "units", "effective", share) for share in (0.26, 0.1, 0.014)),
    *(("mlp/mnist-5k/10", "weights", "units", "effective", share) for share in (0.16, 0.1, 0.04)),
    *(("mlp/mnist-5k/50", "weights", "units", "effective", share) for share in (0.16, 0.1, 0.04)),
    *(("mlp/digits/50", "weights", "units", "effective", share) for share in (0.26, 0.1, 0.014)),
)
ROUNDING_TESTS = ("first", "last", "accuracy")
FACTS = ("processor", "cores", "python", "package.torch", "package.numpy", "commit")


def collect(source: Source, spaces: Sequence[str]) -> Record:
    """Return the numbers of the study from the sweeps of these of its spaces."""
    timed = timed_networks(source.uri)
    results: Record = {
        "latency": latencies(read_sweep("axis-latency", source, fewest=1), timed) if timed else {}
    }
    rows = pandas.concat(
        [comparable(read_sweep(space, source)) for space in ONE_SHOT if space in spaces], ignore_index=True
    )
    results["no_retraining"] = compare(rows, results["latency"])
    results["fine_tuned"] = compare(comparable(read_sweep("axis-finetune", source)), {})
    sap = read_sweep("sap", source)
    results["rewound"] = compare(comparable(sap), {}, names=("sparsity", "effective"))
    results["courses"] = courses(sap)
    results["rounding"] = rounding(read_sweep("sap-rounding", source))
    tested = [{"gains": {name: r[name] for name in ROUNDING_TESTS}} for r in results["rounding"]]
    results["rounding_tests"] = correct(tested)
    results["causes"] = spread_causes(read_sweep("splits", source)) if "splits" in spaces else {}
    results["test_width"] = {name: test_width(name) for name in dict.fromkeys(map(str, rows["dataset"]))}
    results["size"] = {space: size(space) for space in spaces}
    results["runs"] = run_counts(source, spaces)
    facts = environment()
    results["machine"] = {name: facts[name] for name in FACTS}
    return results


def size(space: str) -> Record:
    """The trials and the dense trainings of a space, whole."""
    plan = make_plan(load_space(str(Path(__file__).parent / f"{space}.yaml")))
    return {"trials": len(plan.trials), "dense": len(plan.dense)}


def run_counts(source: Source, spaces: Sequence[str]) -> Record:
    """The finished trials that the numbers rest on, each once, and their dense trainings."""
    sweeps = [sweep for space in spaces for sweep in source.sweeps(space)]
    results = combine_sweeps(sweeps, uri=source.uri)
    finished = results[results["status"] == "finished"]
    return {"trials": len(finished), "dense": int(finished["dense_key"].nunique())}


def test_width(dataset: str) -> Record:
    """The images of a test set, and half of the interval that they alone leave an accuracy of 95%."""
    images = split_sizes(dataset)[2]
    return {"images": images, "at_95": round(test_set_width(0.95, images) / 100, 5)}


def compare(rows: DataFrame, latency: Record, names: Sequence[str] = AXES) -> Record:
    """Return the curves of a set of sweeps, the tests of its two families, and how many orders turn."""
    if latency:
        rows = with_latency(rows, latency)
        # No claim rests on times that were disturbed: they are drawn, and not tested.
        names = (*names, "latency") if latency["reliable"] == latency["networks"] else names
    pairs = all_pairs(rows, names)
    everything = deepcopy(pairs)
    all_tests = correct(everything)
    points, patterns = gain_at_points(rows, POINTS), two_to_four(rows)
    granularities, choices = of_names(pairs, GRANULARITIES), of_names(pairs, CHOICES)
    if not granularities:  # every pair of a smaller set
        granularities = pairs
    families = {
        "granularity": correct([*granularities, *points]),
        "choice": correct(choices),
        "pattern": correct(patterns),
    }
    return {
        "seeds": seeds(rows),
        "dense": dense(rows),
        "curves": curves(rows),
        "pairs": granularities + choices,
        "points": points + patterns,
        "tests": families,
        "census": {"tests": all_tests, "panels": census(everything)},
    }


def seeds(rows: DataFrame) -> Record:
    """Panel -> the fewest and the most seeds of a method."""
    counts = rows.groupby(["panel", "technique"], sort=False)["seed"].nunique()
    panels = counts.groupby("panel", sort=False)
    return {str(panel): [int(of_panel.min()), int(of_panel.max())] for panel, of_panel in panels}


def dense(rows: DataFrame) -> Record:
    """The accuracy of the dense networks by panel, a value per seed."""
    once = rows.drop_duplicates(["panel", "seed"])
    return {
        str(panel): interval_record(interval(list(of_panel["ipa/accuracy"])))
        for panel, of_panel in once.groupby("panel", sort=False)
    }


def census(pairs: Sequence[Record]) -> Record:
    """Count by panel the pairs of methods, and those that differ from axis to axis.

    `signs`: their mean gains have both signs; `halves`: so, or one is less than half of another; `turns`:
    both signs after the correction.
    """
    counts: Record = {}
    for pair in pairs:
        of_panel = counts.setdefault(pair["panel"], {"pairs": 0, "signs": 0, "halves": 0, "turns": 0})
        means = [gain["mean"] for gain in pair["gains"].values() if gain]
        has_both = min(means, default=0) < 0 < max(means, default=0)
        sizes = list(map(abs, means))
        of_panel["pairs"] += 1
        of_panel["signs"] += has_both
        of_panel["halves"] += has_both or max(sizes, default=0) > 2 * min(sizes, default=0)
        of_panel["turns"] += turns(pair)
    return counts


def curves(rows: DataFrame) -> Record:
    """Panel -> method -> points [amount, sparsity, shares of MACs, latency or None, mean, low, high]."""
    drawn: Record = {}
    for panel, of_panel in rows.groupby("panel", sort=False):
        # SAP removes another amount for every seed: its rounds are the points.
        numbered = of_panel.assign(round=of_panel.groupby(["technique", "seed"]).cumcount())
        for label, of_method in numbered.groupby("technique", sort=False):
            points = [point(group) for _, group in of_method.groupby("round")]
            drawn.setdefault(str(panel), {})[str(label)] = points
    return drawn


def point(group: DataFrame) -> list[float | None]:
    mean = interval(list(group["final/accuracy"]))
    shares = [(group[name] / group["final/macs_dense"]).mean() for name in SHARES.values()]
    latency = group[LATENCY].mean() if LATENCY in group and group[LATENCY].notna().all() else None
    values = [group["amount"].mean(), group["final/sparsity"].mean(), *shares, latency]
    ends = [mean.mean, *(mean.mean if end is None else end for end in (mean.low, mean.high))]
    return [None if value is None else round(float(value), 5) for value in (*values, *ends)]


def two_to_four(rows: DataFrame) -> list[Record]:
    """2:4 against single weights and channels, at its own sparsity and at its own multiply-adds."""
    points = []
    for panel, of_panel in rows.groupby("panel", sort=False):
        pattern = of_panel[of_panel["technique"] == "2:4"]
        if pattern.empty:
            continue
        sparsity = float(pattern["final/sparsity"].iloc[0])
        share = float((pattern["final/macs_effective"] / pattern["final/macs_dense"]).iloc[0])
        for other in ("weights", "units", "channels"):
            points += [(str(panel), "2:4", other, "sparsity", sparsity)]
            points += [(str(panel), "2:4", other, "effective", share)]
    return gain_at_points(rows, points)


def with_latency(rows: DataFrame, latency: Record) -> DataFrame:
    """Add the measured share of the dense network's time to the rows of settings that were timed."""
    shares = {(s["panel"], s["method"], round(s["amount"], 6)): s["share"] for s in latency["shares"]}
    keys = zip(rows["panel"], rows["technique"], rows["requested"].round(6), strict=True)
    values = pandas.Series([shares.get(key) for key in keys], index=rows.index, dtype=float)
    return rows.assign(**{LATENCY: values, "ipa/latency_ms_p50": 1.0})


def timed_networks(uri: str) -> list[Record]:
    """Return how long each run of `axis-latency` that was timed takes, one image at a time."""
    runs = find_runs(open_store(uri), ["axis-latency"])
    return [dict(record) for record in latency_records(runs, [1])]
