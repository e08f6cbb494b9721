"""Make the study again: run its sweeps, measure latency, and write results.json, the figures and index.md.

    python docs/studies/which-axis/make.py                    # all of it; what is stored is not run again
    python docs/studies/which-axis/make.py --quick            # three seeds of small networks, some minutes
    python docs/studies/which-axis/make.py --only latency     # measure latency again, on a quiet machine
    python docs/studies/which-axis/make.py --only page        # from results.json alone: figures and text
    python docs/studies/which-axis/make.py --set dataset=cifar10 --out cifar10

Results are in the store of MLFLOW_TRACKING_URI. Without `--out` the files of this folder are written. With
it, --quick or --set another folder gets the numbers, the figures and the tables: the text holds for its own
numbers only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent.parent
SPACES = (
    *("axis-digits", "axis-mnist", "axis-latency", "splits", "sap-rounding"),
    *("axis-finetune", "sap", "axis-resnet"),
)
SAME_NETWORKS = ("batch_size=64",)  # of axis-digits, which trains on another data set what is timed
OF_ONE_DATASET = ("axis-mnist", "splits")  # left out where --set names another data set
QUICK = ("seed=0..2", "train.epochs=1", "model=mlp(widths=[64, 32])")
QUICK_SETS = {
    "axis-latency": ("seed=0", *QUICK[1:]),
    "axis-resnet": ("seed=0..2", "train.epochs=1", "model=resnet(depth=8)"),
    "splits": ("seed=0..2", "train.epochs=1", "model=mlp(widths=[16])"),
}


def sweep(space: str, sets: Sequence[str], *, max_concurrent: int | None) -> None:
    """Run or resume a sweep of a space of this folder. CalledProcessError where it fails."""
    options = [word for item in sets for word in ("--set", item)]
    options += ["--max-concurrent", str(max_concurrent)] if max_concurrent else []
    orchestrate("sweep", str((FOLDER / f"{space}.yaml").relative_to(ROOT)), *options)


def orchestrate(*words: str) -> None:
    """Run a command of the project in the root of the checkout, so that runs record the same paths."""
    print("$ orchestrate", *words, flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "orchestrator", *words], check=True, cwd=ROOT, env=environment)


def write(out: Path, *, has_text: bool) -> None:
    """Write the figures and the page of the numbers of a folder; without the text, its tables alone."""
    from figures import draw
    from markdown_tables import all_tables
    from page import page

    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for path in draw(results, out):
        print(path)
    text = page(out) if has_text else all_tables(results)
    (out / "index.md").write_text(text, encoding="utf-8")
    print(out / "index.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three seeds of small networks")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=V1,V2")
    parser.add_argument("--only", choices=("sweeps", "latency", "numbers", "page"))
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument(
        "--parts", action="store_true", help="count all sweeps of a space, not the latest alone"
    )
    parser.add_argument("--out", type=Path, help="another folder for the numbers, figures and tables")
    options = parser.parse_args()
    is_published = not (options.quick or options.sets or options.out)
    out = FOLDER if is_published else (options.out or Path("which-axis"))
    out.mkdir(parents=True, exist_ok=True)
    is_other = any(item.startswith("dataset=") for item in options.sets)
    spaces = [space for space in SPACES if not (is_other and space in OF_ONE_DATASET)]
    if options.only in (None, "sweeps"):
        for space in spaces:
            quick = QUICK_SETS.get(space, QUICK) if options.quick else ()
            shared = SAME_NETWORKS if is_other and space == "axis-latency" else ()
            sweep(space, [*options.sets, *quick, *shared], max_concurrent=options.max_concurrent)
    if options.only in (None, "latency"):
        again = ["--again"] if options.only else []
        orchestrate("latency", "axis-latency", "--batch", "1", *again)
    if options.only in (None, "latency", "numbers"):
        from collect import collect
        from frames import Source

        from orchestrator.storage.uri import default_uri

        source = Source(default_uri(ROOT), has_parts=options.parts)
        numbers = collect(source, spaces)
        (out / "results.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    if options.only != "sweeps":
        write(out, has_text=is_published)


if __name__ == "__main__":
    main()
