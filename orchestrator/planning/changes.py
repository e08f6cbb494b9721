"""Changes since the results in a store: data, other packages' source, versions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.config import DenseConfig, TrialConfig, method_name
from orchestrator.keys import FINGERPRINTS
from orchestrator.planning.fingerprints import parse_code
from orchestrator.planning.plan import Plan
from orchestrator.storage.runs import Runs
from orchestrator.trial.params import params


@dataclass(frozen=True)
class Changes:
    """Descriptions of what changed, and how many trials of the plan have to run again because of it."""

    descriptions: tuple[str, ...] = ()
    trials: int = 0

    def line(self) -> str:
        """Return one line; "" where nothing changed."""
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'} run{'s' if self.trials == 1 else ''}"
        line = f"since the results in the store: {', '.join(self.descriptions)}; {count} anew"
        return line if self.descriptions else ""


def find_changes(plan: Plan, runs: Runs, *, done: Collection[str]) -> Changes:
    """Compare each trial that is not `done` with the latest run of the same configuration."""
    trials = [trial for trial in plan.trials if trial.key not in done]
    if not trials:
        return Changes()
    query = "attributes.status = 'FINISHED' and tags.kind = 'trial'"
    latest: dict[frozenset[tuple[str, str]], Mapping[str, str]] = {}
    for row in runs.search(query, everywhere=True):
        latest.setdefault(_without_fingerprints(row.params), row.params)
    descriptions: dict[str, None] = {}
    count = 0
    for trial in trials:
        new = _text_params(trial.config)
        old = latest.get(_without_fingerprints(new))
        changed = [] if old is None else list(differences(old, new))
        descriptions |= dict.fromkeys(changed)
        count += bool(changed)
    return Changes(tuple(descriptions), count)


def _without_fingerprints(values: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in values.items() if name not in FINGERPRINTS)


def _text_params(config: DenseConfig | TrialConfig) -> dict[str, str]:
    return {name: str(value) for name, value in params(config).items()}


def config_differences(old: DenseConfig | TrialConfig, new: DenseConfig | TrialConfig) -> list[str]:
    """Return what differs between the fingerprints of two configurations, in words."""
    return list(differences(_text_params(old), _text_params(new)))


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Yield what differs between the params of two runs of one configuration, in words."""
    if old.get("data_sha256", "") != new.get("data_sha256", ""):
        name = method_name(new.get("dataset", ""))
        both_known = old.get("data_sha256") and new.get("data_sha256")
        yield f"data of {name} changed" if both_known else f"data of {name} known on one side alone"
    for field in ("dense_code", "trial_code"):
        old_code, new_code = parse_code(old.get(field, "")), parse_code(new.get(field, ""))
        for name in sorted(old_code.keys() | new_code.keys()):
            if old_code.get(name) == new_code.get(name):
                continue
            if name.endswith("="):  # a version; a name without is that of a package with a source hash
                yield f"{name[:-1]} {old_code.get(name, 'unknown')} is now {new_code.get(name, 'unknown')}"
            else:
                yield f"source of {name} changed"
