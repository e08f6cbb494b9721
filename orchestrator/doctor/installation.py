"""Python, our own packages, and everything that pyproject.toml asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from orchestrator.doctor.finding import Finding

PROJECT = "pruning-orchestrator"
TOLD = ("torch", "torchvision", "ray", "mlflow", "optuna", "torch-pruning", "fvcore", "scikit-learn", "numpy")
FOR_DEVELOPERS = ("dev", "docs")
OLDEST = (3, 11)
INSTALL = "`make install`, or pip install the package anew"


def python() -> Iterator[Finding]:
    """The interpreter, and whether `models` and `pruning` are ours and not a folder's of the same name."""
    old = sys.version_info < OLDEST
    found = f"{platform.python_version()} in {sys.prefix}, on {platform.platform()}"
    yield Finding("python", "broken" if old else "ok", found, "install Python 3.11 or newer" if old else "")
    ours = Path(__file__).parent.parent.parent
    for name in ("models", "pruning"):
        spec = find_spec(name)
        place = Path(spec.origin).parent.parent if spec and spec.origin else None
        if place != ours:
            told = f"found {f'in {place}' if place else 'nowhere'}, and not in {ours}"
            yield Finding(name, "broken", told, "run from another folder, and look at PYTHONPATH")


def packages() -> Iterator[Finding]:
    """Everything that is required, at the versions that are allowed."""
    wanted = _requirements()
    if not wanted:
        yield Finding("packages", "broken", f"{PROJECT} is not installed", INSTALL)
        return
    bad = [problem for one in wanted if _applies(one, "") and (problem := _problem(one))]
    told = "; ".join(bad) or ", ".join(f"{name} {version(name)}" for name in TOLD)
    yield Finding("packages", "broken" if bad else "ok", told, INSTALL if bad else "")


def extras() -> Iterator[Finding]:
    """The optional groups, but those for developers."""
    wanted = _requirements()
    given = metadata(PROJECT).get_all("Provides-Extra") or [] if wanted else []
    for extra in (name for name in given if name not in FOR_DEVELOPERS):
        own = [one for one in wanted if _applies(one, extra) and not _applies(one, "")]
        bad = [problem for one in own if (problem := _problem(one))]
        told = "; ".join(bad) or ", ".join(f"{one.name} {version(one.name)}" for one in own)
        do = f"pip install '{PROJECT}[{extra}]', if you want it" if bad else ""
        yield Finding(f"extra {extra}", "lacking" if bad else "ok", told, do)


def _requirements() -> list[Requirement]:
    """What the installed package asks for; nothing where it is not installed."""
    try:
        return [Requirement(line) for line in requires(PROJECT) or ()]
    except PackageNotFoundError:
        return []


def _applies(one: Requirement, extra: str) -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def _problem(one: Requirement) -> str:
    """Why a requirement is not met; empty where it is."""
    try:
        found = version(one.name)
    except PackageNotFoundError:
        return f"{one.name} is not installed"
    met = one.specifier.contains(found, prereleases=True)
    return "" if met else f"{one.name} is {found}, and {one.specifier} is wanted"
