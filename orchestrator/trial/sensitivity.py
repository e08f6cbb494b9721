"""Sensitivity: the loss on validation images after a part of one layer or group alone is removed.

Measured once for a dense network and a criterion, whatever is pruned by it later: the result belongs to the
dense network and is stored with it. Equal questions have equal answers, to the bit on one machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from orchestrator.config import Json, Prune, TrialConfig
from orchestrator.data.loading import Dataset, Split
from orchestrator.data.scaled_images import ScaledImages, index_device, read_images
from orchestrator.keys import STAGE_VERSIONS
from orchestrator.training.evaluation import Evaluation, evaluate_in_memory
from orchestrator.trial.context import NetworkState, TrialContext, make_context
from orchestrator.trial.stages import choose_masks
from orchestrator.trial.structure import layers_protected
from orchestrator.trial.unit_costs import group_macs
from pruning.allocation import LossCurve
from pruning.masking import Masks, alive_units, apply_masks, count_alive, full_masks, mask_units

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # parts of a layer or group; of units at least one stays
MAX_IMAGES = 5000  # of the validation images that are looked at
VERSION = 1  # of what is measured and of its file


@dataclass(frozen=True)
class Question:
    """What is asked of a dense network: the criterion, and what it removes; `protect` are left whole."""

    dense_key: str
    criterion: str
    granularity: str
    protect: tuple[str, ...]
    code: str = ""

    @property
    def digest(self) -> str:
        """A short name, for files."""
        record = {**asdict(self), "levels": LEVELS, "version": VERSION, "stage": STAGE_VERSIONS["trial"]}
        text = json.dumps(record, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class GroupSensitivity:
    """One layer or group: its `size` in weights or units, its MACs, and what removing from it alone costs.

    `losses` and `accuracies` are those on validation images after the `removed` lowest are gone, which rise
    from 0. A loss that is not finite is infinite.
    """

    name: str
    size: int
    macs: int
    removed: tuple[int, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    def curve(self, classes: int) -> LossCurve:
        """Return the losses up to the first that is more than halfway to that of guessing among `classes`.

        Above, a loss rises no further however much is lost: it says nothing of what else goes.
        """
        halfway = (self.losses[0] + math.log(classes)) / 2
        count = next((n for n, loss in enumerate(self.losses, start=1) if loss > halfway), len(self.losses))
        count = max(count, min(2, len(self.losses)))
        return LossCurve(self.removed[:count], self.losses[:count])

    def at(self, part: float) -> tuple[float, float] | None:
        """Return (loss, accuracy) after `part` is removed; None where that is no unit, or unmeasured."""
        count = int(part * self.size + 0.5)
        if not count or count not in self.removed:
            return None
        number = self.removed.index(count)
        return self.losses[number], self.accuracies[number]


@dataclass(frozen=True)
class Sensitivity:
    """The answer: a row for each group, in the order of the network, measured on so many `images`."""

    question: Question
    images: int
    groups: tuple[GroupSensitivity, ...]

    def curves(self, classes: int) -> Mapping[str, LossCurve]:
        """Return the losses that can be told from guessing, by group."""
        return {group.name: group.curve(classes) for group in self.groups}

    def to_text(self) -> str:
        """Return JSON with a hash of its content."""
        content = json.dumps({**asdict(self), "groups": [_group_json(group) for group in self.groups]})
        return json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content})


def read_sensitivity(text: str) -> Sensitivity:
    """Return what `to_text` wrote. ValueError for anything else, and where the hash differs."""
    try:
        record = json.loads(text)
        content = record["content"]
        if hashlib.sha256(content.encode()).hexdigest() != record["sha256"]:
            raise ValueError("the content is not as it was written")
        data = json.loads(content)
        question = Question(**{**data["question"], "protect": tuple(data["question"]["protect"])})
        return Sensitivity(question, int(data["images"]), tuple(map(_group_from_json, data["groups"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no table of sensitivities: {error}") from error


def _group_json(group: GroupSensitivity) -> Json:
    # JSON has no infinity.
    losses = [loss if math.isfinite(loss) else None for loss in group.losses]
    return {**asdict(group), "losses": losses}


def _group_from_json(data: Json) -> GroupSensitivity:
    losses = tuple(math.inf if loss is None else float(loss) for loss in data["losses"])
    numbers = {name: tuple(data[name]) for name in ("removed", "accuracies")}
    return GroupSensitivity(**{**data, **numbers, "losses": losses})


class SensitivityStore(Protocol):
    """Where sensitivities are stored, with their dense networks."""

    def sensitivity(self, question: Question) -> Sensitivity | None:
        """Return the stored answer to a question; None if there is none."""

    def add_sensitivity(self, sensitivity: Sensitivity) -> None:
        """Store an answer, if it can be stored now."""


def question_of(config: TrialConfig) -> Question:
    """Return what a trial asks of its dense network."""
    prune = config.prune
    return Question(config.dense.key(), prune.criterion, prune.granularity, prune.protect, config.trial_code)


def find_sensitivity(context: TrialContext, store: SensitivityStore | None) -> Sensitivity:
    """Return the stored answer to a trial's question, or measure and store it.

    A stored one of other layers or sizes than the network has is measured anew.
    """
    question = question_of(context.pruned_trial)
    stored = None if store is None else store.sensitivity(question)
    if stored is not None and {group.name: group.size for group in stored.groups} == _sizes(context):
        return stored
    measured = _measure(_asking(context.pruned_trial), context.data, context.trained_dense())
    if store is not None:
        store.add_sensitivity(measured)
    return measured


def _sizes(context: TrialContext) -> dict[str, int]:
    """Return name -> number of units of every group of a trial, or of weights of every layer."""
    if context.groups is not None:
        return {group.name: group.size for group in context.groups}
    net, protect = context.view_module(context.trained_dense()), context.pruned_trial.prune.protect
    protected = layers_protected(context.architecture, protect)
    return {name: mask.numel() for name, mask in full_masks(net, None, protect=protected).items()}


def _asking(config: TrialConfig) -> TrialConfig:
    """Return a configuration that is the same for all trials of one question."""
    options = config.prune
    prune = Prune(options.criterion, options.granularity, "layer", "one_shot", 0.0, options.protect)
    return TrialConfig(config.dense, prune, "none", "", trial_code=config.trial_code)


@lru_cache(maxsize=8)
def _measure(config: TrialConfig, data: Dataset, dense: NetworkState) -> Sensitivity:
    """Measure every group of a dense network, once in a process."""
    context = replace(make_context(config, data), dense_state=dense)
    split, net = chosen_images(data.validation), context.build_module(dense)
    whole, _ = evaluate_in_memory(net, split, numerics=context.config.numerics)
    sizes: dict[str, int] = {}
    results: dict[str, dict[int, Evaluation]] = {}  # of each group, by how many units are gone
    for level in LEVELS:
        for name, size, gone, masks in _removals(context, dense, level):
            sizes[name] = size
            own = results.setdefault(name, {0: whole})
            if gone not in own:
                own[gone] = _evaluate_without(net, masks, split, context)
    macs = group_macs(context.architecture, config.prune.granularity, config.prune.protect)
    rows = (_row(name, sizes[name], macs[name], results[name]) for name in sizes)
    return Sensitivity(question_of(config), len(split), tuple(rows))


def _row(name: str, size: int, macs: int, results: Mapping[int, Evaluation]) -> GroupSensitivity:
    counts = tuple(sorted(results))
    losses = tuple(results[n].loss if math.isfinite(results[n].loss) else math.inf for n in counts)
    return GroupSensitivity(name, size, macs, counts, losses, tuple(results[n].accuracy for n in counts))


def chosen_images(split: Split) -> Split:
    """Return the validation images, or of many a seeded choice."""
    if len(split) <= MAX_IMAGES:
        return split
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randperm(len(split), generator=generator)[:MAX_IMAGES].sort().values
    labels, index = split.labels[numbers.to(split.labels.device)], numbers.to(index_device(split.images))
    if isinstance(split.images, ScaledImages):  # which stay bytes
        return Split(replace(split.images, rows=split.images.rows[index]), labels)
    return Split(read_images(split.images, index), labels)


def _removals(
    context: TrialContext, dense: NetworkState, level: float
) -> Iterator[tuple[str, int, int, Masks]]:
    """Yield (name, size, number removed, masks that remove these alone) of every group or layer."""
    net, groups = context.view_module(dense), context.groups
    # An amount of 1 would leave nothing of a group, any below it leaves one unit.
    amount = level if groups is None or level < 1 else math.nextafter(1.0, 0.0)
    trial = replace(context.pruned_trial, prune=replace(context.pruned_trial.prune, amount=amount))
    masks = choose_masks(replace(context, trial=trial), net, {}, round=1)
    if groups is None:
        for name, mask in masks.items():
            yield name, mask.numel(), mask.numel() - count_alive(mask), {name: mask}
        return
    for group in groups:
        alive = alive_units(group, masks)
        full = {name: mask.cpu() for name, mask in full_masks(net, [group]).items()}
        yield group.name, group.size, int((~alive).sum()), mask_units(group, alive, full)


def _evaluate_without(net: nn.Module, masks: Masks, split: Split, context: TrialContext) -> Evaluation:
    """Evaluate a network under masks; its weights are afterwards as before."""
    parameters = dict(net.named_parameters())
    before: dict[str, Tensor] = {name: parameters[name].detach().clone() for name in masks}
    apply_masks(net, masks)
    try:
        return evaluate_in_memory(net, split, numerics=context.config.numerics)[0]
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                parameters[name].copy_(tensor)
