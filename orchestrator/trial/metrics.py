"""Parameters, MACs, bytes, sparsity indices and per-class accuracy of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow
import torch
from torch import Tensor, nn

from orchestrator.training.evaluation import Evaluation
from orchestrator.trial.macs import Profile as Profile
from orchestrator.trial.macs import profile as profile
from pruning.masking import count_alive, prunable_layers
from pruning.pq_index import gini, pq_index


def effective_macs(dense: Profile, masks: Mapping[str, Tensor]) -> int:
    """Return the MACs of a machine that skips every dead weight: each layer's count times its density.

    MACs that belong to no prunable layer count in full.
    """
    total = sum(dense.other_macs.values())
    for name, macs in dense.macs.items():
        mask = masks.get(dense.weights[name])
        # Exact, as counts are: a float quotient would be rounded twice.
        total += macs if mask is None else round(Fraction(macs * count_alive(mask), mask.numel()))
    return total


def nonzero_parameters(dense: Profile, masks: Mapping[str, Tensor]) -> int:
    """Return the number of living parameters by the masks, biases and norms included.

    A living parameter whose value happens to be 0 counts.
    """
    return dense.parameters - sum(mask.numel() - count_alive(mask) for mask in masks.values())


def train_flops(dense: Profile, samples: int, *, has_teacher: bool = False) -> int:
    """Return the FLOPs of forward and backward over `samples` images: 2 per MAC, three passes a layer.

    The layers that read the images need no gradient of their input. Equal to FlopCounterMode over one
    training step. `has_teacher` adds the forward pass of a teacher of the same size.
    """
    return 2 * (dense.train_macs + (dense.total_macs if has_teacher else 0)) * samples


def train_flops_effective(
    dense: Profile, masks: Mapping[str, Tensor], samples: int, *, has_teacher: bool = False
) -> int:
    """Return `train_flops` of a machine that skips every dead weight, in all of a layer's three passes.

    That is 3 f_S an image, with f_S the FLOPs of a sparse forward pass, as Evci et al. (ICML 2020, appendix)
    count training under masks; a teacher is dense.
    """
    skipped = sum(
        (_dead_macs(macs, masks.get(dense.weights[name])) for name, macs in dense.layer_train_macs.items()),
        start=Fraction(0),
    )
    # Rounded once: per image first, which the number of images then multiplies.
    flops = train_flops(dense, 1, has_teacher=has_teacher) - 2 * round(skipped)
    return flops * samples


def dense_gradient_flops(dense: Profile, masks: Mapping[str, Tensor], samples: int) -> int:
    """Return what the gradient by every weight, dead ones included, costs beyond `train_flops_effective`.

    With it a step costs 2 f_S + f_D, in place of 3 f_S, f_D being a dense forward pass (see there).
    """
    dead = sum(
        (_dead_macs(macs, masks.get(dense.weights[name])) for name, macs in dense.macs.items()),
        start=Fraction(0),
    )
    return 2 * round(dead) * samples


def _dead_macs(macs: int, mask: Tensor | None) -> Fraction:
    """Return the part of a layer's MACs that its dead weights have."""
    return Fraction(0) if mask is None else macs * Fraction(mask.numel() - count_alive(mask), mask.numel())


