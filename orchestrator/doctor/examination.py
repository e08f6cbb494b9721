"""The whole examination, in the order in which a sweep needs things."""

from __future__ import annotations

from itertools import chain

from orchestrator.doctor.belongings import data, plugins, store
from orchestrator.doctor.finding import Report
from orchestrator.doctor.installation import extras, packages, python
from orchestrator.doctor.machine import devices, loopback, ray


def examine(uri: str, *, deep: bool = False) -> Report:
    """Look at everything, with the store at `uri`; `deep` starts Ray and stops it."""
    machine = python(), packages(), devices(), store(uri), data()
    parts = *machine, loopback(), ray(deep=deep), extras(), plugins()
    return Report(tuple(chain.from_iterable(parts)))
