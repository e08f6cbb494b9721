"""Run a plan: Ray, Tune, workers, progress and status."""

from __future__ import annotations

import os

# Read while ray is imported, or later: no telemetry, no second SIGINT handler, no files of results.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AIR_NEW_OUTPUT="0",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="1000000",
)
