"""The names that a space file may use, read from the registries."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.errors import UsageError, unknown

Entry = tuple[str, str]


def names(kind: str) -> list[Entry]:
    """(name, one line about it) for `kind`. UsageError for an unknown kind."""
    if kind not in KINDS:
        raise UsageError(unknown("kind of name", kind, KINDS))
    return KINDS[kind]()


def _spaces() -> list[Entry]:
    from orchestrator.space import load_space
    from orchestrator.space import names as space_names

    return [(name, load_space(name).about) for name in space_names()]


def _models() -> list[Entry]:
    from models import BUILDERS

    return [(name, (build.__doc__ or "").strip().splitlines()[0]) for name, build in BUILDERS.items()]


def _datasets() -> list[Entry]:
    from orchestrator.data import DATASETS

    return [(name, info.about) for name, info in DATASETS.items()]


def _techniques() -> list[Entry]:
    from orchestrator.techniques import TECHNIQUES

    return [(name, technique.about) for name, technique in TECHNIQUES.items()]


def _criteria() -> list[Entry]:
    from pruning.criteria import criteria

    return [(name, str(criteria.get(name).traits.get("summary", ""))) for name in criteria]


def _schedules() -> list[Entry]:
    from pruning.schedules import schedules

    return [(name, str(schedules.get(name).traits.get("summary", ""))) for name in schedules]


def _recoveries() -> list[Entry]:
    from orchestrator.recovery import recoveries

    return [(name, str(recoveries.get(name).traits.get("summary", ""))) for name in recoveries]


KINDS: dict[str, Callable[[], list[Entry]]] = {
    "spaces": _spaces,
    "models": _models,
    "datasets": _datasets,
    "criteria": _criteria,
    "schedules": _schedules,
    "recoveries": _recoveries,
    "techniques": _techniques,
}
