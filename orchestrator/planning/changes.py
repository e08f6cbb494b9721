"""What has changed since the results that a store holds: data, other packages' source, versions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.config import INGREDIENTS, DenseConfig, TrialConfig, method_name
from orchestrator.planning.fingerprints import read_code
from orchestrator.planning.plan import Plan
from orchestrator.storage.runs import Runs
from orchestrator.trial.params import params


@dataclass(frozen=True)
class Changes:
    """`what` changed, in words, since results that would otherwise be those of `trials` of the plan."""

    what: tuple[str, ...] = ()
    trials: int = 0

    def line(self) -> str:
        """One line; empty where nothing changed."""
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'} run{'s' if self.trials == 1 else ''}"
        told = f"since the results in the store: {', '.join(self.what)}; {count} anew"
        return told if self.what else ""


def changes(plan: Plan, runs: Runs, *, done: Collection[str]) -> Changes:
    """Held against the latest run of the same configuration, for each trial that is not `done`."""
    left = [trial for trial in plan.trials if trial.key not in done]
    if not left:
        return Changes()
    query = "attributes.status = 'FINISHED' and tags.kind = 'trial'"
    before: dict[frozenset[tuple[str, str]], Mapping[str, str]] = {}
    for row in runs.search(query, everywhere=True):
        before.setdefault(_rest(row.params), row.params)
    what: dict[str, None] = {}
    count = 0
    for trial in left:
        now = {name: str(value) for name, value in params(trial.config).items()}
        then = before.get(_rest(now))
        changed = [] if then is None else list(differences(then, now))
        what |= dict.fromkeys(changed)
        count += bool(changed)
    return Changes(tuple(what), count)


def _rest(values: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in values.items() if name not in INGREDIENTS)


def of_config(then: DenseConfig | TrialConfig, now: DenseConfig | TrialConfig) -> list[str]:
    """What differs between two configurations, of their ingredients."""
    then_params, now_params = params(then), params(now)
    return list(
        differences(
            {name: str(value) for name, value in then_params.items()},
            {name: str(value) for name, value in now_params.items()},
        )
    )


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """In words, between the params of two runs of one configuration."""
    if then.get("data_sha256", "") != now.get("data_sha256", ""):
        name = method_name(now.get("dataset", ""))
        known = then.get("data_sha256") and now.get("data_sha256")
        yield f"data of {name} changed" if known else f"data of {name} known on one side alone"
    for field in ("dense_code", "trial_code"):
        old, new = read_code(then.get(field, "")), read_code(now.get(field, ""))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) == new.get(name):
                continue
            if name.endswith("="):
                yield f"{name[:-1]} {old.get(name, 'unknown')} is now {new.get(name, 'unknown')}"
            else:
                yield f"source of {name} changed"
