"""BibTeX of what a sweep uses: methods, models, data sets, statistics and software."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

USES = re.compile(r"%((?: [a-z_]+/[\w.-]+)+)")
ENTRY = re.compile(r"@[a-z]+\{([a-z0-9]+),")


@dataclass(frozen=True)
class Reference:
    """An entry of references.bib. `uses` are what it is for, as `criteria/magnitude` or `software/torch`."""

    key: str
    uses: tuple[str, ...]
    bibtex: str


@cache
def references() -> tuple[Reference, ...]:
    """Return all entries of references.bib, in its order."""
    text = files("orchestrator.report").joinpath("references.bib").read_text(encoding="utf-8")
    entries = []
    for block in text.strip().split("\n\n")[1:]:  # the first says what the file is
        first, _, bibtex = block.partition("\n")
        uses, entry = USES.fullmatch(first), ENTRY.match(bibtex)
        if uses is None or entry is None:
            raise ValueError(f"references.bib: {first!r} is no list of uses above an entry")
        entries.append(Reference(entry[1], tuple(uses[1].split()), bibtex))
    return tuple(entries)


@cache
def _by_use() -> Mapping[str, tuple[Reference, ...]]:
    table: dict[str, list[Reference]] = {}
    for reference in references():
        for use in reference.uses:
            table.setdefault(use, []).append(reference)
    return {use: tuple(entries) for use, entries in table.items()}


def references_for(use: str) -> tuple[Reference, ...]:
    """Return the entries of a method or tool, as `criteria/magnitude`; none where there is no paper."""
    return _by_use().get(use, ())


def bibliography(uses: Iterable[str]) -> list[Reference]:
    """Return the entries of all these, each once, in the order of their first use."""
    return list(dict.fromkeys(entry for use in uses for entry in references_for(use)))
