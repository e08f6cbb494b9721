"""A cluster that is joined for a sweep, once its nodes are known to be fit for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.launching.resources import Resources, fitted
from orchestrator.store.reach import check_reach
from orchestrator.sweep.nodes import Needs, check_nodes
from orchestrator.sweep.places import joined, living_nodes


@contextmanager
def joined_for(resources: Resources, needs: Needs) -> Iterator[None]:
    """The cluster at the address of `resources`. ClusterError or StoreError where it is not fit."""
    with joined(resources.address or "auto"):
        found = living_nodes()
        fitted(resources, [node["Resources"] for node in found])
        check_reach(needs.uri, needs.artifact_root, {node["NodeManagerHostname"] for node in found})
        check_nodes(found, needs)
        yield


def cluster_gpus(address: str) -> float:
    """The GPUs of all nodes of a cluster."""
    with joined(address):
        return float(sum(node["Resources"].get("GPU", 0.0) for node in living_nodes()))
