"""Fill the text of the study, `paper.md.in`, with numbers of `results.json`, and check what the text claims.

A field is `{{function; argument; ...}}`. Functions that claim something (`ahead`, `behind`, `undecided`,
`apart`, `alike`, `turned`, `holds`, `unmoved`) write nothing, and raise ClaimError where the numbers say
otherwise: a text must not survive the numbers that it was written for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import claims
import markdown_tables
import numbers_text
from claims import ClaimError
from pairs import Record

FOLDER = Path(__file__).parent
FIELD = re.compile(r"\{\{([^{}]+)\}\}")
FIELDS: dict[str, Callable[..., str]] = {
    "gain": numbers_text.gain,
    "at": numbers_text.at,
    "value": numbers_text.value,
    "turn_count": numbers_text.turn_count,
    "total": numbers_text.total,
    "widening": numbers_text.widening,
    "shown": numbers_text.shown,
    "largest": numbers_text.largest,
    "ahead": claims.ahead,
    "behind": claims.behind,
    "undecided": claims.undecided,
    "apart": claims.apart,
    "turned": claims.turned,
    "holds": claims.holds,
    "unmoved": claims.unmoved,
    "alike": claims.alike,
    "span": numbers_text.span,
    "survivors": numbers_text.survivors,
    "pair_table": markdown_tables.pair_table,
    "seed_table": markdown_tables.seed_table,
    "pattern_table": markdown_tables.pattern_table,
    "cause_table": markdown_tables.cause_table,
    "rounding_table": markdown_tables.rounding_table,
    "course_table": markdown_tables.course_table,
}


def fill(text: str, results: Record) -> str:
    """Return the text with every field replaced; ClaimError for a claim that does not hold."""

    def replace(match: re.Match[str]) -> str:
        name, *arguments = (part.strip() for part in match[1].split(";"))
        try:
            return FIELDS[name](results, *arguments)
        except (KeyError, TypeError, IndexError) as error:
            raise ClaimError(f"{match[0]}: there is no such number ({error!r})") from error

    return FIELD.sub(replace, text)


def page(folder: Path = FOLDER) -> str:
    """Return the page that the template and the numbers of a folder give."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return fill((FOLDER / "paper.md.in").read_text(encoding="utf-8"), results)
