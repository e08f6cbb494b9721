"""Run all benchmark files, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import benchmark_files

if __name__ == "__main__":
    for name in benchmark_files(Path(__file__).parent):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
