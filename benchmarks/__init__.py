"""Benchmarks: `python -m benchmarks [--full]` runs all, `python -m benchmarks.sweeps` one file."""
