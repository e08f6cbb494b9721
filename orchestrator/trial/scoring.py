"""Where criteria score a network, and how often.

Criteria that run it do so on the GPU, where there is one, and once: trials that differ in nothing but amounts
have the same scores, as have the many amounts that are tried to meet a limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor, nn

from orchestrator.system.memory import is_out_of_memory
from pruning.criteria import ScoringContext, criteria
from pruning.masking import Scores
from pruning.registry import Method

CPU = torch.device("cpu")
LARGEST_BYTES = 1 << 30  # of scores that a process holds on to
Result = TypeVar("Result")


def scoring_device(criterion: str, device: torch.device) -> torch.device:
    """Return where a criterion, in text form, scores the networks that are trained on `device`.

    A GPU has float64 as a CPU has it: scores agree to its rounding. Criteria that run no network, and those
    that do not say that they can be on any device, stay on the CPU.
    """
    is_on_gpu = device.type == "cuda" and criteria.get(criterion).traits.get("on_device", False)
    return device if is_on_gpu else CPU


def score_on(
    device: torch.device, net: nn.Module, *, runs_it: bool, prune: Callable[[nn.Module], Result]
) -> Result:
    """Return what `prune` makes of the network on `device`; on the CPU where the GPU's memory does not do.

    A criterion that `runs_it` has a copy, so that the network is left as it is.
    """
    if device.type != "cpu":
        try:
            return prune(deepcopy(net).to(device))
        except (RuntimeError, ValueError) as error:  # a criterion's errors are ValueErrors
            if not is_out_of_memory(error):
                raise
        # Only here, after the except block: until its end the error holds the tensors of what did not fit.
    is_on_cpu = all(tensor.device.type == "cpu" for tensor in net.parameters())
    return prune(net if is_on_cpu and not runs_it else deepcopy(net).cpu())


class LastScores:
    """The scores that were computed last, with the digest of all that they depend on."""

    def __init__(self) -> None:
        self._last = "", Scores()  # one tuple: members of a stack are threads

    def get(self, digest: str, score: Callable[[], Scores]) -> Scores:
        """Return the last scores if the digest is theirs, and compute them otherwise."""
        known, scores = self._last
        if digest == known:
            return scores
        del scores
        self._last = "", Scores()  # freed before others are computed
        scores = score()
        if sum(tensor.nbytes for tensor in scores.values()) <= LARGEST_BYTES:
            self._last = digest, scores
        return scores


_last_scores = LastScores()  # of this process: a worker runs the trials of one network one after the other


def scored_once(criterion: str, *, facts: object) -> Method:
    """Return a criterion, in text form, that scores what it has just scored not again.

    `facts` are what the scores depend on beside the network's tensors, the masks and the sample: what the
    network is built from, and the seed. Criteria that score anew in each pass of a round, and those that do
    not run the network, are as they were.
    """
    method = criteria.get(criterion)
    if method.traits.get("passes") or not method.traits.get("on_device"):
        return method

    @wraps(method.function)
    def function(context: ScoringContext, **options: object) -> Scores:
        digest = _digest(context, repr((str(method), facts)))
        return _last_scores.get(digest, lambda: method.function(context, **options))

    return replace(method, function=function)


def _digest(context: ScoringContext, text: str) -> str:
    """Return the SHA-256, in hex, of a text and of every tensor that the scores depend on."""
    images, labels = context.require_sample(text)
    digest = hashlib.sha256(text.encode())
    for tensors in (context.net.state_dict(), context.masks, {"images": images, "labels": labels}):
        _add_tensors(digest, tensors)
    return digest.hexdigest()


def _add_tensors(digest: hashlib._Hash, tensors: Mapping[str, object]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):  # what a module adds to its state
            digest.update(repr((name, tensor)).encode())
            continue
        content = tensor.detach().cpu().contiguous()
        digest.update(repr((name, tensor.device.type, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
