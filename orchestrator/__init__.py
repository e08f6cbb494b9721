"""Sweeps of neural-network pruning: plan, run, record, compare."""

__version__ = "0.1.0"
