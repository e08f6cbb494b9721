"""Side-by-side measurements: `python -m benchmarks [--full]`, or one file, `python -m benchmarks.sweeps`."""
