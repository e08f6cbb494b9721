"""Run two sides of a job in turns, check that they compute the same, and write results/FILE.json.

A benchmark file has functions that yield jobs, and ends with `main`:

    from benchmarks.harness import AtLeast, AtMost, Job, benchmark, main

    @benchmark                                      # @benchmark(full=True): only with --full
    def step() -> Iterator[Job]:
        ...                                         # set-up that is not timed: networks, images
        yield Job(
            "masked step, mlp, batch 256",          # the row's name
            ours=masked_step,                       # a call without arguments
            baseline=dense_step,                    # the other side, or None
            baseline_name="the dense step",
            claims=(AtMost(1.03),),                 # ours / baseline is at most 1.03
            rounds=15, number=20,                   # 15 turns of 20 calls each
            equal="bit for bit",                    # in words; `is_equal` compares what both sides return
        )

    if __name__ == "__main__":
        main(__file__)

`AtMost(x)` bounds ours / baseline, `AtLeast(x)` bounds baseline / ours (the speedup). Without a baseline
both bound ours. `limit` is the best possible value, such as the cost of the work itself; `aim` is a goal
beyond the target.

A side returns the value to compare, or a `SideResult`. Its `measures` are further figures by name; a claim
names its measure and unit. The measure "seconds" is the wall time of a call unless the side sets it. Its
`child_cpu_seconds` is the CPU time of processes that the side started, which does not count as other load.

Equality is checked in every turn. The first turn is a warm-up unless `warm=False`.

`python -m benchmarks.FILE [--full] [--dry] [NAME ...]` runs a file. `--dry` writes no results;
names select functions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import psutil

from orchestrator.system.files import replace_file
from orchestrator.system.machine import MachineLoad, watch_load
from orchestrator.system.provenance import environment

RESULTS = Path(__file__).parent / "results"
FACTS = ("processor", "cores", "python", "package.torch", "package.ray", "package.mlflow", "commit")
Row = dict[str, Any]  # JSON
WALL = "seconds"


@dataclass(frozen=True)
class SideResult:
    """The result of one call of a side."""

    value: Any = None  # compared with the other side
    measures: Mapping[str, float] = field(default_factory=dict)
    child_cpu_seconds: float = 0.0


@dataclass(frozen=True)
class AtMost:
    """An upper bound of ours / baseline; of ours, without a baseline."""

    bound: float
    aim: float | None = None
    limit: float | None = None
    measure: str = WALL
    unit: str = "s"

    def is_reached(self, value: float) -> bool:
        return value <= self.bound


@dataclass(frozen=True)
class AtLeast(AtMost):
    """A lower bound of baseline / ours; of ours, without a baseline."""

    def is_reached(self, value: float) -> bool:
        return value >= self.bound


@dataclass(frozen=True)
class Reported:
    """A figure without a target; the ratio is ours / baseline."""

    measure: str = WALL
    unit: str = "s"


Claim = AtMost | AtLeast | Reported
Side = Callable[[], Any]  # returns the value to compare, or a SideResult


def is_bitwise_equal(ours: Any, baseline: Any) -> bool:
    """Return whether tensors, numbers, texts, or lists of them are equal."""
    import torch

    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, baseline)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(baseline) and all(map(is_bitwise_equal, ours, baseline))
    return bool(ours == baseline)


@dataclass(frozen=True)
class Job:
    """Two sides to measure: one row of the table for each claim. `note` is a sentence below the table."""

    what: str
    ours: Side
    baseline: Side | None = None
    baseline_name: str = ""
    claims: tuple[Claim, ...] = (Reported(),)
    rounds: int = 5
    number: int = 1
    warm: bool = True
    equal: str = ""
    is_equal: Callable[[Any, Any], bool] = is_bitwise_equal
    note: str = ""


Benchmark = Callable[[], Iterator[Job]]
_benchmarks: dict[str, dict[str, tuple[Benchmark, bool]]] = {}


def benchmark(function: Benchmark | None = None, *, full: bool = False) -> Any:  # with and without arguments
    """Register a function that yields jobs as a benchmark of its file; a `full` benchmark takes minutes."""
    if function is None:
        return lambda decorated: benchmark(decorated, full=full)
    file = str(Path(function.__code__.co_filename).resolve())
    _benchmarks.setdefault(file, {})[function.__name__] = (function, full)
    return function


def run_job(job: Job) -> list[Row]:
    """Return a row for each claim of a job. Raises ValueError if the sides did not compute the same."""
    turns: list[tuple[SideResult, SideResult | None]] = []
    if job.warm:
        _run_turn(job, first=True)
    load, since, living = watch_load(), perf_counter(), _seconds_of_children()
    for number in range(job.rounds):
        turns.append(_run_turn(job, first=number % 2 == 0))
    child_seconds = sum(side.child_cpu_seconds for turn in turns for side in turn if side is not None)
    # Those of workers that stay, such as a loader's; the others are in `child_cpu_seconds`.
    child_seconds += sum(now - living.get(pid, 0.0) for pid, now in _seconds_of_children().items())
    measured = load()
    others = max(0.0, measured.others - child_seconds / (perf_counter() - since))
    return [_make_row(job, claim, turns, replace(measured, others=others)) for claim in job.claims]


def _seconds_of_children() -> dict[int, float]:
    """Return the CPU seconds of every process below this one that lives."""
    seconds = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds[child.pid] = float(times.user + times.system)
    return seconds


def _run_turn(job: Job, *, first: bool) -> tuple[SideResult, SideResult | None]:
    """Run both sides once, ours `first` or last."""
    if job.baseline is None:
        return _time_side(job.ours, job.number), None
    if first:
        ours = _time_side(job.ours, job.number)
        baseline = _time_side(job.baseline, job.number)
    else:
        baseline = _time_side(job.baseline, job.number)
        ours = _time_side(job.ours, job.number)
    if job.equal and not job.is_equal(ours.value, baseline.value):
        raise ValueError(f"{job.what}: the sides differ")
    return ours, baseline


def _time_side(side: Side, number: int) -> SideResult:
    started = perf_counter()
    for _ in range(number):
        value = side()
    seconds = (perf_counter() - started) / number
    result = value if isinstance(value, SideResult) else SideResult(value)
    return replace(result, measures={WALL: seconds, **result.measures})


def _make_row(
    job: Job, claim: Claim, turns: list[tuple[SideResult, SideResult | None]], load: MachineLoad
) -> Row:
    name = claim.measure
    ours = [result.measures[name] for result, _ in turns]
    baseline = [result.measures[name] for _, result in turns if result is not None]
    values = [_ratio(claim, *pair) for pair in zip(ours, baseline, strict=True)] if baseline else ours
    bounded = None if isinstance(claim, Reported) else claim
    return {
        "what": job.what,
        "measure": name,
        "unit": claim.unit,
        "ours": _quartiles(ours),
        "baseline": _quartiles(baseline) if baseline else None,
        "baseline_name": job.baseline_name,
        "ratio": _quartiles(values) if baseline else None,
        "kind": type(claim).__name__,
        "target": bounded and bounded.bound,
        "aim": bounded and bounded.aim,
        "limit": bounded and bounded.limit,
        "reached": None if bounded is None else bounded.is_reached(median(values)),
        "equal": job.equal,
        "rounds": job.rounds,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": asdict(load),
        "busy": load.busy,
        "note": job.note,
    }


def _ratio(claim: Claim, ours: float, baseline: float) -> float:
    return baseline / ours if isinstance(claim, AtLeast) else ours / baseline


def _quartiles(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median(values), "low": low, "high": high}


def main(file: str) -> None:
    """Run the benchmarks of a file that the command line selects, and write its results."""
    words = sys.argv[1:]
    names = [word for word in words if not word.startswith("--")]
    benchmarks = _benchmarks[str(Path(file).resolve())]
    if unknown := set(names) - benchmarks.keys():
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}; available: {', '.join(benchmarks)}")
    everything = "--full" in words
    selected = names or [name for name, (_, full) in benchmarks.items() if everything or not full]
    results = RESULTS / f"{Path(file).stem}.json"
    for name in benchmarks:
        if name not in selected:
            continue
        make_jobs, _ = benchmarks[name]
        rows = [_print_row({"benchmark": name, **row}) for job in make_jobs() for row in run_job(job)]
        if "--dry" not in words:
            save_rows(results, name, rows, benchmarks=list(benchmarks))


def save_rows(path: Path, name: str, rows: list[Row], *, benchmarks: list[str]) -> None:
    """Replace a benchmark's rows in a results file; rows of benchmarks that no longer exist are dropped."""
    old_rows = json.loads(path.read_text())["rows"] if path.exists() else []
    order = {benchmark: number for number, benchmark in enumerate(benchmarks)}
    other_rows = [row for row in old_rows if row["benchmark"] in order and row["benchmark"] != name]
    facts = environment()
    for row in rows:
        row["environment"] = {fact: facts[fact] for fact in FACTS}
    all_rows = sorted(other_rows + rows, key=lambda row: order[row["benchmark"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"rows": all_rows}, indent=1) + "\n")


def _print_row(row: Row) -> Row:
    """Print a row, and return it."""
    value, unit = (row["ratio"], "x") if row["ratio"] else (row["ours"], f" {row['unit']}")
    medians = f" ({row['ours']['median']:.4g} / {row['baseline']['median']:.4g})" if row["baseline"] else ""
    reached = "reached" if row["reached"] else "missed"
    target = "" if row["target"] is None else f"; target {row['target']:g}: {reached}"
    busy = f"; {row['busy']}" if row["busy"] else ""
    print(f"{row['what']} [{row['measure']}] {value['median']:.4g}{unit}{medians}{target}{busy}", flush=True)
    return row


def benchmark_files(folder: Path) -> list[str]:
    """Return the module names of the files in a folder that end with a call of `main`."""
    end = '\nif __name__ == "__main__":\n    main(__file__)\n'
    return sorted(file.stem for file in folder.glob("*.py") if file.read_text().endswith(end))
