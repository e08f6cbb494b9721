"""What the report knows of a sweep: its results, and a bounded number of its runs' files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.notes import marks
from orchestrator.analysis.pareto import earlier_networks
from orchestrator.analysis.plots import spread
from orchestrator.analysis.results import SweepResults
from orchestrator.analysis.settings import (
    amount_label,
    method_label,
    method_names,
    panel_title,
    point_label,
    setting_columns,
    settings,
)
from orchestrator.analysis.tables import Table
from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.space import yaml_loader
from orchestrator.storage.runs import COMMAND
from orchestrator.tracking import RunRecord, Tracker

if TYPE_CHECKING:
    from pandas import DataFrame

SPACE, ENVIRONMENT = "space.yaml", "environment.json"
Json = Any  # of an artifact


@dataclass(frozen=True, eq=False)
class Cell:
    """A setting as the report shows it: where it stands, what it is called, and its trials, one per seed.

    `method` is what it has in common with other amounts, or in a search with other points; `name` is all.
    """

    panel: str
    method: str
    name: str
    amount: float
    rows: DataFrame

    @property
    def amount_text(self) -> str:
        return amount_label(self.rows)

    @property
    def marks(self) -> str:
        return marks(self.rows)

    @cached_property
    def trials(self) -> list[dict[str, Json]]:
        """Its rows of `results`, the lowest seed first."""
        rows = self.rows.sort_values("seed")
        names = [str(name) for name in rows]  # by columns: `to_dict` takes 20 ms a row
        columns = (rows[name].tolist() for name in rows)
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def mean(self, name: str) -> float:
        """Of one metric, by its full name."""
        return float(self.rows[name].mean())


@dataclass(frozen=True, eq=False)
class Swept:
    """One sweep. Texts are as people wrote them: nothing in it is safe to show unescaped."""

    tracker: Tracker
    run: RunRecord
    joined: SweepResults

    @property
    def name(self) -> str:
        return str(self.joined.plan.get("space", self.run.name))

    @property
    def results(self) -> DataFrame:
        return self.joined.results

    @cached_property
    def finished(self) -> DataFrame:
        return self.results[self.results["status"] == "finished"]

    @cached_property
    def earlier(self) -> DataFrame:
        """The networks of rounds before the last, as rows of `results`."""
        return earlier_networks(self.results, self.joined.runs.values(), self.tracker)

    @cached_property
    def test_images(self) -> dict[str, int]:
        """Data set -> how many test images it has, from the files of one finished run of each."""
        first = self.finished.drop_duplicates("dataset").to_dict("records")
        matrices = {
            str(row["dataset"]): self.file(self.run_of({str(k): v for k, v in row.items()}), "confusion.json")
            for row in first
        }
        return {name: sum(map(sum, rows)) for name, rows in matrices.items() if rows is not None}

    @cached_property
    def cells(self) -> list[Cell]:
        """The settings that have finished trials, in the order of the plan."""
        return [
            Cell(self.panel(setting), *self.names(setting), float(str(setting["amount"])), rows)
            for setting, rows in settings(self.results)
        ]

    @property
    def searched(self) -> bool:
        """Whether points were asked for one by one: then they are no lines in a chart."""
        return bool(self.results.attrs.get("objectives"))

    def panel(self, setting: Mapping[str, object]) -> str:
        """The network and data of a setting; in a search, where the batch size may vary, without that."""
        return f"{setting['model']} on {setting['dataset']}" if self.searched else panel_title(setting)

    def names(self, setting: Mapping[str, object]) -> tuple[str, str]:
        """What a setting is drawn as, and what it is called."""
        if self.searched:
            return method_names(setting), point_label(setting)
        return method_label(setting), method_label(setting)

    @property
    def reused(self) -> int:
        """How many of the finished trials other sweeps have run."""
        runs = (self.joined.runs[key] for key in self.finished["key"])
        return sum(run.tags.get("mlflow.parentRunId") != self.run.run_id for run in runs)

    @cached_property
    def panels(self) -> list[str]:
        """Networks with their data: a chart for each."""
        return list(dict.fromkeys(cell.panel for cell in self.cells))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @cached_property
    def accuracy_range(self) -> tuple[float, float]:
        """One for all charts of accuracy, in percent: from 0, or from a ten above the middle, to 100."""
        ends = (spread(cell.rows["final/accuracy"].tolist())[1] for cell in self.cells)
        floor = 10.0 * math.floor(10 * min(ends, default=0.0) - 0.2)
        return (floor, 100.5) if floor >= 50 else (0.0, 102.0)

    def of(self, panel: str, method: str | None = None) -> list[Cell]:
        """The settings of a panel, or of one method in it, the least sparse first."""
        mine = [c for c in self.cells if c.panel == panel and method in (None, c.method)]
        return sorted(mine, key=lambda cell: cell.mean("final/sparsity")) if method else mine

    def told(self, found: Table) -> Table:
        """A table that begins with the network, without it where there is only one."""
        if len(self.panels) > 1:
            return found
        return replace(found, header=found.header[1:], rows=[row[1:] for row in found.rows])

    def stopped_of(self, cell: Cell) -> list[dict[str, Json]]:
        """The trials of a setting that were stopped early, as rows of `results`, the lowest seed first."""
        stopped = self.results[self.results["status"] == "stopped"]
        for name in setting_columns(self.results):
            value = cell.rows[name].iloc[0]
            column = stopped[name]
            stopped = stopped[column.isna() if value is None or value != value else column == value]
        return [
            {str(name): value for name, value in row.items()}
            for row in stopped.sort_values("seed").to_dict("records")
        ]

    @property
    def texts(self) -> int:
        """How many columns of such a table are words."""
        return 2 if len(self.panels) > 1 else 1

    @cached_property
    def space_text(self) -> str:
        """The space file, or "" where it is gone."""
        try:
            return self.tracker.read_text(self.run, SPACE)
        except StoreError:
            return ""

    @cached_property
    def about(self) -> str:
        try:
            data = yaml_loader.load_yaml(self.space_text, SPACE).data
        except OrchestrateError:
            return ""
        return str(data.get("about", "")) if isinstance(data, dict) else ""

    @cached_property
    def environment(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.tracker.read_text(self.run, ENVIRONMENT)))
        except StoreError:
            return {}

    @property
    def command(self) -> str:
        """The command that ran it; "" where it was not recorded."""
        return self.run.tags.get(COMMAND, "")

    def file(self, run: RunRecord | None, path: str) -> Json | None:
        """A JSON artifact of a run; None where it is gone."""
        if run is None:
            return None
        try:
            return json.loads(self.tracker.read_text(run, path))
        except StoreError:
            return None

    def run_of(self, row: Mapping[str, Json]) -> RunRecord | None:
        """The run of a row of `results`, finished or stopped."""
        key = str(row["key"])
        return self.joined.runs.get(key) or self.joined.stopped.get(key)

    def dense_of(self, row: Mapping[str, Json]) -> RunRecord | None:
        """The run of the dense network behind a row of `results`."""
        return self.joined.runs.get(str(row["dense_key"]))
