"""Make a bundled sweep again in this machine's store, and say what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch

from orchestrator.analysis.results import load_results
from orchestrator.config import MOST_DEVICES, Precision
from orchestrator.errors import StoreError, UsageError
from orchestrator.execution.options import SweepOptions, resolve_device
from orchestrator.execution.summary import Summary
from orchestrator.execution.sweep import plan_of, run_plan
from orchestrator.formatting import first_control
from orchestrator.keys import FINGERPRINTS
from orchestrator.model_io.pretrained import with_bundled_source
from orchestrator.planning.changes import differences
from orchestrator.planning.plan import Plan
from orchestrator.planning.resume import with_points_of
from orchestrator.report.bundle import joined_masks, masks_digest, masks_of_run
from orchestrator.space.schema import Search
from orchestrator.space.space import Space, parse_space
from orchestrator.storage import bundle_file
from orchestrator.storage.bundle_file import BundleFile
from orchestrator.storage.manifest import FilesInMemory
from orchestrator.storage.model_files import accept_code
from orchestrator.storage.runs import RunRecord
from orchestrator.storage.tensor_files import load_tensors
from orchestrator.system.provenance import environment
from orchestrator.system.signals import SignalHandler
from orchestrator.tracking import Tracker
from pruning.user_code import own_code

# Metrics that a clock, an allocator or a library's compression decides.
UNCOMPARED = ("seconds", "latency", "peak_memory", "bytes_compressed")
MOST_NAMED = 5  # runs that differ, of which a line is printed
ACCURACY = "final/accuracy"
Signature = frozenset[tuple[str, str]]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class BundledRun:
    """A run of a bundle: its params and metrics, and the digest of its packed masks, "" for a dense one."""

    kind: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    masks_sha256: str
    key: str

    @property
    def signature(self) -> Signature:
        return signature(self.kind, self.params)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: what to run, and the runs to compare with."""

    file: BundleFile
    runs: tuple[BundledRun, ...]
    environment: Mapping[str, str]
    own_names: tuple[str, ...] = ()  # of one's own functions, with their pins

    @property
    def name(self) -> str:
        return str(self.file.about["space"])


@dataclass
class BundleComparison:
    """Runs that were made again against those of a bundle. `missing` are names of runs that were not."""

    runs: int = 0
    metrics: int = 0
    differences: list[str] = field(default_factory=list)  # a line for each run that differs
    missing: list[str] = field(default_factory=list)
    largest_accuracy_difference: float = 0.0
    environment: list[str] = field(default_factory=list)
    reused: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether every run of the bundle was made again with the same results."""
        return not self.differences and not self.missing

    def lines(self) -> Iterator[str]:
        """Yield the comparison in lines: results first, then what differs in the environment."""
        if self.is_equal:
            yield f"equal: {self.runs} runs, {self.metrics} metrics, and their masks"
        else:
            yield (
                f"differs: {len(self.differences)} of {self.runs} runs; test accuracies by at most "
                f"{100 * self.largest_accuracy_difference:.2f} points"
            )
        yield from self.differences[:MOST_NAMED]
        if (hidden := len(self.differences) - MOST_NAMED) > 0:
            yield f"and {hidden} more"
        if self.missing:
            names = ", ".join(self.missing[:MOST_NAMED])
            yield f"not made again: {len(self.missing)} runs, as {names}"
        if self.reused:
            yield (
                f"{self.reused} trials were in this store already and were not made again; "
                "MLFLOW_TRACKING_URI names an empty one"
            )
        for fact in self.environment or ["the same"]:
            yield f"environment: {fact}"


def signature(kind: str, params: Mapping[str, str]) -> Signature:
    """Return what identifies a configuration on any machine: without numerics, data digests and code."""
    portable = {n: v for n, v in params.items() if n not in FINGERPRINTS and not n.startswith("numerics.")}
    return frozenset({("kind", kind), *portable.items()})


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, and let this process run its own code where that is at hand or trusted.

    Raises StoreError, in one line, for a file that is damaged or no bundle, and for code that may not run.
    """
    file = bundle_file.read_bundle(path)
    try:
        content = file.json(bundle_file.RUNS)["runs"]
        runs, names = tuple(map(_parse_run, content)), sorted(set(_own_names(content)))
        facts = {str(k): str(v) for k, v in file.json(bundle_file.ENVIRONMENT).items()}
        _check_about(file.about)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{file.where}: its runs cannot be read: {str(error)[:200]}") from error
    accept_code(names, lambda: file.text(bundle_file.CODE), where=file.where)
    return Bundle(file, runs, facts, tuple(names))


