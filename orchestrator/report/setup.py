"""What was swept, and with what: axes, space file, command, versions and machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from orchestrator.analysis.settings import NON_CONFIG_COLUMNS, axis_columns, is_by_criterion
from orchestrator.report.markup import Html, facts, joined, paragraph, table, tag
from orchestrator.report.section import Section
from orchestrator.report.swept import Swept

MOST_VALUES = 24
UNSAID = (*NON_CONFIG_COLUMNS, "status")


def setup(swept: Swept) -> Section:
    by_criterion = is_by_criterion(swept.results)
    columns = [c for c in axis_columns(swept.results) if c != "technique" or not by_criterion]
    swept_over = [c for c in (*columns, "seed") if swept.results[c].nunique(dropna=False) > 1]
    fixed = [c for c in columns if c not in swept_over]
    axes = table(["axis", "values"], [(c, _values(swept, c)) for c in swept_over], texts=2)
    others = table(["field", "value"], [(c, str(swept.results[c].iloc[0])) for c in fixed], texts=2)
    parts = [
        axes,
        tag("details", tag("summary", "What was the same for all"), others),
        _command(swept),
        _space(swept),
        _environment(swept),
    ]
    return Section("setup", "What was swept, and with what", joined(parts))


def headline(swept: Swept) -> Html:
    """The sweep in a line of facts."""
    results, run = swept.results, swept.run
    found: dict[str, object] = {"network": swept.panels[0]} if len(swept.panels) == 1 else {}
    found |= {"trials": f"{len(results):,}", "finished": f"{len(swept.finished):,}"}
    found |= {"reused": f"{swept.reused:,}"} if swept.reused else {}
    found["dense trainings"] = f"{int(results['dense_key'].nunique()):,}"
    found["seeds"] = f"{int(results['seed'].nunique())}"
    found["begun"] = _moment(run.start_ms)
    if run.end_ms:
        found["elapsed"] = str(timedelta(seconds=(run.end_ms - run.start_ms) // 1000))
    known = {"processor": "processor", "commit": "revision"}
    found |= {word: swept.environment[name] for name, word in known.items() if name in swept.environment}
    return facts(found)


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _values(swept: Swept, column: str) -> str:
    values = [
        value for value in swept.results[column].drop_duplicates() if value == value and value is not None
    ]
    shown = ", ".join(
        f"{value:g}" if isinstance(value, float) else str(value) for value in values[:MOST_VALUES]
    )
    more = len(values) - MOST_VALUES
    return f"{shown}, and {more:,} more" if more > 0 else shown


def _command(swept: Swept) -> Html:
    if not swept.command:
        return paragraph("The command that ran it was not recorded.", class_="note")
    return joined((tag("h3", "To repeat it"), tag("pre", swept.command)))


def _space(swept: Swept) -> Html:
    if not swept.space_text:
        return Html("")
    title = tag("summary", "The space file, before what the command sets in it")
    return tag("details", title, tag("pre", swept.space_text))


def _environment(swept: Swept) -> Html:
    results = swept.results
    own = {
        name.removeprefix("numerics."): ", ".join(map(str, results[name].drop_duplicates()))
        for name in results.columns
        if name.startswith("numerics.")
    }
    versions = {
        k.removeprefix("package."): v for k, v in swept.environment.items() if k.startswith("package.")
    }
    machine = {k: v for k, v in swept.environment.items() if not k.startswith("package.")}
    return joined(
        (
            tag("h3", "Environment"),
            facts({**machine, **own}),
            tag("details", tag("summary", "Versions"), facts(versions)),
        )
    )
