"""Run spaces and write their pages, docs/results/SPACE.md: command, machine, revision, picture and tables.

    python docs/write_results.py SPACE [SPACE ...] [--set KEY=VALUES ...]
    python docs/write_results.py --all

`--all` updates every page that has its own command, by that command, and docs/results/equal.md from the same
store. Stored results are not run again. The section "What it says" is written by hand and kept.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from pandas import DataFrame

from orchestrator.analysis.intervals import test_set_width
from orchestrator.analysis.pareto import earlier_networks
from orchestrator.analysis.plots import accuracy_against_sparsity
from orchestrator.analysis.rankings import turning
from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.analysis.tables import default_differences, markdown, setting_tables, sparsest_table, tables
from orchestrator.data.datasets import split_sizes
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.system.provenance import environment
from orchestrator.tracking import Tracker, initialise
from pruning.registry import parse_method

PAGES = Path(__file__).parent / "results"
CONCLUSION = "## What it says"
COMMAND = re.compile(r"^\$ orchestrate sweep --space (\S+)(.*)$", re.MULTILINE)
TOLERANCE = 0.01


def result_tables(frame: DataFrame, earlier: DataFrame) -> Iterator[str]:
    """Yield the tables of accuracies, costs, and paired differences."""
    accuracies = tables(frame)
    yield markdown(accuracies)
    if not frame.attrs.get("objectives"):
        if accuracies != setting_tables(frame):
            yield markdown(setting_tables(frame))
        yield markdown([sparsest_table(frame, tolerance=TOLERANCE, earlier=earlier)])
    if differences := default_differences(frame):
        yield markdown(differences)
    else:
        yield "There are no paired differences: the points of a search share no setting."
    if orders := list(turning(frame)):
        yield "**which axis turns an order**"
        yield "\n".join([orders[0], *([""] if orders[1:] else []), *(f"- {text}" for text in orders[1:])])


def machine() -> str:
    """Return the processor, the versions, and the revision of the code."""
    facts = environment()
    return (
        f"{facts['cores']} cores ({facts['processor']}), torch {facts['package.torch']}, revision "
        f"{facts['commit']}"
    )


def width(frame: DataFrame) -> str:
    """Return the uncertainty of an accuracy from the size of each test set."""
    parts = []
    for name, rows in frame[frame["status"] == "finished"].groupby("dataset", sort=False):
        dataset, options = parse_method(str(name))
        images, dense = split_sizes(dataset, **options)[2], float(rows["ipa/accuracy"].mean())
        points = test_set_width(dense, images)
        parts.append(
            f"the {images:,} test images of {name} alone leave ± {points:.1f} points to {100 * dense:.1f}%"
        )
    return (
        f"Intervals are over seeds; {'; '.join(parts)}. See [what the numbers mean](../numbers.md#intervals)."
    )


def write(space: str, options: Sequence[str]) -> None:
    """Run a sweep and write its page."""
    command = ["orchestrate", "sweep", "--space", space, *options]
    started = perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *command[1:], "--json"], stdout=subprocess.PIPE, text=True
    )
    if process.returncode not in (0, 3):
        raise SystemExit(process.returncode)
    seconds = perf_counter() - started
    uri = default_uri(Path.cwd())
    initialise(uri)
    tracker = Tracker(uri, space)
    sweep = load_results(tracker, find_sweep(tracker, space))
    frame = sweep.results
    earlier = earlier_networks(frame, sweep.runs.values(), tracker)
    page = PAGES / f"{space}.md"
    old_page = page.read_text() if page.exists() else f"{CONCLUSION}\n"
    (PAGES / f"{space}.png").write_bytes(accuracy_against_sparsity(frame, title=space))
    duration = f"{len(frame)} trials, {seconds:.0f} s on {machine()}."
    is_same_command = f"$ {shlex.join(command)}\n" in old_page
    if is_same_command and not json.loads(process.stdout)["ran"]:  # keep the time of the run that trained
        duration = next((line for line in old_page.splitlines() if " s on " in line), duration)
    parts = [
        f"# {space}",
        load_space(space).about,
        f"```\n$ {shlex.join(command)}\n```",
        duration,
        width(frame),
        f"![Accuracy against sparsity, and against MACs where they differ]({space}.png)",
        *result_tables(frame, earlier),
        f"{CONCLUSION}{old_page.partition(CONCLUSION)[2]}",
    ]
    page.write_text("\n\n".join(parts))


def recorded_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each page's space and options, from its first command; skip pages of other kinds."""
    for page in sorted(PAGES.glob("*.md")):
        match = COMMAND.search(page.read_text())
        if match and match[1] == page.stem:
            yield match[1], shlex.split(match[2])


def main() -> None:
    words = sys.argv[1:]
    if words == ["--all"]:
        for space, options in recorded_commands():
            print(space, *options, flush=True)
            write(space, options)
        subprocess.run([sys.executable, str(PAGES.parent / "write_equal.py")], check=True)
        return
    first = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    if not first:
        raise SystemExit(f"name at least one space; usage:{__doc__.partition(chr(10))[2]}")
    for space in words[:first]:
        write(space, words[first:])


if __name__ == "__main__":
    main()
