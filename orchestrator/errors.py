"""Every error that a user can cause, with the exit code of the command line.

OrchestrateError               1
├── UsageError                 2   a bad command line
│   └── SpaceError             2   a bad space file, axis or value
├── UnusableError              4   something outside is not usable
│   ├── DataError              4   a data set that is missing or corrupt
│   ├── StoreError             4   a tracking store that cannot be read or written
│   │   ├── StoreUnavailableError  4   one that cannot be reached now; another try may reach it
│   │   └── DiskFullError      4   a disk without space for what is to be written
│   ├── DeviceError            4   a device that is not there
│   ├── OutputError            4   a standard output that cannot be written
│   ├── ExportError            4   a file that cannot be written, or does not compute what its network does
│   └── ClusterError           4   a Ray that does not start, or a cluster that cannot take a sweep
├── DivergedError              3   a training whose loss is no longer finite
├── CollapsedError             3   a network that can no longer be trained or measured
├── DiffersError               5   a run that was repeated with other results
└── BusyError                  6   a sweep that another process is running

A message is one line: what was given, what is allowed, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from orchestrator.formatting import escape_controls
from pruning.user_code import own_code


class OrchestrateError(Exception):
    """The base class. `exit_code` is that of the command line.

    The text has no control characters, and names of one's own files without their pins.
    """

    exit_code = 1

    def __str__(self) -> str:
        return own_code.shown(escape_controls(super().__str__()))


class UsageError(OrchestrateError):
    exit_code = 2


class SpaceError(UsageError):
    pass


class UnusableError(OrchestrateError):
    exit_code = 4


class DataError(UnusableError):
    pass


class StoreError(UnusableError):
    pass


class StoreUnavailableError(StoreError):
    pass


class DiskFullError(StoreError):
    pass


class DeviceError(UnusableError):
    pass


class OutputError(UnusableError):
    pass


class ExportError(UnusableError):
    pass


class ClusterError(UnusableError):
    pass


class DivergedError(OrchestrateError):
    exit_code = 3


class CollapsedError(OrchestrateError):
    exit_code = 3


class BudgetError(OrchestrateError):
    exit_code = 3


class DiffersError(OrchestrateError):
    exit_code = 5


class BusyError(OrchestrateError):
    exit_code = 6


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: with the nearest names, or else with all."""
    names = sorted({*allowed})
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"
