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
from orchestrator.data import paths
from orchestrator.data.datasets import parse_dataset
from orchestrator.data.files import check_files
from orchestrator.errors import ClusterError, OrchestrateError
from orchestrator.execution.ray_start import Node, connect_cluster, living_nodes
from orchestrator.execution.resources import Resources, limit_to_nodes
from orchestrator.storage.uri import SERVER_FIX, check_reachable, redact_uri, store_exists
from orchestrator.system.provenance import check_code
from orchestrator.system.signals import SignalHandler
from pruning.user_code import stored_code

ANSWER_SECONDS = 90.0  # a node imports MLflow first, and may have to install Ray's environment


@dataclass(frozen=True)
class NodeRequirements:
    """What a node must have: the code, the store within reach, and the files of the data sets.

    Relative paths of data are relative to `folder`. `own_code` is as for `WorkerSettings`.
    """

    code: str
    uri: str
    artifact_root: str
    datasets: tuple[str, ...]
    data_dir: str | None
    folder: str = ""
    own_code: str = ""


def check_nodes(nodes: Sequence[Node], requirements: NodeRequirements) -> None:
    """Raise ClusterError with the first problem of a node that may get a trial."""
    remote = ray.remote(num_cpus=0, max_retries=0)(find_problem)
    answers = {}
    for node in nodes:
        if node["Resources"].get("CPU"):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[remote.options(scheduling_strategy=on_node).remote(requirements)] = node
    for problem in _problems(answers):
        raise ClusterError(problem)


def _problems(answers: Mapping[Any, Node]) -> Iterator[str]:  # Ray's references, and the nodes
    for answer, node in answers.items():
        name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) of the Ray cluster"
        try:
            problem = ray.get(answer, timeout=ANSWER_SECONDS)
        except GetTimeoutError:
            yield f"{name} has not answered for {ANSWER_SECONDS:.0f} s"
        except RayTaskError as error:  # above all: this code is not there
            reason = " ".join(str(error).split())[-200:]
            yield f"{name} cannot run this version of the code; install it there: {reason}"
        except RayError as error:
            yield f"{name} cannot be asked: {' '.join(str(error).split())[:200]}"
        else:
            if problem:
                yield f"{name}: {problem}"


def find_problem(requirements: NodeRequirements) -> str:
    """Return what a node lacks, in one line; runs on the node."""
    try:
        check_code(requirements.code)
        if not store_exists(requirements.uri):
            return f"the store {redact_uri(requirements.uri)} is a file that it does not see; {SERVER_FIX}"
        tracking.initialise(requirements.uri)
        paths.set_base(requirements.folder)
        stored_code.add_all(requirements.own_code)
        for name in sorted({parse_dataset(text)[0] for text in requirements.datasets}):
            check_files(name, None if requirements.data_dir is None else Path(requirements.data_dir))
    except OrchestrateError as error:
        return str(error)
    return ""


@contextmanager
def cluster_for_sweep(
    resources: Resources, requirements: NodeRequirements, signals: SignalHandler
) -> Iterator[None]:
    """Join the cluster at the address of `resources`. ClusterError or StoreError if it lacks something."""
    with connect_cluster(resources.address or "auto", signals):
        nodes = living_nodes()
        limit_to_nodes(resources, [node["Resources"] for node in nodes])
        check_reachable(
            requirements.uri, requirements.artifact_root, {node["NodeManagerHostname"] for node in nodes}
        )
        check_nodes(nodes, requirements)
        yield


def cluster_gpus(address: str, signals: SignalHandler) -> float:
    """Return the number of GPUs of all nodes of a cluster."""
    with connect_cluster(address, signals):
        return float(sum(node["Resources"].get("GPU", 0.0) for node in living_nodes()))
