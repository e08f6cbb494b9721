"""The lowest versions that pyproject.toml allows, as `make test-floors` installs them."""

from __future__ import annotations

import tomllib

from lowest_versions import PROJECT, constraints
from packaging.requirements import Requirement


def test_a_lower_bound_becomes_the_only_version() -> None:
    project = {
        "name": "a-project",
        "dependencies": ["one>=1.2", "two[more]>=3,!=3.1", "three"],
        "optional-dependencies": {"docs": ["four==0.4"], "dev": ["a-project[docs]", "five>=5,<6"]},
    }
    assert constraints(project) == ["five==5", "four==0.4", "one==1.2", "two==3"]


def test_every_library_that_runs_with_the_project_has_a_floor() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    pinned = {Requirement(line).name for line in constraints(project)}
    assert {Requirement(need).name for need in project["dependencies"]} <= pinned
