"""The methods paragraph of a sweep for a paper, with BibTeX of everything that it uses, as LaTeX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.intervals import FEWEST_FOR_INTERVAL, IntervalMethod, check_bootstrap
from orchestrator.analysis.latex import escape_latex
from orchestrator.analysis.results import SweepResults, find_sweep, load_results
from orchestrator.analysis.settings import axis_columns
from orchestrator.errors import StoreError, UsageError
from orchestrator.formatting import joined
from orchestrator.report.data import ENVIRONMENT
from orchestrator.report.methods_text import MethodsText
from orchestrator.report.references import bibliography
from orchestrator.tracking import Tracker, open_store

if TYPE_CHECKING:
    from pandas import DataFrame

    from orchestrator.storage.runs import RunRecord

MOST_VALUES, MOST_EXCLUSIONS = 24, 6
Facts = Mapping[str, str]  # of environment.json
SOFTWARE = {  # name in environment.json -> as it is called
    "package.pruning-orchestrator": "pruning-orchestrator",
    "python": "Python",
    "package.torch": "PyTorch",
    "package.torchvision": "torchvision",
    "package.numpy": "NumPy",
    "package.ray": "Ray Tune",
    "package.mlflow": "MLflow",
}
IN_USE = {"package.scikit-learn": "scikit-learn", "package.optuna": "Optuna"}  # where a sweep needs them


@dataclass(frozen=True, eq=False)
class CitedSweep:
    """What a methods paragraph is made of: results, plan, environments, and images of each data set."""

    loaded: SweepResults
    environments: tuple[Facts, ...]
    split_sizes: Mapping[str, Mapping[str, int]]
    method: IntervalMethod = "t"

    @property
    def results(self) -> DataFrame:
        return self.loaded.results

    @property
    def search(self) -> Mapping[str, Any]:  # JSON of the plan
        return dict(self.loaded.plan.get("search", {}))

    @property
    def stop(self) -> str:
        """The rule that stopped trials early, or ""."""
        return str(self.loaded.plan.get("stop") or "")


def cite(sweep: str, *, uri: str, method: IntervalMethod = "t") -> str:
    """Return the methods paragraph of a sweep, every field as comments, and BibTeX.

    Raises StoreError without such a sweep, UsageError where none of its trials has finished.
    """
    tracker = open_store(uri, sweep)
    run = find_sweep(tracker, sweep)
    loaded = load_results(tracker, run)
    finished = loaded.results[loaded.results["status"] == "finished"]
    if finished.empty:
        raise UsageError(f"no trial of {sweep} has finished; there is nothing to cite")
    if method == "bootstrap":
        check_bootstrap(int(finished["seed"].nunique()))
    sizes: dict[str, Mapping[str, int]] = {}
    for dataset, run_id in finished.drop_duplicates("dataset")[["dataset", "run_id"]].itertuples(index=False):
        sizes[str(dataset)] = next(iter(tracker.data_sizes(run_id).values()), {})
    environments = _environments(tracker, run, loaded)
    return citation(CitedSweep(loaded, environments, sizes, method))


def _environments(tracker: Tracker, sweep: RunRecord, loaded: SweepResults) -> tuple[Facts, ...]:
    """Return the different environments of the sweep, and of those whose results it reuses."""
    parents = {str(run.tags.get("mlflow.parentRunId", "")) for run in loaded.runs.values()}
    environments: list[Facts] = []
    for run_id in (sweep.run_id, *sorted(parents - {sweep.run_id, ""})):
        try:
            facts = json.loads(tracker.read_text(tracker.get_run(run_id), ENVIRONMENT))
        except StoreError:  # the sweep was deleted, its trials were not
            continue
        if facts not in environments:
            environments.append(facts)
    return tuple(environments)


def citation(cited: CitedSweep) -> str:
    """Return the paragraph, the fields and the BibTeX of a sweep that was read."""
    text = MethodsText(cited.results[cited.results["status"] == "finished"])
    sentences = [
        *text.networks(cited.split_sizes),
        *text.training(),
        *text.pruning(),
        *_runs(cited, text),
        _statistics(cited, text),
        *_software(cited, text),
    ]
    entries = [entry.bibtex for entry in bibliography(text.uses)]
    unknown = [f"% No BibTeX here for {escape_latex(name)}." for name in text.unknown]
    fields = ["% Every field of its configurations:", *_fields(cited.results)]
    return "\n\n".join([" ".join(sentences), "\n".join([*fields, *unknown]), *entries])


def _runs(cited: CitedSweep, text: MethodsText) -> Iterator[str]:
    """Yield how points and seeds were chosen, and how the trials ended."""
    results, search = cited.results, cited.search
    if search.get("method") in ("tpe", "random"):
        goals = joined(f"{name} ({goal})" for name, goal in search.get("objectives", {}).items())
        cites = text.cite(f"searches/{search['method']}", "software/optuna")
        yield f"Points were drawn by {search['method']}{cites}, for {escape_latex(goals)}."
    seeds = sorted(int(seed) for seed in results["seed"].unique())
    count = f"{len(seeds)} seeds ({_numbers(seeds)})" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    yield (
        f"Every setting was planned with {count}; a seed decides initial weights, the order of batches and "
        "all else that is drawn, and networks of one seed and recipe share their dense training "
        f"({int(results['dense_key'].nunique()):,} in all)."
    )
    counts = results["status"].value_counts().to_dict()
    ended = joined(f"{number:,} {status}" for status, number in counts.items())
    yield f"Of {len(results):,} trials, {ended}."
    if cited.stop:
        cites = text.cite_method("stops", cited.stop)
        yield f"Trials were stopped early by {escape_latex(cited.stop)}{cites}."
    excluded = cited.loaded.plan.get("excluded", ())
    for item in excluded[:MOST_EXCLUSIONS]:
        yield f"Left out of the plan: {int(item['count']):,} points ({escape_latex(str(item['reason']))})."
    if len(excluded) > MOST_EXCLUSIONS:
        yield f"So are {len(excluded) - MOST_EXCLUSIONS} more groups of points."


def _statistics(cited: CitedSweep, text: MethodsText) -> str:
    seeds = int(cited.results["seed"].nunique())
    selection = "Test images decide nothing: all selection is by validation images."
    if seeds == 1:
        return f"Values are those of a single seed, without intervals or tests. {selection}"
    if seeds < FEWEST_FOR_INTERVAL:
        return f"Values are means of two seeds, with lowest and highest, without tests. {selection}"
    kind = "Student's t"
    if cited.method == "bootstrap":
        kind = f"the bias-corrected and accelerated bootstrap{text.cite('statistics/bootstrap')}"
    return (
        f"Values are means over seeds with 95\\% intervals by {kind}. Differences are paired by seed; their "
        "paired t tests are corrected for all comparisons of a table by Holm's "
        f"procedure{text.cite('statistics/holm')}. {selection}"
    )


def _software(cited: CitedSweep, text: MethodsText) -> Iterator[str]:
    """Yield versions and hardware."""
    if not cited.environments:
        yield "Versions and hardware were not recorded."
        return
    names = dict(SOFTWARE)
    if "digits" in text.names("dataset"):
        names["package.scikit-learn"] = IN_USE["package.scikit-learn"]
    if cited.stop or cited.search.get("method") in ("tpe", "random"):
        names["package.optuna"] = IN_USE["package.optuna"]
    versions = [
        f"{title} {versions}{text.cite('software/' + name.removeprefix('package.'))}"
        for name, title in names.items()
        if (versions := escape_latex(_values_of(cited.environments, name)))
    ]
    yield f"Software: {joined(versions)}; commit {_values_of(cited.environments, 'commit') or 'unknown'}."
    processors = [_machine(facts) for facts in cited.environments]
    yield f"Hardware: {escape_latex(joined(dict.fromkeys(processors)))}; {text.numerics()}."


def _values_of(environments: Iterable[Facts], name: str) -> str:
    return joined(dict.fromkeys(facts[name] for facts in environments if name in facts))


def _machine(facts: Facts) -> str:
    gpus = [value for name, value in sorted(facts.items()) if name.startswith("gpu.")]
    parts = [
        facts.get("processor", "a processor of unknown name"),
        f"{facts['cores']} cores" if "cores" in facts else "",
        facts.get("vector_instructions", ""),
        *(f"GPU {name}" for name in dict.fromkeys(gpus)),
        facts.get("platform", ""),
    ]
    return f"{parts[0]} ({', '.join(filter(None, parts[1:]))})"


def _numbers(numbers: list[int]) -> str:
    """Return `0, 3, 7` or, where none is missing, `0 to 19`."""
    is_range = len(numbers) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if is_range else ", ".join(map(str, numbers))


def _fields(results: DataFrame) -> Iterator[str]:
    """Yield a comment for each field of the configurations, with its values in the order of the plan."""
    for column in [*axis_columns(results), "seed"]:
        values = [str(v) for v in results[column].drop_duplicates() if v == v and v is not None and v != ""]
        hidden = len(values) - MOST_VALUES
        if values:
            more = f", and {hidden:,} more" if hidden > 0 else ""
            yield f"%   {column} = {', '.join(values[:MOST_VALUES])}{more}".replace("\n", " ")
