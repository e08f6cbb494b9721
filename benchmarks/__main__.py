"""Run all benchmark files, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.harness import benchmark_files

if __name__ == "__main__":
    started = perf_counter()
    for name in benchmark_files(Path(__file__).parent):
        print(f"== {name}, after {perf_counter() - started:.0f} s", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
    print(f"== all, in {perf_counter() - started:.0f} s")
