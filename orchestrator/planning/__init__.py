"""Axes -> trials: what there is to run, what cannot be, and what it costs."""
