"""Transfer weights of a source model to a network with other images or classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from orchestrator.data.datasets import DATASETS, info, parse_dataset
from pruning.dataflow import DataFlow
from pruning.masking import Masks

Shapes = Mapping[str, tuple[int, ...]]
COLOURS = 3
REPEATED = "stem: 1 channel repeated to 3, by 3"
SUMMED = "stem: 3 channels summed"


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A trained network to start from: weights with their dead entries at zero, and masks.

    `classes` are its outputs as `classes_of` names them; None where they are not known.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class TensorMapping:
    """How a network takes each tensor of a source model: all are inherited but the `replaced`.

    `adapted` and `replaced` hold the reason, by name; the replaced tensors are drawn anew.
    """

    names: tuple[str, ...]
    adapted: Mapping[str, str]
    replaced: Mapping[str, str]

    @property
    def inherited(self) -> str:
        """How many tensors are inherited, in words."""
        return f"{len(self.names) - len(self.replaced)} of {len(self.names)} tensors"


def classes_of(dataset: str) -> tuple[str, ...]:
    """Return what the outputs of a network for this data set stand for, in order: `digits/5`, ..."""
    name, options = parse_dataset(dataset)
    facts = info(name)
    labels = options.get("classes") or range(facts.num_classes)
    if facts.name in DATASETS:
        return tuple(f"{name}/{label}" for label in labels)
    return tuple(f"{facts.name}/{facts.class_names[label]}" for label in labels)


def match_tensors(
    network: nn.Module,
    source_shapes: Shapes,
    *,
    flow: DataFlow,
    source_classes: tuple[str, ...] | None,
    target_classes: tuple[str, ...] | None,
) -> TensorMapping:
    """Return how a network, which may be on `meta`, takes the tensors of a source model.

    `flow` is that of the network: the head is what makes the logits, the stem what runs first. A head of
    equal size is copied unless the classes are known to differ. ValueError if the models differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if missing := sorted(shapes.keys() - source_shapes.keys()):
        raise ValueError(f"the models differ: the ancestor has no {missing[0]}")
    if surplus := sorted(source_shapes.keys() - shapes.keys()):
        raise ValueError(f"the models differ: {surplus[0]:.80} of the ancestor is not in this model")
    stem, replaced = flow.layers[0], dict[str, str]()
    for head in flow.outputs:
        if reason := _head_conflict(head, shapes, source_shapes, source_classes, target_classes):
            tensors = (f"{head}.weight", f"{head}.bias")
            replaced |= {name: reason for name in tensors if name in shapes}
    adapted: dict[str, str] = {}
    for name, shape in shapes.items():
        source_shape = source_shapes[name]
        if name in replaced or shape == source_shape:
            continue
        if name != f"{stem}.weight" or len(shape) != len(source_shape) or shape[0] != source_shape[0]:
            raise ValueError(
                f"the models differ: {name} is {_sizes(source_shape)} in the ancestor, {_sizes(shape)} here"
            )
        if how := _stem_adaptation(source_shape, shape):
            adapted[name] = how
        else:
            replaced[name] = f"stem: {_sizes(source_shape)} to {_sizes(shape)}"
    return TensorMapping(tuple(shapes), adapted, replaced)


def _head_conflict(
    layer: str,
    shapes: Shapes,
    source_shapes: Shapes,
    source_classes: tuple[str, ...] | None,
    target_classes: tuple[str, ...] | None,
) -> str:
    """Return why the output layer is drawn anew; empty if it is inherited."""
    before, now = source_shapes[f"{layer}.weight"][0], shapes[f"{layer}.weight"][0]
    if before != now:
        return f"head: {before} classes to {now}"
    is_known = source_classes is not None and target_classes is not None
    return "head: other classes" if is_known and source_classes != target_classes else ""


def _stem_adaptation(before: tuple[int, ...], now: tuple[int, ...]) -> str:
    """Return how a convolution takes images with more or fewer channels; empty where it cannot."""
    if len(now) != 4 or before[2:] != now[2:]:
        return ""
    return {(1, COLOURS): REPEATED, (COLOURS, 1): SUMMED}.get((before[1], now[1]), "")


def transfer_weights(
    initial: Mapping[str, Tensor], source: SourceModel, mapping: TensorMapping, *, parameters: Shapes
) -> tuple[dict[str, Tensor], Masks]:
    """Return the weights to start from, and the source model's masks on them.

    `initial` is a fresh state dict of the network, `parameters` its parameters in their order. Tensors that
    are drawn anew have full masks.
    """
    weights = {}
    for name, fresh in initial.items():
        tensor = fresh if name in mapping.replaced else source.weights[name]
        how = mapping.adapted.get(name)
        # Either way a grey image gives what it gives as three equal channels.
        if how == REPEATED:
            tensor = tensor.repeat(1, COLOURS, 1, 1) / COLOURS
        elif how == SUMMED:
            tensor = tensor.sum(dim=1, keepdim=True)
        weights[name] = tensor.to(fresh.dtype).clone()
    masks = {}
    for name, shape in parameters.items():
        if name not in source.masks:
            continue
        mask = torch.ones(shape, dtype=torch.bool) if name in mapping.replaced else source.masks[name]
        how = mapping.adapted.get(name)
        if how == REPEATED:
            mask = mask.repeat(1, COLOURS, 1, 1)
        elif how == SUMMED:
            mask = mask.any(dim=1, keepdim=True)
        masks[name] = mask
    return weights, masks


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


@dataclass(frozen=True, eq=False)
class SourceModelInfo:
    """The network of --from. `sha256` is that of the manifest among its `files`, which hold all of it.

    `source` is the text given to --from, `name` a run's id or a file's name. `model`, `input_shape` and
    `num_classes` build it; `classes` are None where they are not known; `pruned`: some weights are masked.
    """

    sha256: str
    source: str
    name: str
    model: str
    input_shape: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...] | None
    shapes: Mapping[str, tuple[int, ...]]
    pruned: bool
    files: Mapping[str, bytes] = field(repr=False)
