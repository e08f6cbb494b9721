"""What a report reads: the results of a sweep, and a bounded number of its runs' files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.intervals import IntervalMethod
from orchestrator.analysis.notes import marks
from orchestrator.analysis.paired import Baseline
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
from orchestrator.errors import OrchestrateError, StoreError
from orchestrator.report.charts import LineStyle, make_line_styles
from orchestrator.space import yaml_loader
from orchestrator.storage.runs import COMMAND
from orchestrator.tracking import RunRecord, Tracker

if TYPE_CHECKING:
    from pandas import DataFrame

SPACE, ENVIRONMENT = "space.yaml", "environment.json"
MAX_PANELS, MAX_METHODS, MAX_AMOUNTS = 4, 6, 14  # of heat maps
Json = Any  # the content of an artifact


@dataclass(frozen=True)
class ReportOptions:
    """How a report compares: `tolerance` is a fraction of accuracy; without a baseline it picks one."""

    tolerance: float = 0.01
    method: IntervalMethod = "t"
    baseline: Baseline | None = None


@dataclass(frozen=True, eq=False)
class Setting:
    """A configuration with its finished trials, one per seed.

    `panel` is its network and data. `method` names its line, the same for other amounts (in a search, for
    other points); `name` names it alone.
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
        names = [str(name) for name in rows]
        columns = (rows[name].tolist() for name in rows)  # `to_dict` takes 20 ms a row
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def mean(self, metric: str) -> float:
        return float(self.rows[metric].mean())


@dataclass(frozen=True)
class HeatMapGroup:
    """The columns of a heat map: the amounts of a method, or, where each has one amount, the methods."""

    panel: str
    title: str
    column_names: tuple[str, ...]
    settings: tuple[Setting, ...]

    @property
    def axis(self) -> str:
        return "method" if self.title == self.panel else "amount asked for, %"


