"""Check and join a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import tracking
from orchestrator.data.files import check_files
from orchestrator.errors import ClusterError, OrchestrateError
from orchestrator.execution.options import Resources, limit_to_nodes
from orchestrator.execution.ray_local import Node, connect_cluster, living_nodes
from orchestrator.storage.uri import SERVER_FIX, check_reachable, redact_uri, store_exists
from orchestrator.system.provenance import check_code

ANSWER_SECONDS = 90.0  # a node imports MLflow first, and may have to install Ray's environment


@dataclass(frozen=True)
class NodeRequirements:
    """What a node must have: the code, the store within reach, and the files of the data sets."""

    code: str
    uri: str
    artifact_root: str
    datasets: tuple[str, ...]
    data_dir: str | None


def check_nodes(found: Sequence[Node], needs: NodeRequirements) -> None:
    """ClusterError with the first problem of a node that may get a trial."""
    ask = ray.remote(num_cpus=0, max_retries=0)(_problem)
    asked = {}
    for node in found:
        if node["Resources"].get("CPU"):
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=here).remote(needs)] = node
    for problem in _answers(asked):
        raise ClusterError(problem)


def _answers(asked: Mapping[Any, Node]) -> Iterator[str]:
    for answer, node in asked.items():
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) of the Ray cluster"
        try:
            problem = ray.get(answer, timeout=ANSWER_SECONDS)
        except GetTimeoutError:
            yield f"{name} has not answered for {ANSWER_SECONDS:.0f} s"
        except RayTaskError as error:  # there is no such code, above all
            reason = " ".join(str(error).split())[-200:]
            yield f"{name} cannot run this version of the code; install it there: {reason}"
        except RayError as error:
            yield f"{name} cannot be asked: {' '.join(str(error).split())[:200]}"
        else:
            if problem:
                yield f"{name}: {problem}"


def _problem(needs: NodeRequirements) -> str:
    """What a node lacks, in one line; runs there."""
    try:
        check_code(needs.code)
        if not store_exists(needs.uri):
            return f"the store {redact_uri(needs.uri)} is a file that it does not see; {SERVER_FIX}"
        tracking.initialise(needs.uri)
        for name in needs.datasets:
            check_files(name, None if needs.data_dir is None else Path(needs.data_dir))
    except OrchestrateError as error:
        return str(error)
    return ""


@contextmanager
def cluster_for_sweep(resources: Resources, needs: NodeRequirements) -> Iterator[None]:
    """The cluster at the address of `resources`. ClusterError or StoreError where it is not fit."""
    with connect_cluster(resources.address or "auto"):
        found = living_nodes()
        limit_to_nodes(resources, [node["Resources"] for node in found])
        check_reachable(needs.uri, needs.artifact_root, {node["NodeManagerHostname"] for node in found})
        check_nodes(found, needs)
        yield


def cluster_gpus(address: str) -> float:
    """The GPUs of all nodes of a cluster."""
    with connect_cluster(address):
        return float(sum(node["Resources"].get("GPU", 0.0) for node in living_nodes()))
