"""Run several jobs in turns, and the trainings at which they meet as stacks.

A job is ordinary code that trains now and then, such as a trial. Each runs in a thread of its own, but only
one at a time: until it asks for a training, or ends. Once all jobs have done so, the trainings that fit
together are run as one, and the jobs go on with the results. So a job's results do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import repeat
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

import torch
from torch import Tensor

from orchestrator.system.determinism import global_states, set_global_states
from orchestrator.system.memory import is_out_of_memory
from orchestrator.training.loop import EpochRecord, Training, run_training
from orchestrator.training.stack import Outcome, has_equal_bits, most_members, run_stack, stacking_key

Result = TypeVar("Result")


class StackMember:
    """What a job is given: its trainings are run by `run_training`, which may raise what ends the job.

    `largest_stack` is the number of trainings in the largest stack that one of them was in; 1 for none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.largest_stack = 1
        self.requested: Training | None = None
        self.states: dict[str, Tensor] = global_states(device)
        self._answers: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
        self._is_waiting: SimpleQueue[None] = SimpleQueue()

    def run_training(self, training: Training) -> list[EpochRecord]:
        """Return the records of a training, which has run in a stack or by itself."""
        self.requested, self.states = training, global_states(self.device)
        self._is_waiting.put(None)
        answer = self._answers.get()
        set_global_states(self.states, self.device)
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # an error that holds its own frame would hold the network, too
        return run_training(training) if answer is None else answer

    def start(self, job: Callable[[], None]) -> None:
        """Start a job in a thread, and return when it asks for a training or ends."""

        def run() -> None:
            set_global_states(self.states, self.device)
            job()
            self._is_waiting.put(None)

        Thread(target=run, name="stack member", daemon=True).start()
        self._is_waiting.get()

    def answer(self, answer: Outcome | BaseException | None) -> None:
        """Let the job go on with the records of its training, an error, or None: to run it by itself.

        Returns when it asks for the next training or ends.
        """
        self.requested = None
        self._answers.put(answer)
        self._is_waiting.get()


class _Job(Generic[Result]):
    """A job with its member and how it ended."""

    def __init__(self, run: Callable[[StackMember], Result], member: StackMember) -> None:
        self.run, self.member = run, member
        self.outcome: Result | BaseException

    def start(self) -> None:
        self.member.start(self._run)

    def _run(self) -> None:
        try:
            self.outcome = self.run(self.member)
        # Raised, or returned, where the jobs were started.
        except BaseException as error:  # noqa: BLE001
            self.outcome = error


def run_in_stacks(
    jobs: Sequence[Callable[[StackMember], Result]], *, model: str, device: torch.device
) -> list[Result | Exception]:
    """Run jobs of one `model`, and return what each returned or raised.

    What is no Exception, such as an interruption, ends all jobs, and is raised.
    """
    before = global_states(device)
    running = [_Job(run, StackMember(device)) for run in jobs]
    try:
        for job in running:
            job.start()
            _raise_interruption(job)
        while waiting := [job.member for job in running if job.member.requested is not None]:
            for members in _groups(waiting, model):
                for member, outcome in _run_group(members, model):
                    member.answer(outcome)
                    for job in running:
                        _raise_interruption(job)
    except BaseException as error:
        for job in running:  # each closes what it has open
            while job.member.requested is not None:
                job.member.answer(error)
        raise
    finally:
        set_global_states(before, device)
    return [_ended(job.outcome) for job in running]


def _ended(outcome: Result | BaseException) -> Result | Exception:
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome
    return outcome


def _raise_interruption(job: _Job[Result]) -> None:
    if job.member.requested is None:
        _ended(job.outcome)


def _groups(members: Sequence[StackMember], model: str) -> Iterator[list[StackMember]]:
    """Yield the members whose trainings may be stacked, as many as fit into memory at a time.

    One whose training may not be stacked is by itself.
    """
    groups: dict[Hashable, list[StackMember]] = {}
    for member in members:
        key = None if member.requested is None else stacking_key(member.requested)
        groups.setdefault(id(member) if key is None else (model, key), []).append(member)
    for group in groups.values():
        first = group[0].requested
        most = len(group) if first is None else most_members(first.net)
        yield from (group[start : start + most] for start in range(0, len(group), most))


def _run_group(members: Sequence[StackMember], model: str) -> Iterable[tuple[StackMember, Outcome | None]]:
    """Run the trainings that members ask for: as a stack where that has the same bits.

    Returns what each member is to be answered: None where its training is to run by itself.
    """
    trainings = [member.requested for member in members if member.requested is not None]
    if len(members) == 1 or not has_equal_bits(trainings, (model, stacking_key(trainings[0]))):
        return zip(members, repeat(None))
    starts = [TrainingStart(training) for training in trainings]
    states = [{name: state.clone() for name, state in member.states.items()} for member in members]
    outcomes: Sequence[Outcome | None]
    try:
        outcomes = run_stack(trainings, [member.states for member in members])
    # Every job acts on it as if its training had been by itself.
    except Exception as error:  # noqa: BLE001
        if not is_out_of_memory(error) or not all(start.can_return for start in starts):
            return zip(members, repeat(error))
        outcomes = []
    if not outcomes:  # memory ran out that each of them may find by itself
        for member, start, state in zip(members, starts, states, strict=True):
            start.restore()
            member.states = state
        return zip(members, repeat(None))
    for member in members:
        member.largest_stack = max(member.largest_stack, len(members))
    return zip(members, outcomes, strict=True)


class TrainingStart:
    """What a training changes, as it is before it begins: a stack that fails returns to it.

    A training whose hooks remember what nothing saves cannot return.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.can_return = not training.hooks.cannot_resume
        self._weights = {name: tensor.clone() for name, tensor in training.net.state_dict().items()}
        self._generator = training.generator.get_state()
        self._hooks = training.hooks.state_dict() if self.can_return else None

    def restore(self) -> None:
        """Give network, generator and hooks their first state."""
        # A stack has moved the parameters into tensors of its own, which are to be let go.
        for name, parameter in self.training.net.named_parameters():
            parameter.data, parameter.grad = self._weights[name], None
        self.training.net.load_state_dict(self._weights)
        self.training.generator.set_state(self._generator)
        if self.training.hooks.stateful is not None and self._hooks is not None:
            self.training.hooks.stateful.load_state_dict(self._hooks)
