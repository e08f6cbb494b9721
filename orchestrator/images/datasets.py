"""The earlier import path of `DatasetInfo`, which plug-ins use; see `orchestrator.data.datasets`."""

from orchestrator.data.datasets import DatasetInfo as DatasetInfo
from orchestrator.data.datasets import Raw as Raw
