"""The report's one page: sections in order, styles, scripts and data inside, and nothing from outside.

The Content-Security-Policy lets only the two scripts of this page run, known by their hashes, and
nothing be fetched: a name that slipped through as HTML could still not act.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from orchestrator.report.classes import classes
from orchestrator.report.curves import curves
from orchestrator.report.differences import paired_differences
from orchestrator.report.ends import ends
from orchestrator.report.fronts import fronts
from orchestrator.report.layers import layers
from orchestrator.report.markup import Html, joined, paragraph, script_json, tag
from orchestrator.report.overview import all_settings, in_short
from orchestrator.report.rounds import rounds
from orchestrator.report.section import Section, Wanted
from orchestrator.report.setup import headline, setup
from orchestrator.report.swept import Swept


def page(swept: Swept, wanted: Wanted) -> str:
    """The whole file."""
    sections = _sections(swept, wanted)
    charts = {chart_id: spec for section in sections for chart_id, spec in section.charts.items()}
    scripts = [plotly_source(), _own("script.js")] if charts else []
    body = joined(
        (
            tag("header", tag("p", "Pruning sweep", class_="kind"), tag("h1", swept.name), *_about(swept)),
            tag("div", headline(swept), class_="headline"),
            _contents(sections),
            tag("main", *(_whole(section) for section in sections)),
            tag("script", script_json(charts), type="application/json", id="charts"),
            *(tag("script", Html(source)) for source in scripts),
        ),
        "\n",
    )
    head = joined(
        (
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy(scripts)),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", f"{swept.name}: pruning sweep"),
            tag("style", Html(_own("style.css"))),
        ),
        "\n",
    )
    document = tag("html", tag("head", head), "\n", tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{document}\n".replace("</meta>", "")


def _sections(swept: Swept, wanted: Wanted) -> list[Section]:
    if swept.finished.empty:
        return [ends(swept), setup(swept)]
    found = [
        in_short(swept, wanted),
        curves(swept),
        rounds(swept),
        fronts(swept, wanted),
        paired_differences(swept, wanted),
        layers(swept),
        classes(swept, wanted),
        all_settings(swept, wanted),
        ends(swept),
        setup(swept),
    ]
    return [section for section in found if section is not None]


def _about(swept: Swept) -> list[Html]:
    return [paragraph(swept.about, class_="about")] if swept.about else []


def _contents(sections: list[Section]) -> Html:
    items = (tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in sections)
    return tag("nav", tag("ol", *items), aria_label="Contents")


def _whole(section: Section) -> Html:
    return tag("section", tag("h2", section.title), section.body, id=section.anchor)


def policy(scripts: list[str]) -> str:
    """What the page may do: run these scripts, style itself; fetch, frame and send nothing."""
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes or chr(39) + 'none' + chr(39)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def plotly_source() -> str:
    """plotly.js, as the Python package brings it; the package itself is not imported."""
    spec = find_spec("plotly")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    # Its licence's header stays in it. Nothing in it may end the script element.
    return (
        (folder / "package_data" / "plotly.min.js")
        .read_text(encoding="utf-8")
        .replace("</script", "<\\/script")
    )


def _own(name: str) -> str:
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")
