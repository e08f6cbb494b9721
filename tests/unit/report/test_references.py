"""BibTeX: an entry for every method with a paper, and no entry for nothing."""

from __future__ import annotations

import re

import pytest

from models import BUILDERS, LIBRARIES
from orchestrator.report.references import bibliography, references, references_for
from orchestrator.space.catalog import KINDS, Item, items
from orchestrator.training.optimizers import OPTIMIZERS
from pruning.user_code.plugins import entry_points

# Kinds of names beside those of the catalogue.
OTHERS = {"controls", "searches", "recipe", "optimizers", "scopes", "statistics", "software"}
WITHOUT_PAPER = {"folder", "npz", "npy"}  # one's own images


def named(kind: str) -> list[Item]:
    return [item for item in items(kind) if item.name not in entry_points(f"pruning.{item.axis}")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("spaces", "models", "techniques")])
def test_every_method_with_a_paper_and_every_published_data_set_has_an_entry(kind: str) -> None:
    published = [
        item for item in named(kind) if item.paper or (kind == "datasets" and item.name not in WITHOUT_PAPER)
    ]
    assert [item.name for item in published if not references_for(f"{kind}/{item.name}")] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "spaces"])
def test_the_year_and_the_first_author_are_those_of_the_trait(kind: str) -> None:
    for item in (item for item in named(kind) if item.paper):
        entries = references_for(f"{kind}/{item.name}")
        years = {re.search(r"year\s*= \{(\d+)\}", entry.bibtex)[1] for entry in entries}  # type: ignore[index]
        authors = {re.search(r"author\s*= \{([^,]+),", entry.bibtex)[1] for entry in entries}  # type: ignore[index]
        assert set(re.findall(r"\b(?:19|20)\d\d\b", item.paper)) == years, item
        assert all(author in item.paper for author in authors), item


def test_every_use_names_something_that_there_is() -> None:
    known = {f"{kind}/{item.name}" for kind in KINDS if kind != "spaces" for item in items(kind)}
    known |= {f"models/{name}" for name in (*BUILDERS, *LIBRARIES)}
    known |= {f"optimizers/{name}" for name in OPTIMIZERS}
    uses = {use for reference in references() for use in reference.uses}
    assert {use for use in uses - known if use.partition("/")[0] not in OTHERS} == set()


def test_entries_are_whole_and_their_keys_different() -> None:
    keys = [reference.key for reference in references()]
    assert len(set(keys)) == len(keys)
    for reference in references():
        assert reference.bibtex.endswith("\n}")
        assert reference.bibtex.count("{") == reference.bibtex.count("}")
        for name in ("author", "title", "year"):
            assert re.search(rf"^  {name} +=", reference.bibtex, re.MULTILINE), reference.key
        assert reference.bibtex.isascii()


def test_a_bibliography_has_each_entry_once_in_the_order_of_use() -> None:
    entries = bibliography(["recoveries/rewind", "schedules/iterative", "criteria/random", "statistics/holm"])
    assert [entry.key for entry in entries] == ["frankle2019lottery", "renda2020comparing", "holm1979simple"]
