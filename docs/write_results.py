"""Run a space and write its page, docs/results/SPACE.md: the command, the time, the picture and the tables.

    python docs/write_results.py SPACE [--set KEY=VALUES ...]

What a page says under "What it says" is written by hand, and is kept when the page is written anew.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from pandas import DataFrame

from orchestrator.comparing.figures import accuracy_against_sparsity
from orchestrator.comparing.records import results
from orchestrator.comparing.tables import listed, markdown, tables
from orchestrator.space import load_space
from orchestrator.store.environment import environment

PAGES = Path(__file__).parent / "results"
SAYS = "## What it says"


def shown(frame: DataFrame) -> list[str]:
    """The tables, and where they show accuracies alone, what is left of the networks and what they cost."""
    found = tables(frame)
    return [markdown(found)] if found == listed(frame) else [markdown(found), markdown(listed(frame))]


def main() -> None:
    space, *options = sys.argv[1:]
    command = ["orchestrate", "sweep", "--space", space, *options]
    started = perf_counter()
    swept = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *command[1:], "--json"], stdout=subprocess.PIPE, text=True
    )
    if swept.returncode not in (0, 3):
        raise SystemExit(swept.returncode)
    seconds = perf_counter() - started
    frame = results(space)
    page = PAGES / f"{space}.md"
    before = page.read_text() if page.exists() else f"{SAYS}\n"
    kept = before.partition(SAYS)[2]
    (PAGES / f"{space}.png").write_bytes(accuracy_against_sparsity(frame, title=space))
    facts = environment()
    machine = f"{facts['cores']} cores ({facts['processor']}), torch {facts['package.torch']}"
    took = f"{len(frame)} trials, {seconds:.0f} s on {machine}."
    if not json.loads(swept.stdout)["ran"]:  # nothing was left to do: the time is that of before
        took = next((line for line in before.splitlines() if " s on " in line), took)
    parts = [
        f"# {space}",
        load_space(space).about,
        f"```\n$ {shlex.join(command)}\n```",
        took,
        f"![Accuracy against sparsity]({space}.png)",
        *shown(frame),
        f"{SAYS}{kept}",
    ]
    page.write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
