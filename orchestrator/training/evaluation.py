"""Accuracy, loss and confusion matrix of a network on a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config import Numerics
from orchestrator.data.loading import Split
from orchestrator.errors import CollapsedError
from orchestrator.system.memory import is_out_of_memory
from pruning.checks import one_line
from pruning.eval_mode import eval_mode

ONE_IMAGE = "memory runs out even with one image at a time"


@dataclass(frozen=True)
class Evaluation:
    """The results on one split: accuracies are fractions, `loss` is the mean cross-entropy in nats."""

    accuracy: float
    top5: float
    loss: float
    confusion: Tensor  # int64 [true class, predicted class], on the CPU
    seconds: float


@torch.inference_mode()
def evaluate(net: nn.Module, split: Split, *, numerics: Numerics) -> Evaluation:
    """Evaluate a network in eval mode, a micro-batch of images at a time.

    Every module is in the mode afterwards that it was in before.
    """
    started = perf_counter()
    outputs = []
    with eval_mode(net):
        for images in split.images.split(numerics.micro_batch):
            with precision(numerics, images.device):
                outputs.append(net(images).float())
    logits = torch.cat(outputs)
    classes = logits.shape[1]
    ranked = logits.topk(min(5, classes), dim=1).indices
    confusion = torch.bincount(split.labels * classes + ranked[:, 0], minlength=classes * classes)
    loss = functional.cross_entropy(logits, split.labels)
    is_hit = ranked == split.labels[:, None]
    # One wait for the device in place of three.
    hits, hits5, nats = torch.stack([is_hit[:, 0].sum(), is_hit.any(1).sum(), loss.double()]).tolist()
    size = len(split)
    return Evaluation(
        hits / size, hits5 / size, nats, confusion.reshape(classes, classes).cpu(), perf_counter() - started
    )


def evaluate_in_memory(net: nn.Module, split: Split, *, numerics: Numerics) -> tuple[Evaluation, int]:
    """Evaluate with half the images at a time whenever memory runs out, and return how many these were, too.

    CollapsedError where memory runs out with a single image.
    """
    try:
        return evaluate(net, split, numerics=numerics), numerics.micro_batch
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if numerics.micro_batch <= 1:
            raise CollapsedError(f"{ONE_IMAGE}: {one_line(error)}") from error
    # Only here, after the except block: until its end the error holds the tensors of what did not fit.
    smaller = max(1, min(numerics.micro_batch, len(split)) // 2)
    return evaluate_in_memory(net, split, numerics=replace(numerics, micro_batch=smaller))


def precision(numerics: Numerics, device: torch.device) -> torch.autocast:
    """Run the block in bfloat16 where the numerics say so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=numerics.precision == "bf16")
