"""How sensitive each layer is, where that was measured: accuracy after parts of it alone are removed."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from orchestrator.analysis.sensitivity import (
    NOTE,
    PARTS,
    NetworkSensitivity,
    SensitivityGroup,
    group_sensitivities,
    sensitivity_table,
)
from orchestrator.config import dense_from_json
from orchestrator.formatting import format_percent
from orchestrator.report.components import Block, Heading, HeatMap, Paragraph, Section, TableBlock
from orchestrator.report.data import ReportData
from orchestrator.tracking.result_metrics import CONFIG
from orchestrator.tracking.sensitivities import iter_sensitivities

MAX_NETWORKS, MAX_GROUPS, MAX_ROWS = 24, 6, 130


def sensitivity_section(data: ReportData) -> Section | None:
    """Map the accuracy after parts of each layer are gone; None where nothing was measured.

    At most MAX_NETWORKS dense networks are looked at, by the tags of their runs; one file is read for each
    measurement, and one for each network that has any.
    """
    networks = list(_networks(data))
    groups = group_sensitivities(networks)
    if not groups:
        return None
    limit = f" Shown are the first {MAX_GROUPS} of {len(groups)}." if len(groups) > MAX_GROUPS else ""
    blocks: list[Block] = [Paragraph(NOTE + limit)]
    for group in groups[:MAX_GROUPS]:
        blocks += _blocks(group)
    return Section("sensitivity", "Sensitivity of layers", blocks)


def _networks(data: ReportData) -> Iterator[NetworkSensitivity]:
    rows = data.finished.drop_duplicates("dense_key").head(MAX_NETWORKS)
    for key in rows["dense_key"]:
        run = data.loaded.runs.get(str(key))
        measured = [] if run is None else list(iter_sensitivities(data.tracker, run))
        config = data.load_json(run, CONFIG) if measured else None
        if run is not None and config is not None:
            dense = dense_from_json(config)
            yield from (NetworkSensitivity(run.run_id, dense, one) for one in measured)


def _blocks(group: SensitivityGroup) -> Iterator[Block]:
    yield Heading(group.title, level=4)
    rows = [
        (
            Markup("{} <small>{}</small>").format(row.name, f"{row.size:,}"),
            [None if (change := row.changes[part]) is None else group.accuracy + change for part in PARTS],
        )
        for row in group.rows
    ]
    columns = [format_percent(part).removesuffix("%") for part in PARTS]
    axis = f"accuracy on validation images, %, by the part that is removed, %; dense {group.accuracy:.1%}"
    yield HeatMap(f"layer, {group.unit}s", axis, columns, rows, max_rows=MAX_ROWS, row_name="layers")
    table = sensitivity_table(group)
    # The map above has the accuracies.
    losses = [number for number, name in enumerate(table.header) if not name.startswith("accuracy")]
    texts = [[row[number] for number in losses] for row in table.rows]
    header = [table.header[number] for number in losses]
    yield TableBlock(header, texts, max_rows=MAX_ROWS, row_name="layers")
