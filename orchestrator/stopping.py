"""The earlier import path of `PQIndexPruner`, which plug-ins use; see `orchestrator.execution.scheduler`."""

from orchestrator.execution.scheduler import PQIndexPruner as PQIndexPruner