def dense_bytes(net: nn.Module) -> int:
    """Return the bytes of the state dict as safetensors stores it, header aside."""
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def sparse_bytes(net: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Return the bytes when masked tensors keep their living values and one bit per entry."""
    total = dense_bytes(net)
    parameters = dict(net.named_parameters())
    for name, mask in masks.items():
        dead = mask.numel() - count_alive(mask)
        if dead:
            total += (mask.numel() + 7) // 8 - dead * parameters[name].element_size()
    return total


@dataclass(frozen=True)
class LayerRow:
    """One row of the per-layer table; PQ index (p = 0.5, q = 1) and Gini index are of the living weights.

    `sparsity_chosen` is by the masks as pruning chose them, all else with what is dead by consequence. Rows
    of MACs that belong to no prunable layer have no weights.
    """

    layer: str
    weights: int
    living: int
    sparsity: float
    pq_index: float
    gini: float
    macs_dense: int
    macs_effective: int
    sparsity_chosen: float


def layer_rows(
    net: nn.Module, dense: Profile, remaining: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[LayerRow]:
    """Return every prunable layer with its size, its `remaining_weights`, and its cost.

    `masks` are those that pruning chose. The other MACs come last.
    """
    rows, layers = [], prunable_layers(net)
    for name, weights in remaining.items():
        total, alive, macs = layers[name].weight.numel(), weights.numel(), dense.macs[name]
        mask = masks.get(dense.weights[name])
        indices = sparsity_indices({name: weights})
        effective = round(Fraction(macs * alive, total))
        by_mask = 0.0 if mask is None else 1 - count_alive(mask) / total
        rows.append(LayerRow(name, total, alive, 1 - alive / total, *indices, macs, effective, by_mask))
    others = (LayerRow(name, 0, 0, 0.0, 0.0, 0.0, n, n, 0.0) for name, n in dense.other_macs.items())
    return [*rows, *others]


def remaining_weights(net: nn.Module, dense: Profile, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the living weights of each layer, in one dimension, on the CPU."""
    remaining = {}
    for name, layer in prunable_layers(net).items():
        weight, mask = layer.weight.detach().cpu(), masks.get(dense.weights[name])
        remaining[name] = weight.flatten() if mask is None else weight[mask]
    return remaining


def sparsity_indices(weights: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return (PQ index with p = 0.5 and q = 1, Gini index) of all weights together; larger is sparser."""
    values = torch.cat(list(weights.values()))
    return pq_index(values), gini(values)


def collapse_notes(
    masks: Mapping[str, Tensor], validation: Evaluation, *, classes: int, round: int
) -> tuple[str, ...]:
    """Return a note for layers without a living weight, and one for a network no better than chance.

    Chance: a validation accuracy within two standard deviations of 1 / classes, or below it.
    """
    empty = [
        name.removesuffix(".weight") for name, mask in masks.items() if mask.dim() > 1 and not mask.any()
    ]
    notes = []
    if empty:
        omitted = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        notes.append(f"round {round}: no living weight in {', '.join(empty[:3])}{omitted}")
    chance, images = 1 / classes, int(validation.confusion.sum())
    if validation.accuracy <= chance + 2 * math.sqrt(chance * (1 - chance) / images):
        notes.append(f"round {round}: at chance on validation images")
    return tuple(notes)


@dataclass(frozen=True)
class Measurement:
    """What finished networks are compared by, on test images unless named `val_`.

    `*_physical` is what remains after dead channels are cut out, or the dense number where nothing can be
    cut. `amount` is the fraction of units (weights, units or channels) that are removed. `*_chosen` are by
    the masks that pruning chose; all else counts as dead, too, what is dead by consequence: the weights that
    read a removed unit. Results older than these fields have the numbers of the chosen masks in all fields.
    `train_flops_effective` leaves out dead weights, by the chosen masks that every epoch trained under; older
    results lack it.
    """

    accuracy: float
    top5: float
    loss: float
    val_accuracy: float
    val_loss: float
    test_seconds: float
    sparsity: float
    amount: float
    pq_index: float
    gini: float
    compression: float
    parameters_dense: int
    parameters_nonzero: int
    parameters_physical: int
    macs_dense: int
    macs_effective: int
    macs_physical: int
    bytes_dense: int
    bytes_sparse: int
    bytes_physical: int
    epochs: int
    train_seconds: float
    train_flops: int
    sparsity_chosen: float
    macs_effective_chosen: int
    train_flops_effective: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return every field as `prefix/name`."""
        return {f"{prefix}/{name}": float(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class ClassRow:
    """One class: its test images, and the accuracy of the dense and the pruned network on them."""

    label: str
    images: int
    accuracy_dense: float
    accuracy: float

    @property
    def drop(self) -> float:
        """The accuracy that pruning cost; below 0 where the pruned network is better."""
        return self.accuracy_dense - self.accuracy


def class_rows(names: Sequence[str], *, dense: Tensor, pruned: Tensor) -> tuple[ClassRow, ...]:
    """Return a row per class with test images, from confusion matrices [true, predicted] of equal images."""
    rows = []
    for number, (before, after) in enumerate(zip(dense.tolist(), pruned.tolist(), strict=True)):
        if images := sum(after):
            rows.append(ClassRow(names[number], images, before[number] / images, after[number] / images))
    return tuple(rows)


def worst(rows: Sequence[ClassRow]) -> ClassRow:
    """Return the class that has lost most; the first of several."""
    return max(rows, key=lambda row: row.drop)


def class_metrics(rows: Sequence[ClassRow]) -> dict[str, float]:
    """Return the lowest accuracy of a class, and the largest drop of a class, which may be another."""
    return {
        "worst_class_accuracy": min(row.accuracy for row in rows),
        "worst_class_drop": worst(rows).drop,
    }


ZSTD_LEVEL = 3  # zstd's own default; higher ones gained less than 0.2% on weights


def compressed_bytes(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> int:
    """Return the bytes of the sparse form of a state dict after zstd; the same for the same tensors.

    Before it, they are `sparse_bytes`. Another version of zstd may give a slightly different number.
    """
    codec = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
    return len(codec.compress(b"".join(sparse_form(tensors, masks)), asbytes=True))


def sparse_form(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Yield the bytes of every tensor, by name; of a masked one a bit per entry, and the living values."""
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        if name in masks and not masks[name].all():
            mask = masks[name].cpu()
            yield np.packbits(mask.numpy()).tobytes()
            values = values[mask]
        yield values.numpy().tobytes()
