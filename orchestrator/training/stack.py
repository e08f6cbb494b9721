"""Several trainings of one shape as one: each of their steps is a step of a stacked network.

Every training keeps its own data order, masks, learning rates, records and checkpoints. A stack is used where
its results have the bits that the trainings have by themselves, which is tried once for every shape.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor, nn

from orchestrator.data.loading import Split
from orchestrator.system.determinism import global_states, set_global_states
from orchestrator.training.checkpoint_packing import optimizer_tensors, snapshot
from orchestrator.training.evaluation import precision
from orchestrator.training.loop import EpochRecord, EpochSums, Training, TrainingLoop
from orchestrator.training.losses import Labels, cross_entropy
from orchestrator.training.masked_step import join_maskers
from orchestrator.training.optimizers import make_group_optimizer
from orchestrator.training.stacked_network import StackedNetwork, stacking_conflict, uses_products_alone

# Of one member's step: beyond it the products themselves are most of a step, and a stack is no faster. That
# of the CPU is measured (benchmarks/stacks.py), that of a GPU is not.
MOST_STEP_FLOPS = {"cpu": 200_000_000, "cuda": 20_000_000_000}
MOST_BYTES = 1 << 30  # of a stack's parameters, gradients and optimizer, and of the copies that try it
Outcome = list[EpochRecord] | Exception
GlobalStates = Mapping[str, Tensor]


def stacking_key(training: Training) -> Hashable:
    """Return what trainings must share to be stacked; None for one that gains nothing, or cannot be."""
    hooks, numerics, device = training.hooks, training.numerics, training.split.images.device
    images = min(training.batch_size, numerics.micro_batch)
    acts_in_steps = hooks.regularizer or hooks.after_backward or hooks.optimizer_step
    if (
        training.is_cut
        or acts_in_steps
        or hooks.loss is not cross_entropy
        or stack_conflict(training.net, images, device.type)
    ):
        return None
    tensors = ((name, t.shape, t.dtype, t.stride()) for name, t in training.net.state_dict().items())
    records = 0 if training.resume_from is None else len(training.resume_from.records)
    sizes = (training.batch_size, len(training.split), training.split.images.shape[1:], records)
    shared = (training.phase.epochs, training.recipe, numerics, str(device))
    return (repr(training.net), *tensors, *sizes, *shared)


def stack_conflict(net: nn.Module, images: int, device: str) -> str:
    """Return why trainings of a network, `images` at a time, run one by one; empty where they need not."""
    if reason := stacking_conflict(net):
        return reason
    if not uses_products_alone(net):
        return "layers that are not linear run no faster in a stack"
    if _step_flops(net, images) > MOST_STEP_FLOPS[device]:
        return "its matrix products are most of a step"
    return ""


def most_members(net: nn.Module) -> int:
    """Return how many trainings of a network a stack may have by its memory, 1 or more."""
    # The members, their copies of the trial steps by themselves and stacked, gradients, two moments each.
    own = sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
    return max(1, MOST_BYTES // max(1, 10 * own))


def _step_flops(net: nn.Module, images: int) -> int:
    """Return the FLOPs of the matrix products of a forward and backward pass."""
    return 6 * images * sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear))


def run_stack(trainings: Sequence[Training], states: Sequence[GlobalStates]) -> list[Outcome]:
    """Run trainings with one `stacking_key` as one, and return for each its records, or how it failed.

    `states` are those of torch's global generators that each training is to find, which are on the CPU. What
    is no Exception, such as an interruption, ends all of them.
    """
    stack = _Stack(trainings, states)
    for epoch in range(len(stack.loops[0].records), trainings[0].phase.epochs):
        stack.run_epoch(epoch)
        if all(outcome is not None for outcome in stack.failures):
            break
    return [failure or loop.finish() for failure, loop in zip(stack.failures, stack.loops, strict=True)]


class _Stack:
    """The loops of several trainings, whose steps are taken by one network and one optimizer."""

    def __init__(self, trainings: Sequence[Training], states: Sequence[GlobalStates]) -> None:
        self.states = states
        # First: it moves the parameters to where the loops are to find them.
        self.network = StackedNetwork([training.net for training in trainings])
        self.loops = [self._make_loop(*pair) for pair in zip(trainings, states, strict=True)]
        self.failures: list[Exception | None] = [None] * len(self.loops)
        self.phases = list(dict.fromkeys(training.phase for training in trainings))
        self.recipe = trainings[0].recipe
        self.optimizer = make_group_optimizer(
            self.recipe,
            [
                [
                    parameter
                    for loop in self.loops
                    if loop.phase == phase
                    for parameter in loop.net.parameters()
                ]
                for phase in self.phases
            ],
        )
        for loop in self.loops:  # both write to the same state
            for parameter in loop.net.parameters():
                self.optimizer.state[parameter] = loop.optimizer.state[parameter]

    @staticmethod
    def _make_loop(training: Training, states: GlobalStates) -> TrainingLoop:
        with _at_global_states(states, training.split.images.device):
            return TrainingLoop(training)

    def run_epoch(self, epoch: int) -> None:
        """Pass over the data once, and let every training end its epoch."""
        started = perf_counter()
        all_sums = self.take_steps(epoch)
        seconds = (perf_counter() - started) / len(self.loops)
        for index, (loop, sums) in enumerate(zip(self.loops, all_sums, strict=True)):
            if self.failures[index] is not None:
                continue
            try:
                with _at_global_states(self.states[index], loop.device):
                    loop.finish_epoch(epoch, sums, seconds=seconds)
            # Of this training alone: it is raised where the training was asked for.
            except Exception as error:  # noqa: BLE001
                self.failures[index] = error

    def take_steps(self, epoch: int) -> list[EpochSums]:
        """Take all steps of an epoch, and return each training's sums."""
        for net in (self.network, *(loop.net for loop in self.loops)):
            net.train()
        first, apply_masks = self.loops[0], join_maskers([loop.apply_masks for loop in self.loops])
        size, batch_size = len(first.training.split), first.training.batch_size
        sums, rates = torch.zeros((2, len(self.loops)), device=first.device), dict.fromkeys(self.phases, 0.0)
        steps = math.ceil(size / batch_size)
        epochs = [loop.inputs.epoch(batch_size, micro_batch=loop.numerics.micro_batch) for loop in self.loops]
        for step, batches in enumerate(zip(*epochs, strict=True)):
            for loop in self.loops:
                rates[loop.phase] = loop.lr_at(epoch + step / steps, step=1 / steps)
            for group, phase in zip(self.optimizer.param_groups, self.phases, strict=True):
                group["lr"] = rates[phase]
            self.optimizer.zero_grad(set_to_none=True)
            for parts in zip(*(micro_batches for _, micro_batches in batches), strict=True):
                sums += self._accumulate(parts, batches[0][0])
            self.network.share_gradients()
            self._step()
            apply_masks()
            for loop in self.loops:
                if loop.average is not None:
                    loop.average.update()
        losses, hits = sums.tolist()  # the only wait for the device
        return [
            EpochSums(loss, correct, rates[loop.phase])
            for loss, correct, loop in zip(losses, hits, self.loops, strict=True)
        ]

    def _accumulate(self, parts: Sequence[tuple[Tensor, Labels]], batch_size: int) -> Tensor:
        """Add the gradients of a micro-batch of each training; return [losses, correct predictions]."""
        images = torch.cat([images for images, _ in parts])
        with precision(self.loops[0].numerics, images.device):
            logits = self.network(images)
        losses, hits = [], []
        for own, (_, labels) in zip(logits.float().chunk(len(parts)), parts, strict=True):
            targets = labels.targets(own.shape[1], smoothing=self.recipe.label_smoothing)
            losses.append(cross_entropy(own, images, targets))
            hits.append(labels.count_hits(own.detach().argmax(1)))
        torch.autograd.backward([loss / batch_size for loss in losses])
        return torch.stack([torch.stack(losses).detach(), torch.stack(hits)])

    def _step(self) -> None:
        if self.recipe.clip_norm:
            for loop in self.loops:
                nn.utils.clip_grad_norm_(loop.net.parameters(), self.recipe.clip_norm)
        self.optimizer.step()


