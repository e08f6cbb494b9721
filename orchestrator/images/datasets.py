"""`DatasetInfo` under its earlier import path, which plug-ins use; it is `orchestrator.data.datasets.DatasetInfo`."""

from orchestrator.data.datasets import DatasetInfo as DatasetInfo
from orchestrator.data.datasets import Raw as Raw
