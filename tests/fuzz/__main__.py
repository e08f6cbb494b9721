"""`python -m tests.fuzz --seconds 600 [--seed 1] [--target NAME]`: what it finds; exit 1 for a finding.

Each example may raise an OrchestrateError of one line and nothing else, take 2 seconds of this processor, and
500 MB of memory. All runs in a child with a limit of memory, whose death is a finding, too.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from .running import Findings, run_targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--target", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    if given.child:
        return _report(run_targets(given.seconds, seed, given.target, Path(given.child)))
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        words = [
            "--seconds",
            str(given.seconds),
            "--seed",
            str(seed),
            "--target",
            given.target,
            "--child",
            place,
        ]
        code = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], check=False).returncode
        if code not in (0, 1):
            last = Path(place) / "example"
            text = last.read_text()[:4000] if last.exists() else "its start"
            print(f"the process died with {code}, at: {text}")
            return 1
    return code


def _report(findings: Findings) -> int:
    for text in findings.texts:
        print(text)
    counts = ", ".join(f"{name} {count}" for name, count in findings.examples.items())
    print(f"{sum(findings.examples.values())} examples ({counts}), {len(findings.texts)} findings")
    return 1 if findings.texts else 0


if __name__ == "__main__":
    raise SystemExit(main())
