"""Write docs/results/transfer.md: transfer from the digits 0 to 4 to 5 to 9, against training from scratch.

    python docs/write_transfer.py SWEEP ...

It reads sweeps of `transfer`, each --from another source model of one sweep, and runs nothing. The section
"What it says" is written by hand and kept.
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
from pruning.registry import parse_method

# title, technique and amount of the final pruning
FINALS = (
    ("nothing more is pruned", "weight", 0.0),
    ("80% of the weights", "weight", 0.8),
    ("half of the channels", "structured", 0.5),
)
PAGE = Path(__file__).parent / "results" / "transfer.md"
CONCLUSION = "## What it says"
TASK = """\
A source model is trained and pruned on the digits 0 to 4, then transferred to few images of the digits 5
to 9. `weights` starts from its weights, `masked` from its weights under its masks, which stay on. The output
layer is initialised. All networks, including those from scratch, are trained for 100 epochs, pruned to the
amount, and fine-tuned for 10 more. There are five seeds and 180 test images. The source model is one network:
seeds differ in the new output layer and the order of images and, from scratch, in all initial weights."""


@dataclass(frozen=True)
class Line:
    """The trials of one source model and start, or of training from scratch."""

    label: str
    rows: pd.DataFrame

    def at(self, images: int) -> Mapping[int, float]:
        """Return the accuracies by seed."""
        rows = self.rows[self.rows["images"] == images]
        return dict(zip(rows["seed"], rows["final/accuracy"], strict=True))

    def mean(self, images: int) -> Interval:
        return interval(list(self.at(images).values()))


def read(sweeps: Sequence[str]) -> pd.DataFrame:
    """Return the trials of all sweeps, with their source model and number of training images."""
    tracker = Tracker(default_uri(Path.cwd()), "transfer")
    frames = []
    for sweep in sweeps:
        frame = orchestrator.results(sweep)
        source = tracker.get_run(tracker.get_run(sweep).tags["ancestor"])
        frame["source"] = source_label(source)
        frames.append(frame)
    trials = pd.concat(frames, ignore_index=True)
    trials["images"] = [
        split_sizes(name, **options)[0] for name, options in map(parse_method, trials["dataset"].astype(str))
    ]
    trials.loc[trials["start"] == "scratch", "source"] = ""
    return trials.drop_duplicates("key")


def source_label(source: RunRecord) -> str:
    """Return how the source model was pruned."""
    if source.tags["kind"] == "dense":
        return "dense"
    return f"{source.params['technique']} {format_percent(float(source.params['amount']))}"


def shell(commands: Sequence[str]) -> str:
    """Return the commands as shell lines, with their common data sets in a variable."""
    data = next(word for word in shlex.split(commands[-1]) if word.startswith("dataset="))
    quoted, short = shlex.quote(data), '"$DATA"'
    return "\n".join([f"$ DATA={quoted}", *(f"$ {command.replace(quoted, short)}" for command in commands)])


def lines(trials: pd.DataFrame, technique: str, amount: float) -> list[Line]:
    """Return the line from scratch, then one for each source model and start, at one final pruning."""
    trials = trials[trials["amount"] == amount]
    # At amount 0 the technique has no effect.
    trials = trials[(trials["technique"] == technique) | ((amount == 0) & (trials["start"] != "scratch"))]
    is_scratch = trials["start"] == "scratch"
    transfers = [
        Line(f"{source}, {start}", rows)
        for (source, start), rows in trials[~is_scratch].groupby(["source", "start"], sort=False)
    ]
    return [Line("scratch", trials[is_scratch]), *transfers]


def gain(line: Line, base: Line, images: int) -> Interval:
    """Return the mean difference over common seeds, with its interval."""
    accuracies, baseline = line.at(images), base.at(images)
    pairs = [(accuracies[seed], baseline[seed]) for seed in accuracies if seed in baseline]
    return interval([accuracy - base_accuracy for accuracy, base_accuracy in pairs], bounds=DIFFERENCE)


def gains(all_lines: Sequence[Line]) -> list[list[Interval]]:
    """Return the differences of every line to the first, for each number of images."""
    base = all_lines[0]
    return [
        [gain(line, base, count) for line in all_lines[1:]] for count in sorted(base.rows["images"].unique())
    ]


def section(title: str, all_lines: Sequence[Line]) -> list[str]:
    """Return two tables by number of images: accuracies, and differences to scratch paired by seed."""
    counts = sorted(all_lines[0].rows["images"].unique())
    header = ["images", *(line.label for line in all_lines)]
    rows = [[str(count), *(str(line.mean(count)) for line in all_lines)] for count in counts]
    differences = [
        [str(count), *(difference.text(sign="+") for difference in row)]
        for count, row in zip(counts, gains(all_lines), strict=True)
    ]
    return [
        markdown([Table(f"{title}: test accuracy", header, rows)]),
        markdown([Table(f"{title}: minus scratch, paired by seed", [header[0], *header[2:]], differences)]),
    ]


def picture(panels: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Draw accuracy against the number of training images, with 95% intervals; a panel per final amount."""
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
            values, style = [100 * mean.mean for mean in means], {"color": colour, "marker": marker}
            axis.errorbar(counts, values, ends, label=line.label, capsize=3, **style)
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
    trials = read(sys.argv[1:])
    tracker = Tracker(default_uri(Path.cwd()), "transfer")
    panels = {
        f"{model.partition('(')[0]}, {title}": lines(rows, technique, amount)
        for model, rows in trials.groupby("model", sort=False)
        for title, technique, amount in FINALS
    }
    picture(panels, PAGE.with_suffix(".png"))
    rows = [tracker.get_run(sweep) for sweep in sys.argv[1:]]
    first = tracker.get_run(tracker.get_run(rows[0].tags["ancestor"]).tags["mlflow.parentRunId"])
    commands = shell([row.tags["command"] for row in (first, *rows)])
    other_models = " and ".join(f"`{model}`" for model in list(trials["model"].unique())[1:])
    differences = [gain for all_lines in panels.values() for row in gains(all_lines) for gain in row]
    facts = environment()
    old_page = PAGE.read_text() if PAGE.exists() else f"{CONCLUSION}\n"
    parts = [
        "# transfer",
        TASK,
        f"The source models are runs of `{first.name}.yaml`, and of the same space with {other_models}:",
        f"```yaml\n{tracker.read_text(first, 'space.yaml')}```",
        f"```\n{commands}\n```",
        f"{len(trials)} trials on {facts['cores']} cores ({facts['processor']}), revision {facts['commit']}.",
        f"Differences to scratch, over all tables of this page: {verdict(differences)}",
        f"![Accuracy against the number of images]({PAGE.stem}.png)",
        *(part for title, all_lines in panels.items() for part in section(title, all_lines)),
        f"{CONCLUSION}{old_page.partition(CONCLUSION)[2]}",
    ]
    PAGE.write_text("\n\n".join(parts))


if __name__ == "__main__":
    main()
