"""How time, memory and disk space grow with the size of a sweep; reading a store of ten thousand runs."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import synthetic
from benchmarks.harness import RESULTS, AtMost, Job, Reported, SideResult, benchmark, main
from benchmarks.processes import python_command, run_command

ORCHESTRATE = python_command("-m", "orchestrator.cli")
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "growth.png"
AMOUNTS = 100  # trials of one dense network
SIZES, ALL_SIZES = (10, 100, 1000), (10, 100, 1000, 10_000)
RUNS, POINTS = 10_000, 100_000
# Runs a command, then prints the peak memory of the driver in MB.
DRIVER = """\
import resource, sys
from orchestrator.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def make_space(trials: int) -> str:
    """Return a space of trials without training: up to 100 amounts of a small network, then further seeds."""
    amounts = [number / AMOUNTS for number in range(min(trials, AMOUNTS))]
    seeds = list(range(max(1, trials // AMOUNTS)))
    axes = f"{{model: [slp], dataset: [digits], technique: [weight], amount: {amounts}, seed: {seeds}}}"
    return f"version: 1\naxes: {axes}\ntrain: {{epochs: 1}}\n"


def run_sweep(folder: Path, trials: int) -> SideResult:
    """Run a sweep of `trials` trials in an empty store."""
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    (folder / "growth.yaml").write_text(make_space(trials))
    words = ["sweep", "--space", "growth.yaml", "--json"]
    output, result = run_command([sys.executable, "-c", DRIVER, *words], folder=folder)
    text, _, memory = output.strip().rpartition("\n")
    if json.loads(text)["ran"] < trials:
        raise ValueError(f"expected {trials} trials to run: {text[:500]}")
    files = [file.stat().st_size for file in (folder / "mlruns").rglob("*") if file.is_file()]
    return replace(
        result, measures={**result.measures, "driver_mb": float(memory), "store_mb": sum(files) / 1e6}
    )


def per_trial(small: SideResult, large: SideResult, trials: int) -> dict[str, float]:
    """Return the difference of two sweeps for each of the `trials` additional trials."""
    return {name: (large.measures[name] - small.measures[name]) / trials for name in large.measures}


def measure_growth(folder: Path, sizes: tuple[int, ...]) -> SideResult:
    """Run one sweep of each size; the measures are increases for each trial, relative to the first size."""
    results = {size: run_sweep(folder, size) for size in sizes}
    increases = {size: per_trial(results[sizes[0]], results[size], size - sizes[0]) for size in sizes[1:]}
    largest, measures = increases[sizes[-1]], {}
    for size, result in results.items():
        measures |= {f"{name} of {size}": value for name, value in result.measures.items()}
    measures |= {"cpu a trial": largest["cpu"], "driver kB a trial": 1000 * largest["driver_mb"]}
    measures |= {"store kB a trial": 1000 * largest["store_mb"]}
    measures["cpu a trial, to that at 100"] = largest["cpu"] / increases[100]["cpu"]
    return SideResult(
        measures=measures, child_cpu_seconds=sum(result.child_cpu_seconds for result in results.values())
    )


def growth_jobs(sizes: tuple[int, ...]) -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        yield Job(
            f"trials without training, up to {sizes[-1]:,}",
            ours=partial(measure_growth, Path(folder), sizes),
            claims=(
                AtMost(0.1, aim=0.06, measure="cpu a trial"),
                AtMost(1.2, measure="cpu a trial, to that at 100", unit=""),
                AtMost(100, measure="driver kB a trial", unit="kB"),
                Reported("store kB a trial", "kB"),
                *(Reported(f"{name} of {size}", unit) for size in sizes for name, unit in CURVES),
            ),
            rounds=1,
            warm=False,
        )


CURVES = (("seconds", "s"), ("cpu", "s"), ("driver_mb", "MB"), ("store_mb", "MB"))


@benchmark
def each_trial() -> Iterator[Job]:
    yield from growth_jobs(SIZES)


@benchmark(full=True)
def each_trial_of_ten_thousand() -> Iterator[Job]:
    yield from growth_jobs(ALL_SIZES)


@benchmark
def large_store() -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        synthetic.write_store(f"sqlite:///{folder}/mlruns/mlflow.db", RUNS)
        for words, bound in ((["status"], 5), (["compare"], 30), (["report"], 60)):
            yield Job(
                f"{words[0]} of {RUNS:,} runs",
                ours=partial(run_orchestrate, [*words, synthetic.NAME], Path(folder)),
                claims=(AtMost(bound), Reported("cpu")),
                rounds=1,
                warm=False,
            )


@benchmark
def large_plan() -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        (Path(folder) / "growth.yaml").write_text(make_space(POINTS))
        yield Job(
            f"plan of {POINTS:,} points",
            ours=partial(run_orchestrate, ["plan", "--space", "growth.yaml"], Path(folder)),
            claims=(AtMost(5), Reported("cpu")),
            rounds=3,
            warm=False,
        )


def run_orchestrate(words: list[str], folder: Path) -> SideResult:
    return run_command([*ORCHESTRATE, *words], folder=folder)[1]


def draw_growth() -> None:
    """Draw the curves of the largest measured growth from the results file."""
    from matplotlib.figure import Figure

    from orchestrator.analysis.plots import MARKERS, OKABE_ITO

    rows = json.loads((RESULTS / "growth.json").read_text())["rows"]
    growth_rows = [row for row in rows if row["benchmark"] == each_trial_of_ten_thousand.__name__]
    growth_rows = growth_rows or [row for row in rows if row["benchmark"] == each_trial.__name__]
    figure = Figure(figsize=(10, 3), layout="constrained")
    labels = {
        "seconds": "wall time, s",
        "cpu": "CPU time, s",
        "driver_mb": "driver, MB",
        "store_mb": "store, MB",
    }
    for axes, (number, (name, label)) in zip(figure.subplots(1, 4), enumerate(labels.items()), strict=True):
        curve = [row for row in growth_rows if row["measure"].startswith(f"{name} of ")]
        sizes = [int(row["measure"].rpartition(" ")[2]) for row in curve]
        values = [row["ours"]["median"] for row in curve]
        axes.plot(sizes, values, color=OKABE_ITO[number], marker=MARKERS[number])
        axes.set(xlim=(0, None), ylim=(0, 1.1 * max(values)), xlabel="trials", title=label)
        axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main(__file__)
