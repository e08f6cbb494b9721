"""torch's global generators, from which dropout and new layers draw: seeded for one piece of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """The global generators of the CPU and of `device` start from `seed`; afterwards they are as before.

    Those of other devices are not touched, which `torch.manual_seed` would seed as well.
    """
    before = global_states(device)
    try:
        for generator in _generators(device).values():
            generator.manual_seed(seed)
        yield
    finally:
        set_global_states(before, device)


def global_states(device: torch.device) -> dict[str, Tensor]:
    """`cpu`, and `cuda` where the device is one -> the state of its global generator, copied to the CPU."""
    return {name: generator.get_state() for name, generator in _generators(device).items()}


def set_global_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the global generators the states that `global_states` read on such a device; KeyError else."""
    for name, generator in _generators(device).items():
        generator.set_state(states[name])


def _generators(device: torch.device) -> dict[str, torch.Generator]:
    generators = {"cpu": torch.default_generator}
    if device.type == "cuda":
        torch.cuda.init()  # there are none before
        number = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[number]
    return generators
