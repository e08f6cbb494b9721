"""Measure how fast Ray starts on this machine."""

from __future__ import annotations

from time import perf_counter

import ray

from orchestrator.execution.options import Resources
from orchestrator.execution.ray_local import local_ray
from orchestrator.system.signals import SignalHandler

ANSWER_SECONDS = 60


def measure_ray_startup() -> float:
    """Return the seconds from nothing to the answer of a first worker. ClusterError if Ray does not start."""
    started = perf_counter()
    with local_ray(Resources(cpus=1, gpus=0, gpus_per_trial=1.0, concurrent=1), SignalHandler()):
        ray.get(ray.remote(_answer).remote(), timeout=ANSWER_SECONDS)
        return perf_counter() - started


def _answer() -> bool:
    return True
