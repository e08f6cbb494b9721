"""Summaries of a plan and of a finished sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.setting_means import comparison_records
from orchestrator.analysis.tables import Table, tables
from orchestrator.formatting import format_duration, format_size
from orchestrator.storage.runs import PICTURE, REPORT, RunRecord
from orchestrator.trial.task import SweepOutcome
from pruning.user_code import own_code

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.analysis.best_points import FrontPoint
    from orchestrator.planning.changes import Changes
    from orchestrator.planning.estimate import Estimate
    from orchestrator.planning.micro_batches import NormImages
    from orchestrator.planning.plan import Plan
    from orchestrator.planning.stacks import StackSummary


@dataclass(frozen=True)
class Preview:
    """A plan, what the store already has of it, and what the rest would take."""

    plan: Plan
    estimate: Estimate
    proposed: int = 0  # points that a search has proposed so far
    changes: Changes | None = None  # since the results in the store
    unpruned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # model -> layers never pruned
    missing_data: Mapping[str, str] = field(default_factory=dict)  # name -> what is missing, and what to do
    small_norms: Sequence[NormImages] = ()  # trainings whose batch norms see less than a batch
    stacks: Sequence[StackSummary] = ()  # of each model, where trainings may run as one
    most_stacked: int = 1

    def to_json(self) -> dict[str, Any]:  # JSON
        search = self.plan.space.search
        search_fields = {
            "method": search.method,
            "points": search.points,
            "seeds": len(self.plan.space.axes.seed),
            "asked": self.proposed,
            "objectives": dict(search.objectives),
            **({"constraints": dict(search.constraints)} if search.constraints else {}),
        }
        return {
            **({"search": search_fields} if search.method != "grid" else {}),
            "space": self.plan.space.name,
            "trials": len(self.plan.trials),
            "dense_trainings": len(self.plan.dense),
            "reused": self.estimate.reused,
            "trials_to_run": self.estimate.trials_to_run,
            "dense_to_run": self.estimate.dense_to_run,
            "excluded": [
                {name: value for name, value in asdict(item).items() if value != ""}
                for item in self.plan.excluded
            ],
            "not_pruned": {model: list(names) for model, names in self.unpruned.items()},
            "estimated_seconds": self.estimate.seconds,
            "estimated_start_seconds": self.estimate.start_seconds,
            "estimated_training_seconds": self.estimate.training_seconds,
            "estimated_recording_seconds": self.estimate.recording_seconds,
            "estimate_unknown": self.estimate.unknown,
            "train_flops": self.estimate.train_flops,
            "disk_bytes": self.estimate.disk_bytes,
            "estimate_basis": self.estimate.basis,
            "batch_norm": [asdict(item) for item in self.small_norms],
            "missing_data": dict(self.missing_data),
            "stacks": [asdict(stack) for stack in self.stacks],
            "most_stacked": self.most_stacked,
            "changed": list(self.changes.descriptions) if self.changes else [],
            "trials_changed": self.changes.trials if self.changes else 0,
        }

    def lines(self) -> Iterator[str]:
        """Yield the preview as lines of text."""
        plan, cost = self.plan, self.estimate
        yield f"{plan.space.name}: {plan.space.about}".removesuffix(": ")
        for name, problem in self.missing_data.items():
            yield f"missing data     {own_code.shown(name)}: {problem}"
        yield from self._search_lines()
        yield f"trials           {len(plan.trials)}: {cost.trials_to_run} to run, {cost.reused} in the store"
        yield f"dense trainings  {len(plan.dense)}: {cost.dense_to_run} to run; all trials of one share it"
        for item in plan.excluded:
            yield f"excluded         {item.count}: {item.reason}"
        for model, names in self.unpruned.items():
            yield f"not pruned       {own_code.shown(model)}: {', '.join(names)}"
        for small in self.small_norms:
            yield f"batch norm       {small}"
        yield from self._stack_lines()
        yield from self._time_lines()
        yield f"training         {cost.train_flops:.3g} FLOPs"
        yield f"disk             {format_size(cost.disk_bytes)}"
        if self.changes and self.changes.descriptions:
            yield f"changed          {self.changes.line()}"

    def _stack_lines(self) -> Iterator[str]:
        for stack in self.stacks:
            model = own_code.shown(stack.model)
            if stack.count:
                text = f"{stack.count} of {stack.total} runs, up to {self.most_stacked} at a time"
                yield f"in stacks        {model}: {text}"
            elif stack.conflict:
                yield f"one by one       {model}: {stack.conflict}"

    def _time_lines(self) -> Iterator[str]:
        cost = self.estimate
        if not cost.trials_to_run:
            yield f"time             {format_duration(cost.seconds)}: {cost.basis}"
            return
        seconds_by_part = {
            "start-up": cost.start_seconds,
            "training": cost.training_seconds,
            "measuring and recording": cost.recording_seconds,
        }
        text = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in seconds_by_part.items())
        yield f"time             about {format_duration(cost.seconds)}: {text}"
        yield f"                 by {cost.basis}"
        if cost.unknown:
            yield f"                 its error is unknown: {cost.unknown}"

    def _search_lines(self) -> Iterator[str]:
        space = self.plan.space
        search, seeds = space.search, len(space.axes.seed)
        if search.method != "grid":
            each = "one seed each" if seeds == 1 else f"{seeds} seeds each"
            yield f"search           {search.points} points by {search.method}, {each}"
            yield f"objectives       {', '.join(f'{name}: {way}' for name, way in search.objectives.items())}"
            if search.constraints:
                limits = ", ".join(f"{name} {text}" for name, text in search.constraints.items())
                yield f"constraints      {limits}"
        if search.method == "tpe" and not self.plan.exhausted:
            remaining = max(0, len(self.plan.points) - self.proposed)
            assumed = (
                f"; the numbers below take {remaining} drawn at random for the rest" if remaining else ""
            )
            yield f"asked so far     {self.proposed}{assumed}"


@dataclass(frozen=True, eq=False)
class Summary:
    """What a sweep did: its space's name, the number of its trials, its run and the table of its trials.

    `outcome` holds the tasks that ran now; `search` is the plan of a search, and None for a grid.
    """

    space: str
    trials: int
    sweep: RunRecord
    results: DataFrame
    outcome: SweepOutcome
    reused: int
    search: Plan | None = None

    @classmethod
    def of_plan(
        cls, plan: Plan, sweep: RunRecord, results: DataFrame, ended: SweepOutcome, reused: int
    ) -> Summary:
        """Return the summary of a plan, as far as it is known."""
        search = plan if plan.points else None
        return cls(plan.space.name, len(plan.trials), sweep, results, ended, reused, search)

    @property
    def failures(self) -> dict[str, str]:
        """Name of a task that failed in this sweep -> reason."""
        return {result.task.name: result.reason for result in self.outcome.failures}

    @property
    def failed(self) -> int:
        """Number of trials that failed, now or before, those whose dense network failed included."""
        status = self.results["status"]
        is_failed = status == "failed" if self.outcome.signal else ~status.isin(("finished", "stopped"))
        return int(is_failed.sum())

    @property
    def stopped(self) -> int:
        """Number of trials that were stopped early, now or before."""
        return int((self.results["status"] == "stopped").sum())

    def tables(self) -> list[Table]:
        """Return all tables; of a search the best points alone: every point has a setting of its own."""
        if self.search is None:
            return tables(self.results)
        from orchestrator.analysis.best_points import best_table  # torch, with the methods that it describes

        best = best_table(self.search, self.results)
        return [] if best is None else [best]

    def best(self) -> list[FrontPoint]:
        """Return the best points of a search; none of a grid."""
        if self.search is None:
            return []
        from orchestrator.analysis.best_points import best_points

        return best_points(self.search, self.results)

    def line(self) -> str:
        """Return one line: what ran, what was reused, what was stopped or failed."""
        ran = len(self.outcome.results) - len(self.outcome.failures)
        if not self.outcome.results and not self.outcome.signal:
            failed = f", {self.failed} of them failed before" if self.failed else ""
            failed = f", {self.stopped} of them stopped early{failed}" if self.stopped else failed
            return f"{self.space}: nothing to do: all {self.trials} trials are in the store{failed}"
        failed = f", {self.failed} failed" if self.failed else ""
        failed = f", {self.stopped} stopped early{failed}" if self.stopped else failed
        return f"{self.space}: {self.trials} trials, {ran} runs made, {self.reused} trials reused{failed}"

    def picture(self) -> Path | None:
        """Return the file of the picture, if the store is on this disk."""
        return self._file(PICTURE)

    def report(self) -> Path | None:
        """Return the file of the report, if the store is on this disk."""
        return self._file(REPORT)

    def _file(self, name: str) -> Path | None:
        path = self.sweep.local_path(name)
        return path if path is not None and path.exists() else None

    def to_json(self) -> dict[str, Any]:  # JSON
        return {
            "space": self.space,
            "sweep": self.sweep.run_id,
            "trials": self.trials,
            "ran": len(self.outcome.results) - len(self.outcome.failures),
            "reused": self.reused,
            "stopped": self.stopped,
            "failed": self.failed,
            "failures": self.failures,
            **({"best": [point.to_json() for point in self.best()]} if self.search else {}),
            "results": comparison_records(self.results),
        }
