"""The search behind `orchestrate compress`: run its space, choose the run that answers, and export it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pandas import DataFrame

from orchestrator.errors import BudgetError, StoreError, UsageError
from orchestrator.execution.options import SweepOptions
from orchestrator.execution.sweep import run_sweep
from orchestrator.latency.exported_files import bench
from orchestrator.model_io.export import ExportOptions
from orchestrator.planning.amounts import budget_conflict
from orchestrator.shipping.budgets import Answer, Budget, choose, front_lines
from orchestrator.shipping.folder import ship
from orchestrator.space.space import Space
from orchestrator.space.values import listed_values
from orchestrator.system.signals import SignalHandler
from pruning.target_amounts import is_target

SECONDS = 1.0  # in which the latency of one network is measured


@dataclass(frozen=True)
class Request:
    """What is asked for: budgets, and how far below dense a network may be, as a fraction of images."""

    budgets: Sequence[Budget]
    within: float | None

    def __str__(self) -> str:
        points = () if self.within is None else (f"within {100 * self.within:g}% of dense",)
        return ", ".join([*map(str, self.budgets), *points])


@dataclass(frozen=True, eq=False)
class Compression:
    """The trials of the search, and the run that answers or comes nearest."""

    request: Request
    results: DataFrame
    answer: Answer
    uri: str

    def lines(self) -> Iterator[str]:
        """Yield the front of accuracy and MACs, and what the answer has."""
        yield from front_lines(self.results)
        yield from self.answer.lines()

    def export(self, folder: Path) -> Iterator[str]:
        """Export the answer below a folder, and yield what to print. BudgetError where it misses."""
        answer = self.answer
        if answer.missed:
            nearest = f"the nearest is run {answer.run_id}: {answer.missed}"
            raise BudgetError(f"nothing meets {self.request}; {nearest}")
        network = folder / f"network-{answer.run_id[:8]}"
        if network.exists():
            yield f"it is in {network} already"
            return
        count = int((self.results["status"] == "finished").sum())
        reason = f"It was chosen among {count:,} trials, by validation accuracy, for: {self.request}."
        yield from ship(answer.run_id, ExportOptions(), out=network, reason=reason, uri=self.uri).lines()


def check_budgets(space: Space, request: Request) -> None:
    """Raise BudgetError for a budget that no network of the space can meet, UsageError for other amounts."""
    for amount in listed_values(space.axes.amount or ()):
        if not is_target(amount):
            raise UsageError(
                f"amount {str(amount)[:80]}: compress sets it by --budget; give --budget 'macs<=50%', or an "
                "amount that says what may be left, as --set 'amount={macs: 50%}'"
            )
    if conflict := budget_conflict(space):
        raise BudgetError(f"nothing meets {request}: {conflict}")


def compress(
    space: Space, options: SweepOptions, request: Request, *, uri: str, signals: SignalHandler
) -> Compression | None:
    """Run or resume the search, and choose; None where it was interrupted.

    StoreError where no trial has finished.
    """
    summary = run_sweep(space, options, uri=uri, signals=signals)
    if signals.received:
        return None

    def measure(run_id: str) -> float:
        return bench(run_id, threads=1, batches=(1,), seconds=SECONDS, uri=uri).timings[0].p50_ms

    answer = choose(summary.results, request.budgets, within=request.within, measure=measure)
    if answer is None:
        raise StoreError(f"no trial has finished; `orchestrate status {summary.space}` says why")
    return Compression(request, summary.results, answer, uri)
