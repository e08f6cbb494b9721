"""Write docs/results/transfer.md: taken on from the digits 0 to 4 to 5 to 9, against from scratch.

    python docs/write_transfer.py SWEEP ...

Reads sweeps of `transfer`, each --from another network of one sweep; runs nothing. What the page says
under "What it says" is written by hand, and is kept when the page is written anew.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import orchestrator
from orchestrator.analysis.intervals import DIFFERENCE, Interval, interval
from orchestrator.analysis.paired import verdict
from orchestrator.analysis.plots import MARKERS, OKABE_ITO
from orchestrator.analysis.tables import Table, markdown
from orchestrator.data.datasets import split_sizes
from orchestrator.formatting import format_percent
from orchestrator.storage.uri import default_uri
from orchestrator.system.provenance import environment
from orchestrator.tracking import RunRecord, Tracker
from pruning.registry import parse

# What a network has lost in the end, how, and by which amount.
FINALS = (
    ("nothing more is pruned", "weight", 0.0),
    ("80% of the weights", "weight", 0.8),
    ("half of the channels", "structured", 0.5),
)
PAGE = Path(__file__).parent / "results" / "transfer.md"
SAYS = "## What it says"
TASK = """\
A network is trained on the digits 0 to 4 and pruned there, then taken on to the digits 5 to 9, of which
there are few images: `weights` starts from its weights, `masked` from its weights under its masks, which
stay. The head is drawn anew. As the networks from scratch, all are trained for 100 epochs, pruned to the
amount, and fine-tuned for 10 more. Five seeds, 180 test images; the ancestor is one network, so that what
differs between seeds is the new head and the order of the images and, from scratch, the whole draw."""


@dataclass(frozen=True)
class Line:
    """One way to come to a network, and its trials."""

    label: str
    rows: pd.DataFrame

    def at(self, images: int) -> Mapping[int, float]:
        """Seed -> accuracy."""
        here = self.rows[self.rows["images"] == images]
        return dict(zip(here["seed"], here["final/accuracy"], strict=True))

    def mean(self, images: int) -> Interval:
        return interval(list(self.at(images).values()))


def read(sweeps: Sequence[str]) -> pd.DataFrame:
    """The trials of all sweeps, each with what it descends from and the number of its images."""
    tracker = Tracker(default_uri(Path.cwd()), "transfer")
    frames = []
    for sweep in sweeps:
        frame = orchestrator.results(sweep)
        ancestor = tracker.get_run(tracker.get_run(sweep).tags["ancestor"])
        frame["ancestor"] = called(ancestor)
        frames.append(frame)
    found = pd.concat(frames, ignore_index=True)
    found["images"] = [
        split_sizes(name, **options)[0] for name, options in map(parse, found["dataset"].astype(str))
    ]
    found.loc[found["start"] == "scratch", "ancestor"] = ""
    return found.drop_duplicates("key")


def called(ancestor: RunRecord) -> str:
    """How the ancestor was pruned."""
    if ancestor.tags["kind"] == "dense":
        return "dense"
    return f"{ancestor.params['technique']} {format_percent(float(ancestor.params['amount']))}"


def shell(commands: Sequence[str]) -> str:
    """As a person types them: what all have in common, the data sets, once."""
    data = next(word for word in shlex.split(commands[-1]) if word.startswith("dataset="))
    quoted, short = shlex.quote(data), '"$DATA"'
    return "\n".join([f"$ DATA={quoted}", *(f"$ {command.replace(quoted, short)}" for command in commands)])


def lines(found: pd.DataFrame, technique: str, amount: float) -> list[Line]:
    """From scratch first, then every ancestor and start that were pruned in the end by this much."""
    here = found[found["amount"] == amount]
    # Where nothing is removed, it does not matter in which way.
    here = here[(here["technique"] == technique) | ((amount == 0) & (here["start"] != "scratch"))]
    scratch = Line("scratch", here[here["start"] == "scratch"])
    others = [
        Line(f"{ancestor}, {start}", rows)
        for (ancestor, start), rows in here[here["start"] != "scratch"].groupby(
            ["ancestor", "start"], sort=False
        )
    ]
    return [scratch, *others]


def gain(line: Line, base: Line, images: int) -> Interval:
    """The mean difference over the seeds of both, with its interval."""
    own, other = line.at(images), base.at(images)
    return interval([own[seed] - other[seed] for seed in own if seed in other], bounds=DIFFERENCE)


def gains(all_lines: Sequence[Line]) -> list[list[Interval]]:
    """For each number of images, what every line but the first gains on it."""
    base = all_lines[0]
    return [
        [gain(line, base, count) for line in all_lines[1:]] for count in sorted(base.rows["images"].unique())
    ]


def section(title: str, all_lines: Sequence[Line]) -> list[str]:
    """Two tables: accuracies by number of images, and what is gained on scratch, seed by seed."""
    counts = sorted(all_lines[0].rows["images"].unique())
    header = ["images", *(line.label for line in all_lines)]
    rows = [[str(count), *(str(line.mean(count)) for line in all_lines)] for count in counts]
    differences = [
        [str(count), *(one.text(sign="+") for one in row)]
        for count, row in zip(counts, gains(all_lines), strict=True)
    ]
    return [
        markdown([Table(f"{title}: test accuracy", header, rows)]),
        markdown([Table(f"{title}: minus scratch, paired by seed", [header[0], *header[2:]], differences)]),
    ]


def picture(panels: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Accuracy against the number of training images, with 95% intervals; a panel for each final amount."""
    height = -(-len(panels) // 3)
    figure, axes = plt.subplots(height, 3, figsize=(15, 4 * height), sharey="row", squeeze=False)
    for axis, (title, all_lines) in zip(axes.flat, panels.items(), strict=True):
        for line, colour, marker in zip(all_lines, OKABE_ITO, MARKERS, strict=False):
            counts = sorted(line.rows["images"].unique())
            means = [line.mean(count) for count in counts]
            ends = [
                [0.0 if mean.low is None else 100 * (mean.mean - mean.low) for mean in means],
                [0.0 if mean.high is None else 100 * (mean.high - mean.mean) for mean in means],
            ]
            values, look = [100 * mean.mean for mean in means], {"color": colour, "marker": marker}
            axis.errorbar(counts, values, ends, label=line.label, capsize=3, **look)
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set(title=title, xlabel="training images of the digits 5 to 9")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for row in axes:
        row[0].set_ylabel("test accuracy in %")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    found = read(sys.argv[1:])
    tracker = Tracker(default_uri(Path.cwd()), "transfer")
    panels = {
        f"{model.partition('(')[0]}, {title}": lines(rows, technique, amount)
        for model, rows in found.groupby("model", sort=False)
        for title, technique, amount in FINALS
    }
    picture(panels, PAGE.with_suffix(".png"))
    rows = [tracker.get_run(sweep) for sweep in sys.argv[1:]]
    first = tracker.get_run(tracker.get_run(rows[0].tags["ancestor"]).tags["mlflow.parentRunId"])
    commands = shell([row.tags["command"] for row in (first, *rows)])
    others = " and ".join(f"`{model}`" for model in list(found["model"].unique())[1:])
    every = [one for all_lines in panels.values() for row in gains(all_lines) for one in row]
    facts = environment()
    before = PAGE.read_text() if PAGE.exists() else f"{SAYS}\n"
    parts = [
        "# transfer",
        TASK,
        f"The ancestors are runs of `{first.name}.yaml`, and of the same with {others}:",
        f"```yaml\n{tracker.read_text(first, 'space.yaml')}```",
        f"```\n{commands}\n```",
        f"{len(found)} trials on {facts['cores']} cores ({facts['processor']}), revision {facts['commit']}.",
        f"Differences to scratch, over all tables of this page: {verdict(every)}",
        f"![Accuracy against the number of images]({PAGE.stem}.png)",
        *(part for title, all_lines in panels.items() for part in section(title, all_lines)),
        f"{SAYS}{before.partition(SAYS)[2]}",
    ]
    PAGE.write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
