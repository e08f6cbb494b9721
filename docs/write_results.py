"""Run spaces and write their pages, docs/results/SPACE.md: command, machine, revision, picture and tables.

    python docs/write_results.py SPACE [SPACE ...] [--set KEY=VALUES ...]
    python docs/write_results.py --all

`--all` writes every page anew that has a command of its own, by that command, and docs/results/equal.md
from the same store. What the store has is not run again. What a page says under "What it says" is
written by hand, and is kept when the page is written anew.
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
from orchestrator.analysis.orders import turning
from orchestrator.analysis.pareto import earlier_networks
from orchestrator.analysis.plots import accuracy_against_sparsity
from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.analysis.tables import default_differences, markdown, setting_tables, sparsest_table, tables
from orchestrator.data.datasets import split_sizes
from orchestrator.space.space import load_space
from orchestrator.storage.uri import default_uri
from orchestrator.system.provenance import environment
from orchestrator.tracking import Tracker, initialise
from pruning.registry import parse

PAGES = Path(__file__).parent / "results"
SAYS = "## What it says"
COMMAND = re.compile(r"^\$ orchestrate sweep --space (\S+)(.*)$", re.MULTILINE)
TOLERANCE = 0.01


def shown(frame: DataFrame, earlier: DataFrame) -> Iterator[str]:
    """The tables: accuracies, what is left of the networks and what they cost, what pairs of seeds say."""
    found = tables(frame)
    yield markdown(found)
    if not frame.attrs.get("objectives"):
        if found != setting_tables(frame):
            yield markdown(setting_tables(frame))
        yield markdown([sparsest_table(frame, tolerance=TOLERANCE, earlier=earlier)])
    if differences := default_differences(frame):
        yield markdown(differences)
    else:
        yield "No differences are paired: the points of a search share no setting."
    if turned := list(turning(frame)):
        yield "**which axis turns an order**"
        yield "\n".join([turned[0], *([""] if turned[1:] else []), *(f"- {text}" for text in turned[1:])])


def machine() -> str:
    """What ran it: processor, versions, and the revision of the code."""
    facts = environment()
    return (
        f"{facts['cores']} cores ({facts['processor']}), torch {facts['package.torch']}, revision "
        f"{facts['commit']}"
    )


def width(frame: DataFrame) -> str:
    """What the size of each test set leaves to an accuracy."""
    parts = []
    for name, rows in frame[frame["status"] == "finished"].groupby("dataset", sort=False):
        known, options = parse(str(name))
        images, dense = split_sizes(known, **options)[2], float(rows["ipa/accuracy"].mean())
        points = test_set_width(dense, images)
        parts.append(
            f"the {images:,} test images of {name} alone leave ± {points:.1f} points to {100 * dense:.1f}%"
        )
    return (
        f"Intervals are over seeds; {'; '.join(parts)}. See [what the numbers mean](../numbers.md#intervals)."
    )


def write(space: str, options: Sequence[str]) -> None:
    """Sweep, and write the page."""
    command = ["orchestrate", "sweep", "--space", space, *options]
    started = perf_counter()
    swept = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *command[1:], "--json"], stdout=subprocess.PIPE, text=True
    )
    if swept.returncode not in (0, 3):
        raise SystemExit(swept.returncode)
    seconds = perf_counter() - started
    uri = default_uri(Path.cwd())
    initialise(uri)
    tracker = Tracker(uri, space)
    sweep = load_results(tracker, find_sweep(tracker, space))
    frame = sweep.results
    earlier = earlier_networks(frame, sweep.runs.values(), tracker)
    page = PAGES / f"{space}.md"
    before = page.read_text() if page.exists() else f"{SAYS}\n"
    (PAGES / f"{space}.png").write_bytes(accuracy_against_sparsity(frame, title=space))
    took = f"{len(frame)} trials, {seconds:.0f} s on {machine()}."
    same = f"$ {shlex.join(command)}\n" in before
    if same and not json.loads(swept.stdout)["ran"]:  # nothing was left to do: the time is that of before
        took = next((line for line in before.splitlines() if " s on " in line), took)
    parts = [
        f"# {space}",
        load_space(space).about,
        f"```\n$ {shlex.join(command)}\n```",
        took,
        width(frame),
        f"![Accuracy against sparsity, and against MACs where they differ]({space}.png)",
        *shown(frame, earlier),
        f"{SAYS}{before.partition(SAYS)[2]}",
    ]
    page.write_text("\n\n".join(parts))


def recorded() -> Iterator[tuple[str, list[str]]]:
    """Each page's space and options, from the first command on it; pages of other kinds are left out."""
    for page in sorted(PAGES.glob("*.md")):
        found = COMMAND.search(page.read_text())
        if found and found[1] == page.stem:
            yield found[1], shlex.split(found[2])


def main() -> None:
    words = sys.argv[1:]
    if words == ["--all"]:
        for space, options in recorded():
            print(space, *options, flush=True)
            write(space, options)
        subprocess.run([sys.executable, str(PAGES.parent / "write_equal.py")], check=True)
        return
    first = next((number for number, word in enumerate(words) if word.startswith("-")), len(words))
    if not first:
        raise SystemExit(f"no space is named; usage:{__doc__.partition(chr(10))[2]}")
    for space in words[:first]:
        write(space, words[first:])


if __name__ == "__main__":
    main()
