"""What a forward pass draws, dropout above all: from torch's global generators, under a seed of its own.

The generators stand afterwards where they stood before, so that no work depends on what came before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

EVALUATION_SEED = 0  # networks that draw in eval mode, too, are given the same draws for every split
CPU, CUDA = "cpu", "cuda"


@contextmanager
def own_draws(seed: int, device: torch.device) -> Iterator[None]:
    """The global generator of the CPU, and that of a GPU `device`, seeded within, as they were without."""
    with torch.random.fork_rng(devices=[device] if device.type == CUDA else []):
        derived = _derived(seed)
        torch.default_generator.manual_seed(derived)
        if device.type == CUDA:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derived)
        yield


def draws_state(device: torch.device) -> dict[str, Tensor]:
    """Where the generators stand, by the kind of their device; uint8, on the CPU."""
    state = {CPU: torch.get_rng_state()}
    if device.type == CUDA:
        state[CUDA] = torch.cuda.get_rng_state(device)
    return state


def load_draws(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators to where others stood. ValueError for a state without that of the device."""
    if CPU not in state or (device.type == CUDA and CUDA not in state):
        raise ValueError(f"the checkpoint has the generators of {', '.join(state) or 'nothing'} alone")
    torch.set_rng_state(state[CPU])
    if device.type == CUDA:
        torch.cuda.set_rng_state(state[CUDA], device)


def _derived(seed: int) -> int:
    """Another seed than that of batches and augmentation, whose generator would draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/forward".encode()).digest()[:8], "big") >> 1
