"""How the processes of several devices find each other: a group of torch.distributed, told through Ray.

Their sockets are bound to the address that Ray has on their node, 127.0.0.1 for a Ray of our own. Numbers
alone go through them. What is code goes through Ray, and so do the addresses: Ray asks for its token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address, ip_interface
from socket import AF_INET, AF_INET6
from time import monotonic, sleep

import psutil
import ray
import torch
from torch import distributed

from orchestrator.execution.ray_patches import internal_kv
from orchestrator.training.device_group import ProcessGroup

START_SECONDS = 120.0  # for the processes of a group to import torch, and to find each other
SILENT_SECONDS = 1800.0  # that a device waits for another: the first one evaluates and prunes meanwhile
POLL_SECONDS = 0.02
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class RayStore(distributed.Store):  # type: ignore[misc, name-defined]  # torch's stubs lack it
    """Where the processes of a group find each other's addresses: Ray's key-value store."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def set(self, key: str, value: bytes) -> None:
        internal_kv._internal_kv_put(self.prefix + key, bytes(value), overwrite=True)

    def get(self, key: str) -> bytes:
        self.wait([key])
        value: bytes = internal_kv._internal_kv_get(self.prefix + key)
        return value

    def check(self, keys: Sequence[str]) -> bool:
        return all(internal_kv._internal_kv_get(self.prefix + key) is not None for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta = timedelta(seconds=START_SECONDS)) -> None:
        deadline = monotonic() + timeout.total_seconds()
        while not self.check(keys):
            if monotonic() > deadline:
                raise RuntimeError(f"a device of the group did not come within {timeout.total_seconds():g} s")
            sleep(POLL_SECONDS)

    def clear(self) -> None:
        internal_kv._internal_kv_del(self.prefix, del_by_prefix=True)


def join_group(prefix: str, rank: int, size: int, device: torch.device) -> ProcessGroup:
    """Join the group of a prefix; this returns once all its processes have come."""
    interface = network_interface(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # ray's
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
    distributed.init_process_group(
        BACKENDS[device.type],
        store=RayStore(prefix),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=SILENT_SECONDS),
    )
    return ProcessGroup(device)


def leave_group() -> None:
    """Leave the group, if there is one: what waits in the others for this process then fails."""
    with suppress(RuntimeError):
        if distributed.is_initialized():
            distributed.destroy_process_group()


def network_interface(address: str) -> str:
    """Return the name of the network interface for an IP address of this node. RuntimeError if there is none.

    Loopback has all of 127.0.0.0/8, of which it names one address.
    """
    node_address = ip_address(address)
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            has_network = entry.family in (AF_INET, AF_INET6) and entry.netmask is not None
            if has_network and node_address in ip_interface(f"{entry.address}/{entry.netmask}").network:
                return name
    raise RuntimeError(f"no network interface of this node has Ray's address, {address}")