def _parse_run(item: Json) -> BundledRun:
    params = {str(name): str(value) for name, value in item["params"].items()}
    metrics = {str(name): float(value) for name, value in item["metrics"].items()}
    kind, name, digest, key = (str(item[field]) for field in ("kind", "name", "masks_sha256", "key"))
    return BundledRun(kind, name, params, metrics, digest, key)


def _check_about(about: Json) -> None:
    """Raise ValueError for a name that is no file's, and for options that a sweep has not."""
    name = about["space"]
    if not isinstance(name, str) or first_control(name) is not None or not 0 < len(name) <= 200:
        raise ValueError("its space has no name")
    if "/" in name or name.startswith("."):
        raise ValueError(f"{name[:80]!r} is no name of a space")
    if not all(isinstance(item, str) for item in about["sets"]):
        raise ValueError("its options are no texts")
    if about["device"] not in ("cpu", "cuda") or about["precision"] not in ("fp32", "bf16"):
        raise ValueError(f"it ran on {about['device']!r:.40} in {about['precision']!r:.40}")
    share = about.get("gpus_per_trial", 1.0)
    flags = [about.get(name, False) for name in ("fast", "compile", "sync_batch_norm")]
    if (
        not all(isinstance(flag, bool) for flag in flags)
        or not isinstance(share, float)
        or not (0 < share <= 1 or share in range(2, MOST_DEVICES + 1))
    ):
        raise ValueError("its options of speed are none")
    if not isinstance(about["stop"], str | None):
        raise ValueError("its rule of stopping is no text")
    if about.get("from") is not None:
        names = [about.get(name) for name in ("from", "source_name", "source_sha256")]
        if not all(isinstance(name, str) and first_control(name) is None for name in names):
            raise ValueError("the network that it starts from has no name")


def _own_names(runs: object) -> list[str]:
    """Return the pinned names of one's own functions in the configurations of runs."""
    return [match[0] for match in own_code.NAME.finditer(json.dumps(runs)) if match[2]]


def bundled_space(bundle: Bundle) -> Space:
    """Return the space of a bundle, whose own functions are the pinned ones of its runs."""
    file = bundle.file
    sets = [with_pins(item, bundle.own_names) for item in file.about["sets"]]
    text = with_pins(file.text(bundle_file.SPACE), bundle.own_names)
    space = parse_space(text, sets, name=bundle.name, where=f"{bundle.name}.yaml", folder=Path.cwd())
    if file.about.get("from") is None:
        return space
    source, name, sha256 = (str(file.about[key]) for key in ("from", "source_name", "source_sha256"))
    files = FilesInMemory(f"{file.where}: {bundle_file.SOURCE}", file.source_files())
    return with_bundled_source(space, files, sha256=sha256, source=source, name=name)


def with_pins(text: str, own_names: Sequence[str]) -> str:
    """Return a text in which the names of own functions have the pins that they have in `own_names`."""
    known = list(map(own_code.split, own_names))

    def pinned(match: re.Match[str]) -> str:
        path = PurePosixPath(match[1]).as_posix()
        of_function = [name for name in known if name.function == match[3]]
        names = [name for name in of_function if name.path == path]
        # A path that is absolute, or begins with ~, is recorded from the file's own folder.
        names = names or [name for name in of_function if path.endswith(f"/{name.path}")]
        return match[0] if match[2] or not names else str(names[0])

    return own_code.NAME.sub(pinned, text)


def remake(bundle: Bundle, *, uri: str, signals: SignalHandler) -> Summary:
    """Run the sweep of a bundle into a store; what that holds is not run again.

    DeviceError where it ran on a GPU and there is none.
    """
    about = bundle.file.about
    device = resolve_device(str(about["device"]))
    options = SweepOptions(
        device,
        cast(Precision, about["precision"]),
        gpus_per_trial=float(about.get("gpus_per_trial", 1.0)),
        stop=cast("str | None", about["stop"]),
        fast=bool(about.get("fast", False)),
        compile=bool(about.get("compile", False)),
        sync_batch_norm=bool(about.get("sync_batch_norm", False)),
    )
    plan = plan_of(bundled_space(bundle), options, gpu_bytes=options.gpu_bytes())
    if plan.space.search.method != "grid":
        plan = _with_recorded_points(plan, bundle)
    return run_plan(plan, options, uri=uri, signals=signals)


