"""Whether a reloaded network does exactly as well as its record says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from orchestrator.carrying.origin import Origin
from orchestrator.config import Numerics
from orchestrator.data import Dataset, load
from orchestrator.errors import StoreError
from orchestrator.store.blueprint import Blueprint
from orchestrator.tracking import DIGEST_LENGTH
from orchestrator.walk.evaluation import evaluate
from pruning.registry import parse


def check_accuracy(net: nn.Module, origin: Origin, blueprint: Blueprint) -> None:
    """StoreError unless the network has the recorded accuracy on the recorded data set's test images."""
    if origin.accuracy is None or "dataset" not in origin.params:
        raise StoreError(
            f"{origin.name} has no recorded accuracy on a data set, so that strict cannot be kept"
        )
    device = next(net.parameters()).device
    images = recorded_data(origin, device)
    digests = origin.data_digests()
    if digests and images.digest[:DIGEST_LENGTH] not in digests:
        raise StoreError(
            f"{images.name} is not the data that {origin.name} was measured on: its digest differs"
        )
    numerics = _numerics(origin, blueprint)
    with _threads(numerics.threads):
        found = evaluate(net, images.test, numerics=numerics).accuracy
    if found != origin.accuracy:
        raise StoreError(
            f"{origin.name} has an accuracy of {found!r} where {origin.accuracy!r} is recorded: "
            "another device, number of threads or version, or not the network that was measured"
        )


def recorded_data(origin: Origin, device: str | torch.device) -> Dataset:
    """The data set that a network was measured on; DataError where its files are not there."""
    name, options = parse(origin.params["dataset"])
    return load(name, device=device, **options)


def _numerics(origin: Origin, blueprint: Blueprint) -> Numerics:
    """As the network was measured; of the text params only those that decide numbers."""
    planned = Numerics()
    given = {
        name: origin.params.get(f"numerics.{name}", "") for name in ("precision", "threads", "micro_batch")
    }
    return Numerics(
        precision="bf16" if given["precision"] == "bf16" else "fp32",
        threads=int(given["threads"] or planned.threads),
        micro_batch=blueprint.spent.micro_batch or int(given["micro_batch"] or planned.micro_batch),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
