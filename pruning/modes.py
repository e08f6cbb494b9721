"""Training and evaluation mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*nets: nn.Module) -> Iterator[None]:
    """The networks in eval mode; afterwards every module is in the mode that it was in.

    `net.train(mode)` would put all modules into the mode of the outermost: a batch norm that was frozen
    by its own `eval()` would be trained from then on.
    """
    # A list, not a dictionary by name: a shared module is in it once, and a nameless one is not lost.
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
