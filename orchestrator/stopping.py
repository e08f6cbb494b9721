"""The earlier import path of `PQIndexPruner`, which plug-ins use: `execution.early_stopping`."""

from orchestrator.execution.early_stopping import PQIndexPruner as PQIndexPruner