def _with_recorded_points(plan: Plan, bundle: Bundle) -> Plan:
    """Return the plan with the points that the search found: those of tpe depend on the order of results."""
    content = bundle.file.json(bundle_file.PLAN)
    try:
        objectives, count = plan.space.search.objectives, max(1, len(content["asked"]))
        search = Search(method="random", trials=count, objectives=objectives, seed=plan.space.search.seed)
        fixed = replace(plan, space=plan.space.model_copy(update={"search": search}))
        return with_points_of(fixed, content)
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(f"{bundle.file.where}: its points cannot be read: {str(error)[:200]}") from error


def compare(bundle: Bundle, summary: Summary, *, uri: str) -> BundleComparison:
    """Compare the runs of a bundle with those of the sweep that made them again."""
    tracker = Tracker(uri, summary.space)
    made = load_results(tracker, summary.sweep).runs.values()
    by_signature = {signature(row.tags.get("kind", ""), row.params): row for row in made}
    masks = _bundled_masks(bundle)
    comparison = BundleComparison(reused=summary.reused)
    fingerprints: dict[str, None] = {}
    for run in bundle.runs:
        if (row := by_signature.get(run.signature)) is None:
            comparison.missing.append(run.name)
            continue
        comparison.runs += 1
        fingerprints |= dict.fromkeys(differences(run.params, row.params))
        texts = [*_metric_differences(run, row, comparison), *_mask_differences(run, row, tracker, masks)]
        if texts:
            comparison.differences.append(f"{run.name}: {'; '.join(texts)}")
    now = environment()
    names = dict.fromkeys((*bundle.environment, *now))
    changed = [name for name in names if bundle.environment.get(name) != now.get(name)]
    comparison.environment = [f"{text} since it was bundled" for text in fingerprints] + [
        f"{name}: {bundle.environment.get(name, 'not recorded')} bundled, {now.get(name, 'not there')} now"
        for name in changed
    ]
    return comparison


def _metric_differences(run: BundledRun, row: RunRecord, comparison: BundleComparison) -> Iterator[str]:
    """Yield how many metrics differ, with the first; one that is on one side alone is of another version."""
    names = [name for name in run.metrics if name in row.metrics and not _is_uncompared(name)]
    comparison.metrics += len(names)
    different = [name for name in names if run.metrics[name] != row.metrics[name]]
    if ACCURACY in different:
        gap = abs(run.metrics[ACCURACY] - row.metrics[ACCURACY])
        comparison.largest_accuracy_difference = max(gap, comparison.largest_accuracy_difference)
        different.sort(key=lambda name: name != ACCURACY)
    if different:
        first = different[0]
        count = f"{len(different)} of {len(names)} metrics"
        yield f"{count}, {first} {run.metrics[first]:.6g} bundled, {row.metrics[first]:.6g} now"


def _is_uncompared(name: str) -> bool:
    return any(word in name for word in UNCOMPARED)


def _bundled_masks(bundle: Bundle) -> Mapping[str, torch.Tensor]:
    data = bundle.file.members.get(bundle_file.MASKS)
    return {} if data is None else load_tensors(data, f"{bundle.file.where}: {bundle_file.MASKS}")


def _mask_differences(
    run: BundledRun, row: RunRecord, tracker: Tracker, bundled: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    now = masks_of_run(tracker, row)
    if masks_digest(now) == run.masks_sha256:
        return
    before = bundled.get(run.key)
    if before is None or not now or (after := joined_masks(now)).shape != before.shape:
        yield "other masks"
        return
    count = int(np.unpackbits(np.bitwise_xor(before.numpy(), after.numpy())).sum())
    yield f"{count:,} entries of its masks"


def check_is_bundle(path: Path) -> None:
    """Raise UsageError for a path that is no file."""
    if not path.is_file():
        raise UsageError(f"there is no bundle {path}; `orchestrate bundle SWEEP` writes one")
