"""What grows with a sweep: time, memory and disk for each trial; and reading a store of ten thousand runs."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import made_up
from benchmarks.harness import RESULTS, AtMost, Done, Job, Told, benchmark, main
from benchmarks.processes import command, python

ORCHESTRATE = python("-m", "orchestrator.cli")
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "growth.png"
AMOUNTS = 100  # trials of one dense network
SIZES, ALL_SIZES = (10, 100, 1000), (10, 100, 1000, 10_000)
RUNS, POINTS = 10_000, 100_000
# Prints the most memory that the driver had, in MB, after all that the command says.
DRIVER = """\
import resource, sys
from orchestrator.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def space(trials: int) -> str:
    """Trials that train nothing: amounts of one small network, and as many seeds as it takes."""
    amounts = [number / AMOUNTS for number in range(min(trials, AMOUNTS))]
    seeds = list(range(max(1, trials // AMOUNTS)))
    axes = f"{{model: [slp], dataset: [digits], technique: [weight], amount: {amounts}, seed: {seeds}}}"
    return f"version: 1\naxes: {axes}\ntrain: {{epochs: 1}}\n"


def swept(folder: Path, trials: int) -> Done:
    """A sweep of so many trials in an empty store."""
    shutil.rmtree(folder / "mlruns", ignore_errors=True)
    (folder / "grown.yaml").write_text(space(trials))
    words = ["sweep", "--space", "grown.yaml", "--json"]
    said, done = command([sys.executable, "-c", DRIVER, *words], folder=folder)
    text, _, memory = said.strip().rpartition("\n")
    if json.loads(text)["ran"] < trials:
        raise ValueError(f"{trials} trials were to be run: {text[:500]}")
    files = [file.stat().st_size for file in (folder / "mlruns").rglob("*") if file.is_file()]
    return replace(done, measures={**done.measures, "driver_mb": float(memory), "store_mb": sum(files) / 1e6})


def above(small: Done, large: Done, trials: int) -> dict[str, float]:
    """For each of `trials` trials that the larger sweep has more."""
    return {name: (large.measures[name] - small.measures[name]) / trials for name in large.measures}


def grown(folder: Path, sizes: tuple[int, ...]) -> Done:
    """One sweep of each size; the measures are of what comes with each trial, from the first size on."""
    found = {size: swept(folder, size) for size in sizes}
    each = {size: above(found[sizes[0]], found[size], size - sizes[0]) for size in sizes[1:]}
    largest, measures = each[sizes[-1]], {}
    for size, done in found.items():
        measures |= {f"{name} of {size}": value for name, value in done.measures.items()}
    measures |= {"cpu a trial": largest["cpu"], "driver kB a trial": 1000 * largest["driver_mb"]}
    measures |= {"store kB a trial": 1000 * largest["store_mb"]}
    measures["cpu a trial, to that at 100"] = largest["cpu"] / each[100]["cpu"]
    return Done(measures=measures, elsewhere=sum(done.elsewhere for done in found.values()))


def growth(sizes: tuple[int, ...]) -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        yield Job(
            f"trials without training, up to {sizes[-1]:,}",
            ours=partial(grown, Path(folder), sizes),
            claims=(
                AtMost(0.1, aim=0.06, measure="cpu a trial"),
                AtMost(1.2, measure="cpu a trial, to that at 100", unit=""),
                AtMost(100, measure="driver kB a trial", unit="kB"),
                Told("store kB a trial", "kB"),
                *(Told(f"{name} of {size}", unit) for size in sizes for name, unit in CURVES),
            ),
            rounds=1,
            warm=False,
        )


CURVES = (("seconds", "s"), ("cpu", "s"), ("driver_mb", "MB"), ("store_mb", "MB"))


@benchmark
def each_trial() -> Iterator[Job]:
    yield from growth(SIZES)


@benchmark(full=True)
def each_trial_of_ten_thousand() -> Iterator[Job]:
    yield from growth(ALL_SIZES)


@benchmark
def a_large_store() -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        made_up.write(f"sqlite:///{folder}/mlruns/mlflow.db", RUNS)
        for words, bound in ((["status"], 5), (["compare"], 30), (["report"], 60)):
            yield Job(
                f"{words[0]} of {RUNS:,} runs",
                ours=partial(asked, [*words, made_up.NAME], Path(folder)),
                claims=(AtMost(bound), Told("cpu")),
                rounds=1,
                warm=False,
            )


@benchmark
def a_large_plan() -> Iterator[Job]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-bench-") as folder:
        (Path(folder) / "grown.yaml").write_text(space(POINTS))
        yield Job(
            f"plan of {POINTS:,} points",
            ours=partial(asked, ["plan", "--space", "grown.yaml"], Path(folder)),
            claims=(AtMost(5), Told("cpu")),
            rounds=3,
            warm=False,
        )


def asked(words: list[str], folder: Path) -> Done:
    return command([*ORCHESTRATE, *words], folder=folder)[1]


def draw() -> None:
    """The curves of the largest growth that was measured, from the results."""
    from matplotlib.figure import Figure

    from orchestrator.analysis.plots import MARKERS, OKABE_ITO

    rows = json.loads((RESULTS / "growth.json").read_text())["rows"]
    found = [row for row in rows if row["benchmark"] == each_trial_of_ten_thousand.__name__]
    found = found or [row for row in rows if row["benchmark"] == each_trial.__name__]
    figure = Figure(figsize=(10, 3), layout="constrained")
    labels = {
        "seconds": "wall time, s",
        "cpu": "CPU time, s",
        "driver_mb": "driver, MB",
        "store_mb": "store, MB",
    }
    for axes, (number, (name, label)) in zip(figure.subplots(1, 4), enumerate(labels.items()), strict=True):
        own = [row for row in found if row["measure"].startswith(f"{name} of ")]
        sizes = [int(row["measure"].rpartition(" ")[2]) for row in own]
        values = [row["ours"]["median"] for row in own]
        axes.plot(sizes, values, color=OKABE_ITO[number], marker=MARKERS[number])
        axes.set(xlim=(0, None), ylim=(0, 1.1 * max(values)), xlabel="trials", title=label)
        axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main(__file__)
