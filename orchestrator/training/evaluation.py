"""How well a network does on a split."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config import Numerics
from orchestrator.data.loading import Split
from pruning.modes import eval_mode


@dataclass(frozen=True)
class Evaluation:
    """On one split: fractions for the accuracies, nats for the cross-entropy `loss`."""

    accuracy: float
    top5: float
    loss: float
    confusion: Tensor
    seconds: float


@torch.inference_mode()
def evaluate(net: nn.Module, split: Split, *, numerics: Numerics) -> Evaluation:
    """Accuracy, top-5 accuracy, mean cross-entropy and confusion matrix [true, predicted], in eval mode.

    Every module is left in the mode that it was in.
    """
    started = perf_counter()
    parts = []
    with eval_mode(net):
        for images in split.images.split(numerics.micro_batch):  # views, in the order of the whole in memory
            with precision(numerics, images.device):
                parts.append(net(images).float())
    logits = torch.cat(parts)
    classes = logits.shape[1]
    ranked = logits.topk(min(5, classes), dim=1).indices
    confusion = torch.bincount(split.labels * classes + ranked[:, 0], minlength=classes * classes)
    loss = functional.cross_entropy(logits, split.labels)
    found = ranked == split.labels[:, None]
    hits, hits5, nats = torch.stack([found[:, 0].sum(), found.any(1).sum(), loss.double()]).tolist()
    size = len(split)
    return Evaluation(
        hits / size, hits5 / size, nats, confusion.reshape(classes, classes).cpu(), perf_counter() - started
    )


def precision(numerics: Numerics, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=numerics.precision == "bf16")
