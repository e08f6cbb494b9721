"""The report's HTML page: sections in order, with styles, scripts and data inside.

The Content-Security-Policy lets only the two scripts of the page run, known by their hashes, and nothing
be fetched: even a text that slipped through as HTML could do nothing.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup

from orchestrator.analysis.findings import findings
from orchestrator.analysis.intervals import IntervalMethod
from orchestrator.analysis.paired import Baseline, Difference, default_baseline, differences, read_baseline
from orchestrator.analysis.results import find_sweep, load_results
from orchestrator.report.accuracy import accuracy_section
from orchestrator.report.charts import TEMPLATE
from orchestrator.report.components import Section, environment
from orchestrator.report.data import ReportData, ReportOptions
from orchestrator.report.differences import differences_section
from orchestrator.report.importance import importance_section
from orchestrator.report.layers_classes import classes_section, layers_section, sensitivity_section
from orchestrator.report.overview import (
    exports_section,
    headline,
    outcomes_section,
    settings_section,
    setup_section,
    summary_section,
)
from orchestrator.report.pareto import pareto_section
from orchestrator.report.pdf import find_browser, print_pdf
from orchestrator.report.rounds import rounds_section
from orchestrator.system.files import check_can_write, naming_file, replace_file
from orchestrator.tracking import open_store


def write_report(
    sweep: str,
    *,
    uri: str,
    out: Path | None = None,
    baseline: str | None = None,
    tolerance: float = 0.01,
    method: IntervalMethod = "t",
) -> Path:
    """Write the report of a sweep, by default to SPACE.html in the working directory, and return its path.

    A path that ends in .pdf is printed by Chromium. Raises StoreError if there is no such sweep, UsageError
    where the file cannot be written or printed.
    """
    is_pdf = out is not None and out.suffix.lower() == ".pdf"
    if is_pdf:
        find_browser()  # before the report is made, which may take a minute
    if out is not None:
        check_can_write(out.absolute())
    tracker = open_store(uri, sweep)
    run = find_sweep(tracker, sweep)
    data = ReportData(tracker, run, load_results(tracker, run))
    options = ReportOptions(
        tolerance, method, None if baseline is None else read_baseline(baseline, data.results)
    )
    text = render_page(data, options)
    path = (out or Path(Path(f"{data.name}.html").name)).absolute()
    with naming_file(path):
        replace_file(path, print_pdf(text) if is_pdf else text)
    return path


def render_page(data: ReportData, options: ReportOptions, *, progress: Sequence[str] = ()) -> str:
    """Return the report as one HTML file; it is the same for the same results.

    `progress` are lines on a sweep that runs, which stand above all else.
    """
    # Both are read by the first lines and by a section, and take seconds for thousands of settings.
    baseline = options.baseline or default_baseline(data.results)
    pairs = [] if data.is_search else differences(data.results, baseline, method=options.method)
    sections = _sections(data, options, baseline, pairs)
    sentences = findings(
        data.results, baseline, method=options.method, tolerance=options.tolerance, pairs=pairs
    )
    figures = {chart.chart_id: chart.figure for section in sections for chart in section.charts}
    scripts = [plotly_source(), _resource("script.js")] if figures else []
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            headline=headline(data),
            progress=progress,
            findings=sentences,
            sections=sections,
            charts={"template": TEMPLATE, "figures": figures},
            policy=content_security_policy(scripts),
            style=Markup(_resource("style.css")),
            scripts=list(map(Markup, scripts)),
        )
    )


def _sections(
    data: ReportData, options: ReportOptions, baseline: Baseline, pairs: Sequence[Difference]
) -> list[Section]:
    if data.finished.empty:
        return [outcomes_section(data), setup_section(data)]
    sections = [
        summary_section(data, options),
        accuracy_section(data),
        importance_section(data),
        rounds_section(data),
        pareto_section(data, options),
        differences_section(data, options, baseline, pairs),
        layers_section(data),
        sensitivity_section(data),
        classes_section(data, options),
        settings_section(data, options),
        exports_section(data),
        outcomes_section(data),
        setup_section(data),
    ]
    return [section for section in sections if section is not None]


def content_security_policy(scripts: Sequence[str]) -> str:
    """Return a policy that allows these scripts, inline styles and images that the page itself makes.

    It forbids to fetch, frame or send anything.
    """
    digests = [b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@cache
def plotly_source() -> str:
    """Return plotly.js from the Python package, without importing that."""
    spec = find_spec("plotly")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    source = (folder / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")  # or it would end the script element


def _resource(name: str) -> str:
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")
