"""Check what works on this machine, without changing anything, and say how to fix the rest."""

from __future__ import annotations

from itertools import chain

from orchestrator.doctor.checks import (
    CheckResult,
    Report,
    data,
    devices,
    loopback,
    pending_results,
    plugins,
    ray,
    store,
)
from orchestrator.doctor.installation import extras, internals, packages, python

__all__ = ["CheckResult", "Report", "run_checks"]


def run_checks(uri: str, *, deep: bool = False) -> Report:
    """Run all checks, with the store at `uri`; `deep` starts Ray and stops it."""
    checks = [python(), packages(), devices(), store(uri), pending_results(uri), data()]
    checks += [loopback(), ray(deep=deep), internals(), extras(), plugins()]
    return Report(tuple(chain.from_iterable(checks)))
