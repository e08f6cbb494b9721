"""Transfer weights of a source model to a network with other images or classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from orchestrator.data.datasets import info
from pruning.dataflow import DataFlow
from pruning.masking import Masks
from pruning.registry import parse

Shapes = Mapping[str, tuple[int, ...]]
COLOURS = 3
REPEATED = "stem: 1 channel repeated to 3, by 3"
SUMMED = "stem: 3 channels summed"


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A whole network to start from: its dead weights at zero, its masks, and what its outputs are of.

    `classes` are as `classes_of` names them; None where they are not known.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class TensorMapping:
    """How each tensor of a network comes about: all but the `replaced`, which are drawn, are inherited.

    `adapted` and `replaced` say why, by name.
    """

    names: tuple[str, ...]
    adapted: Mapping[str, str]
    replaced: Mapping[str, str]

    @property
    def inherited(self) -> str:
        return f"{len(self.names) - len(self.replaced)} of {len(self.names)} tensors"


def classes_of(dataset: str) -> tuple[str, ...]:
    """What the outputs of a network for this data set are of, in their order: `digits/5`, ..."""
    name, options = parse(dataset)
    return tuple(f"{name}/{label}" for label in options.get("classes") or range(info(name).num_classes))


def match_tensors(
    outline: nn.Module,
    shapes: Shapes,
    *,
    flow: DataFlow,
    source_classes: tuple[str, ...] | None,
    target_classes: tuple[str, ...] | None,
) -> TensorMapping:
    """How a network of this outline takes the tensors of an ancestor. ValueError if it is of another model.

    `flow` is that of such a network: the head is what makes the logits, the stem what runs first.
    `theirs` and `ours` are the classes; a head of equal size is copied unless they are known to differ.
    """
    here = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
    if missing := sorted(here.keys() - shapes.keys()):
        raise ValueError(f"the models differ: the ancestor has no {missing[0]}")
    if others := sorted(shapes.keys() - here.keys()):
        raise ValueError(f"the models differ: {others[0]:.80} of the ancestor has no place here")
    stem, replaced = flow.layers[0], dict[str, str]()
    for head in flow.outputs:
        replaced |= _head(head, here, shapes, source_classes, target_classes)
    adapted: dict[str, str] = {}
    for name, shape in here.items():
        if name in replaced or shape == shapes[name]:
            continue
        if name != f"{stem}.weight" or len(shape) != len(shapes[name]) or shape[0] != shapes[name][0]:
            raise ValueError(
                f"the models differ: {name} is {_sizes(shapes[name])} in the ancestor, {_sizes(shape)} here"
            )
        if why := _channels(shapes[name], shape):
            adapted[name] = why
        else:
            replaced[name] = f"stem: {_sizes(shapes[name])} to {_sizes(shape)}"
    return TensorMapping(tuple(here), adapted, replaced)


def _head(
    layer: str,
    here: Shapes,
    shapes: Shapes,
    theirs: tuple[str, ...] | None,
    ours: tuple[str, ...] | None,
) -> dict[str, str]:
    """The tensors of the output layer with the reason, if it is to be drawn anew."""
    before, now = shapes[f"{layer}.weight"][0], here[f"{layer}.weight"][0]
    why = f"head: {before} classes to {now}"
    if before == now:
        if theirs is None or ours is None or theirs == ours:
            return {}
        why = "head: other classes"
    return {name: why for name in (f"{layer}.weight", f"{layer}.bias") if name in here}


def _channels(before: tuple[int, ...], now: tuple[int, ...]) -> str:
    """How a convolution takes images with more or fewer channels; nothing where it cannot."""
    if len(now) != 4 or before[2:] != now[2:]:
        return ""
    return {(1, COLOURS): REPEATED, (COLOURS, 1): SUMMED}.get((before[1], now[1]), "")


def transfer_weights(
    initial: Mapping[str, Tensor], source: SourceModel, mapping: TensorMapping, *, parameters: Shapes
) -> tuple[dict[str, Tensor], Masks]:
    """The weights to start from, and the ancestor's masks on them; of what is drawn anew all is alive.

    `drawn` is a fresh state dict of the network, `parameters` its parameters in their order.
    """
    weights = {}
    for name, fresh in initial.items():
        given = source.weights[name] if name not in mapping.replaced else fresh
        weights[name] = _fitted(given, mapping.adapted.get(name, "")).to(fresh.dtype).clone()
    masks = {
        name: torch.ones(shape, dtype=torch.bool)
        if name in mapping.replaced
        else _fitted_mask(source.masks[name], mapping.adapted.get(name, ""))
        for name, shape in parameters.items()
        if name in source.masks
    }
    return weights, masks


def _fitted(weight: Tensor, how: str) -> Tensor:
    if how == REPEATED:
        return weight.repeat(1, COLOURS, 1, 1) / COLOURS
    return weight.sum(dim=1, keepdim=True) if how == SUMMED else weight


def _fitted_mask(mask: Tensor, how: str) -> Tensor:
    if how == REPEATED:
        return mask.repeat(1, COLOURS, 1, 1)
    return mask.any(dim=1, keepdim=True) if how == SUMMED else mask


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


@dataclass(frozen=True, eq=False)
class SourceModelInfo:
    """The network of --from. `sha256`: of the manifest among its `files`, which hold it whole.

    `source` is what was given, `name` a run's id or a file's name. `model`, `input_shape` and `num_classes`
    build it; `classes` are None where they are not known; `pruned`: some of its weights are masked.
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
