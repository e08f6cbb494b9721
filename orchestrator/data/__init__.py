"""Data sets: names, files, splits, loading and batches."""
