"""Checks of Python, of the installed packages, and of what is replaced within them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from orchestrator.doctor.checks import CheckResult

PROJECT = "pruning-orchestrator"
SHOWN = (
    "torch",
    "torchvision",
    "ray",
    "mlflow",
    "optuna",
    "fvcore",
    "scikit-learn",
    "numpy",
)
FOR_DEVELOPERS = ("dev", "docs")
OLDEST_PYTHON = (3, 11)
INSTALL = "`make install`, or pip install the package anew"
PATCHES = (  # modules that replace internals of a library, and the library
    ("orchestrator.execution.ray_patches", "ray"),
    ("orchestrator.execution.tune_patches", "ray"),
    ("orchestrator.tracking.mlflow_patches", "mlflow"),
)


def python() -> Iterator[CheckResult]:
    """Check the interpreter."""
    old = sys.version_info < OLDEST_PYTHON
    message = f"{platform.python_version()} in {sys.prefix}, on {platform.platform()}"
    yield CheckResult(
        "python", "broken" if old else "ok", message, "install Python 3.11 or newer" if old else ""
    )


def packages() -> Iterator[CheckResult]:
    """Check that every requirement is installed in an allowed version."""
    requirements = _requirements()
    if not requirements:
        yield CheckResult("packages", "broken", f"{PROJECT} is not installed", INSTALL)
        return
    problems = [problem for need in requirements if _applies(need, "") and (problem := _problem(need))]
    message = "; ".join(problems) or ", ".join(f"{name} {version(name)}" for name in SHOWN)
    yield CheckResult("packages", "broken" if problems else "ok", message, INSTALL if problems else "")


def extras() -> Iterator[CheckResult]:
    """Check the optional groups of requirements, save those for developers."""
    requirements = _requirements()
    groups = metadata(PROJECT).get_all("Provides-Extra") or [] if requirements else []
    for extra in (name for name in groups if name not in FOR_DEVELOPERS):
        needs = [need for need in requirements if _applies(need, extra) and not _applies(need, "")]
        problems = [problem for need in needs if (problem := _problem(need))]
        message = "; ".join(problems) or ", ".join(f"{need.name} {version(need.name)}" for need in needs)
        fix = f"pip install '{PROJECT}[{extra}]', if you want it" if problems else ""
        yield CheckResult(f"extra {extra}", "lacking" if problems else "ok", message, fix)


def internals() -> Iterator[CheckResult]:
    """Check that what is replaced within Ray, Tune and MLflow is there, in these versions of them."""
    for module, library in PATCHES:
        try:
            missing = import_module(module).missing_internals()
        except ModuleNotFoundError as error:
            if error.name == module:  # nothing of this library is replaced
                continue
            missing = [str(error.name)]
        except (ImportError, AttributeError) as error:  # a private module has moved
            missing = [str(error)]
        message = f"not there: {', '.join(missing)}" if missing else "all that is replaced is there"
        fix = f"install the {library} of requirements.lock" if missing else ""
        name = f"internals of {module.rpartition('.')[2].removesuffix('_patches')}"
        yield CheckResult(name, "lacking" if missing else "ok", message, fix)


def _requirements() -> list[Requirement]:
    """Return the requirements of the installed package; nothing if it is not installed."""
    try:
        return [Requirement(line) for line in requires(PROJECT) or ()]
    except PackageNotFoundError:
        return []


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def _problem(need: Requirement) -> str:
    """Return why a requirement is not met, or nothing if it is."""
    try:
        installed = version(need.name)
    except PackageNotFoundError:
        return f"{need.name} is not installed"
    is_met = need.specifier.contains(installed, prereleases=True)
    return "" if is_met else f"{need.name} is {installed}, and {need.specifier} is required"