@contextmanager
def _at_global_states(states: GlobalStates, device: torch.device) -> Iterator[None]:
    """Within the block torch's global generators are at `states`, which are left where it leaves them."""
    before = global_states(device)
    set_global_states(states, device)
    try:
        yield
    finally:
        for name, state in global_states(device).items():
            states[name].copy_(state)
        set_global_states(before, device)


_verdicts: dict[Hashable, bool] = {}  # by key and number of members


def has_equal_bits(trainings: Sequence[Training], key: Hashable) -> bool:
    """Whether a stack of these trainings has the bits that each has by itself.

    A few steps are taken both ways on copies, once in a process for a `key` and a number of trainings.
    """
    case = (key, len(trainings))
    if case not in _verdicts:
        try:
            _verdicts[case] = _rehearse(trainings)
        # Other people's networks: one that cannot run on several batches at once may fail in any way.
        except Exception:  # noqa: BLE001
            _verdicts[case] = False
    return _verdicts[case]


def _rehearse(trainings: Sequence[Training]) -> bool:
    """Return whether weights, optimizers and losses have the same bits after a few steps.

    A network that draws numbers of its own has other ones in a stack, however rarely that shows.
    """
    device = trainings[0].split.images.device
    before = global_states(device)
    singles = [TrainingLoop(_shorten(training)) for training in trainings]
    alone = [_results(loop, loop.run_epoch(0)) for loop in singles]
    if not _are_equal(before, global_states(device)):
        return False
    states = [global_states(device) for _ in trainings]
    stack = _Stack([_shorten(training) for training in trainings], states)
    stacked = map(_results, stack.loops, stack.take_steps(0))
    return all(_are_equal(*pair) for pair in zip(alone, stacked, strict=True))


def _shorten(training: Training) -> Training:
    """Return a copy of a training with two whole batches and the short one at the end."""
    split, size = training.split, training.batch_size
    count = min(len(split), 2 * size + len(split) % size)
    part = Split(split.images[:count], split.labels[:count], split.pixel_scale)
    generator = torch.Generator(training.generator.device)
    generator.set_state(training.generator.get_state())
    return replace(training, net=deepcopy(training.net), split=part, generator=generator, resume_from=None)


def _results(loop: TrainingLoop, sums: EpochSums) -> dict[str, Tensor]:
    values = torch.tensor([sums.loss, sums.correct, sums.lr], dtype=torch.float64)
    return {"sums": values, **snapshot(loop.net), **optimizer_tensors(loop.optimizer)}


def _are_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
