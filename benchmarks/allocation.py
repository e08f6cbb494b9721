"""Four allocations against each other at equal multiply-adds: three networks on mnist-5k, paired over seeds.

    python benchmarks/allocation.py [--folder DIR] [--set KEY=V1,V2 ...]

The space below is swept by `orchestrate sweep` in a folder of its own; started again it carries on there.
Each allocation is compared with `uniform` at the same network, limit, recovery and seed: the difference of
the test accuracy with its 95% interval, and Holm's correction over all comparisons of a network. Beside it
are the multiply-adds that are left, equal up to one channel. Results go to results/allocation.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import orchestrator
from orchestrator.analysis.paired import differences, read_baseline
from orchestrator.storage.uri import default_uri

if TYPE_CHECKING:
    from pandas import DataFrame

RESULTS = Path(__file__).parent / "results" / "allocation.json"
NAME = "allocation"
SPACE = """\
version: 1
about: Four allocations of one limit of multiply-adds over the layers, without training and with two epochs.
axes:
  model: ["mlp(widths=[300, 100])", "cnn(widths=[16, 32, 64])", "resnet(depth=8)"]
  dataset: [mnist-5k]
  criterion: [l2]
  granularity: [channel]
  allocate: [uniform, global, per_mac, sensitivity]
  amount: [{macs: 60%}, {macs: 40%}, {macs: 20%}]
  recover: [none, finetune(epochs=2)]
  seed: [0, 1, 2, 3, 4]
train: {epochs: 10}
"""
HEADER = (
    f"{'network':<26} {'limit':<10} {'recovery':<22} {'allocation':<12} {'MACs left':>9}  accuracy, its gain"
)
MACS, DENSE_MACS, ACCURACY = "final/macs_physical", "final/macs_dense", "final/accuracy"


def run_sweep(folder: Path, sets: Sequence[str]) -> DataFrame:
    """Sweep the space in a folder, with what it has already, and return its results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.yaml").write_text(SPACE)
    options = [word for item in sets for word in ("--set", item)]
    command = [sys.executable, "-m", "orchestrator.cli", "sweep", f"{NAME}.yaml", *options]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return orchestrator.results(NAME, uri=default_uri(folder))


def compare(results: DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a record for each allocation at each limit and recovery of a network, in the plan's order."""
    finished = results[results["status"] == "finished"]
    for model, rows in finished.groupby("model", sort=False):
        rows.attrs = results.attrs
        pairs = {
            (str(pair.setting["technique"]), pair.amount, str(pair.setting.get("recover"))): pair
            for pair in differences(rows, read_baseline("scope=layer", rows))
        }
        groups = rows.groupby(["amount_text", "recover", "technique"], sort=False)
        for (limit, recovery, technique), group in groups:
            # A setting has the recovery where it varies.
            pair = pairs.get((technique, limit, recovery)) or pairs.get((technique, limit, "None"))
            gain = None if pair is None else pair.difference
            yield {
                "model": model,
                "limit": limit,
                "recover": recovery,
                "allocation": technique.partition("/")[2],
                "seeds": len(group),
                "macs_left": fmean(group[MACS] / group[DENSE_MACS]),
                "accuracy": fmean(group[ACCURACY]),
                "difference": gain and gain.mean,
                "low": gain and gain.low,
                "high": gain and gain.high,
                "p_holm": pair and pair.p_holm,
            }


def line(record: Mapping[str, Any]) -> str:
    """Return one row of the table; accuracies in per cent, differences in points."""
    text = (
        f"{record['model']:<26} {record['limit']:<10} {record['recover']:<22} {record['allocation']:<12} "
        f"{record['macs_left']:>9.2%}  {100 * record['accuracy']:.2f}"
    )
    if record["low"] is None:
        return text if record["difference"] is None else f"{text} {100 * record['difference']:+.2f}"
    p = "" if record["p_holm"] is None else f", p {record['p_holm']:.3f}"
    ends = f"{100 * record['low']:+.2f} to {100 * record['high']:+.2f}"
    return f"{text} {100 * record['difference']:+.2f} [{ends}]{p}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("allocation-benchmark"))
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=V1,V2")
    options = parser.parse_args()
    records = list(compare(run_sweep(options.folder.absolute(), options.sets)))
    print(HEADER, *map(line, records), sep="\n")
    if not options.sets:  # another space has other results
        RESULTS.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
