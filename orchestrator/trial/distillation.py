"""Distillation: losses that learn from the dense network as well as from the labels."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config import Numerics
from orchestrator.training.evaluation import precision
from orchestrator.training.losses import Loss, cross_entropy
from pruning.hyperparameters import Between
from pruning.registry import Registry

distillations = Registry("distillation", positional=("teacher",))
Temperature = Annotated[float, Between(0.0, 1000.0, open_low=True)]
Weight = Annotated[float, Between(0.0, 1.0)]


class TeacherInPrecision(nn.Module):
    """A teacher that runs in the precision of the training."""

    def __init__(self, net: nn.Module, numerics: Numerics) -> None:
        super().__init__()
        self.net, self.numerics = net, numerics

    def forward(self, images: Tensor) -> Tensor:
        with precision(self.numerics, images.device):
            logits: Tensor = self.net(images)
        return logits


def in_precision(net: nn.Module, numerics: Numerics) -> nn.Module:
    """Return a teacher in the precision of a training on a GPU; on a CPU it stays in float32, as it was."""
    return net if numerics.device == "cpu" else TeacherInPrecision(net, numerics)


@distillations.register(summary="the labels alone", needs_teacher=False)
def none(teacher: nn.Module) -> Loss:
    """Return plain cross-entropy."""
    return cross_entropy


@distillations.register(
    summary="softened outputs of the dense network", paper="Hinton et al., 2015", needs_teacher=True
)
def soft_labels(teacher: nn.Module, *, temperature: Temperature = 4.0, weight: Weight = 0.5) -> Loss:
    """Return (1 - weight) CE + weight T^2 KL(teacher_T || student_T), summed over the batch.

    T is the temperature of both softmaxes; T^2 keeps the gradients of the soft part of one size whatever it
    is. The teacher is put into eval mode.
    """
    teacher.eval()

    def loss(logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            taught = functional.log_softmax(teacher(images).float() / temperature, dim=1)
        student = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(student, taught, reduction="sum", log_target=True)
        return (1 - weight) * cross_entropy(logits, images, targets) + weight * temperature**2 * soft

    return loss
