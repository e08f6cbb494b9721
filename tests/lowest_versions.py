"""The lowest versions that pyproject.toml allows, as constraints for pip: `python tests/lowest_versions.py`.

Every `name>=1.2` of the dependencies and of the extras becomes `name==1.2`; what has no lower bound is left
to pip. `make test-floors` installs them into an environment of their own and runs the fast tests and a sweep.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def constraints(project: Mapping[str, Any]) -> list[str]:
    """One line for each library that has a lowest version."""
    name = Requirement(project["name"]).name
    texts = [*project["dependencies"], *(t for ts in project["optional-dependencies"].values() for t in ts)]
    needs = [need for need in map(Requirement, texts) if need.name != name]
    return sorted({line for need in needs for line in floors(need)})


def floors(need: Requirement) -> Iterator[str]:
    """Its lower bound as the only version that is allowed."""
    for bound in need.specifier:
        if bound.operator in (">=", "=="):
            yield f"{need.name}=={bound.version}"


if __name__ == "__main__":
    print("\n".join(constraints(tomllib.loads(PROJECT.read_text())["project"])))
