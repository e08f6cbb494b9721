"""`PQIndexPruner` under its earlier import path, which plug-ins use; it is in `orchestrator.execution.scheduler`."""

from orchestrator.execution.scheduler import PQIndexPruner as PQIndexPruner