@dataclass(frozen=True, eq=False)
class ReportData:
    """A sweep with its results. Texts are as people wrote them, and must be escaped."""

    tracker: Tracker
    run: RunRecord
    loaded: SweepResults

    @property
    def name(self) -> str:
        return str(self.loaded.plan.get("space", self.run.name))

    @property
    def results(self) -> DataFrame:
        return self.loaded.results

    @cached_property
    def finished(self) -> DataFrame:
        return self.results[self.results["status"] == "finished"]

    @property
    def is_search(self) -> bool:
        """Whether a search chose the points: then they form no lines in a chart."""
        return bool(self.results.attrs.get("objectives"))

    @property
    def reused_count(self) -> int:
        """How many of the finished trials were run by other sweeps."""
        runs = (self.loaded.runs[key] for key in self.finished["key"])
        return sum(run.tags.get("mlflow.parentRunId") != self.run.run_id for run in runs)

    # ---- settings

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings with finished trials, in the order of the plan."""
        return [
            Setting(self._panel(setting), *self.names(setting), float(str(setting["amount"])), rows)
            for setting, rows in settings(self.results)
        ]

    def _panel(self, setting: Mapping[str, object]) -> str:
        # A search may vary the batch size, which would split its points over many panels.
        return f"{setting['model']} on {setting['dataset']}" if self.is_search else panel_title(setting)

    def names(self, setting: Mapping[str, object]) -> tuple[str, str]:
        """Return the name of a setting's line in charts, and its own name."""
        if self.is_search:
            return method_names(setting), point_label(setting)
        return method_label(setting), method_label(setting)

    def settings_of(self, panel: str, method: str | None = None) -> list[Setting]:
        """Return the settings of a panel in the plan's order, or of one method in it, least sparse first."""
        rows = [s for s in self.settings if s.panel == panel and method in (None, s.method)]
        return sorted(rows, key=lambda setting: setting.mean("final/sparsity")) if method else rows

    def methods_of(self, panel: str) -> list[str]:
        return list(dict.fromkeys(setting.method for setting in self.settings_of(panel)))

    @cached_property
    def panels(self) -> list[str]:
        """Networks with their data: each gets a chart of its own."""
        return list(dict.fromkeys(setting.panel for setting in self.settings))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(setting.method for setting in self.settings))

    @cached_property
    def styles(self) -> dict[str, LineStyle]:
        """How each method is drawn in every chart."""
        return make_line_styles(self.methods)

    @cached_property
    def accuracy_range(self) -> tuple[float, float]:
        """The range of every accuracy axis in percent: from 0, or from a multiple of 10 from 50 on."""
        lowest = min((spread(s.rows["final/accuracy"].tolist())[1] for s in self.settings), default=0.0)
        floor = 10.0 * math.floor(10 * lowest - 0.2)
        return (floor, 100.5) if floor >= 50 else (0.0, 102.0)

    def stopped_trials(self, setting: Setting) -> list[dict[str, Json]]:
        """Return the trials of a setting that were stopped early, the lowest seed first."""
        stopped = self.results[self.results["status"] == "stopped"]
        for name in setting_columns(self.results):
            value = setting.rows[name].iloc[0]
            column = stopped[name]
            stopped = stopped[column.isna() if value is None or value != value else column == value]
        return [
            {str(name): value for name, value in row.items()}
            for row in stopped.sort_values("seed").to_dict("records")
        ]

    @cached_property
    def earlier(self) -> DataFrame:
        """The networks of rounds before the last, as rows of `results`."""
        return earlier_networks(self.results, self.loaded.runs.values(), self.tracker)

    @property
    def has_networks(self) -> bool:
        """Whether there are several networks, so that tables must name them."""
        return len(self.panels) > 1

    # ---- heat maps

    def heat_map_groups(self) -> list[HeatMapGroup]:
        """Return the columns of heat maps: of the first networks and methods, some amounts."""
        groups = []
        for panel in self.panels[:MAX_PANELS]:
            methods = self.methods_of(panel)[:MAX_METHODS]
            by_method = {m: evenly_spread(self.settings_of(panel, m), MAX_AMOUNTS) for m in methods}
            if all(len(amounts) == 1 for amounts in by_method.values()):
                single = tuple(amounts[0] for amounts in by_method.values())
                groups.append(HeatMapGroup(panel, panel, tuple(s.method + s.marks for s in single), single))
                continue
            for method, amounts in by_method.items():
                title = f"{method} ({panel})" if len(self.panels) > 1 else method
                names = tuple(s.amount_text.removesuffix("%") + s.marks for s in amounts)
                groups.append(HeatMapGroup(panel, title, names, amounts))
        return groups

    @property
    def heat_map_limits(self) -> str:
        """A sentence on what the heat maps leave out, or ""."""
        limits = []
        panels, methods = self.panels, self.methods
        if len(panels) > MAX_PANELS:
            limits.append(f"the first {MAX_PANELS} of {len(panels)} networks")
        if len(methods) > MAX_METHODS:
            limits.append(f"the first {MAX_METHODS} of {len(methods)} methods")
        if any(len(self.settings_of(p, m)) > MAX_AMOUNTS for p in panels[:MAX_PANELS] for m in methods):
            limits.append(f"{MAX_AMOUNTS} amounts, evenly spread")
        return f"Shown are {', '.join(limits)}." if limits else ""

    # ---- files

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
            space = yaml_loader.load_yaml(self.space_text, SPACE).data
        except OrchestrateError:
            return ""
        return str(space.get("about", "")) if isinstance(space, dict) else ""

    @cached_property
    def environment(self) -> dict[str, str]:
        return dict(self.load_json(self.run, ENVIRONMENT) or {})

    @property
    def command(self) -> str:
        """The command that ran the sweep, or "" where it was not recorded."""
        return self.run.tags.get(COMMAND, "")

    @cached_property
    def test_image_counts(self) -> dict[str, int]:
        """Data set -> its number of test images, from the confusion matrix of one finished run."""
        first = self.finished.drop_duplicates("dataset").to_dict("records")
        matrices = {
            str(row["dataset"]): self.load_json(self.trial_run({"key": row["key"]}), "confusion.json")
            for row in first
        }
        return {name: sum(map(sum, rows)) for name, rows in matrices.items() if rows is not None}

    def load_json(self, run: RunRecord | None, path: str) -> Json | None:
        """Return a JSON artifact of a run, or None where it is gone."""
        if run is None:
            return None
        try:
            return json.loads(self.tracker.read_text(run, path))
        except StoreError:
            return None

    def trial_run(self, row: Mapping[str, Json]) -> RunRecord | None:
        """Return the run of a row of `results`, finished or stopped."""
        key = str(row["key"])
        return self.loaded.runs.get(key) or self.loaded.stopped.get(key)

    def dense_run(self, row: Mapping[str, Json]) -> RunRecord | None:
        """Return the run of the dense network behind a row of `results`."""
        return self.loaded.runs.get(str(row["dense_key"]))


def evenly_spread(settings: Sequence[Setting], count: int) -> tuple[Setting, ...]:
    """Return at most `count` of the settings, evenly spread, with both ends."""
    if len(settings) <= count:
        return tuple(settings)
    return tuple(settings[round(n * (len(settings) - 1) / (count - 1))] for n in range(count))
