"""Digests of data, plug-in sources and library versions that a result depends on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import models
from extensions import all_entries, top_package
from orchestrator.config import DenseConfig, Prune, TrialConfig
from orchestrator.data import loading
from orchestrator.data.datasets import info
from orchestrator.data.files import check, path, stamp
from orchestrator.errors import DataError, StoreError
from orchestrator.space.hyperparameters import METHOD_REGISTRIES
from orchestrator.space.values import Choice
from orchestrator.system import provenance
from orchestrator.system.files import replace_file
from pruning.registry import parse

DIGESTS = "digests.json"  # beside the data: their digests, as long as the files are the same
GROUPS = ("models.", "pruning.", "orchestrator.")
SOURCE = (".py", ".pyd", ".so", ".yaml", ".yml", ".json", ".toml")
KNOWN = {
    *provenance.SOURCE_PACKAGES,
    "torch",
    *sys.stdlib_module_names,
}  # versions of torch are no part of a key


def refresh() -> None:
    """Forget what was known of data and source: they may have changed since."""
    for known in (data_sha256, dense_code, method_code, _distribution, _source_sha256):
        known.cache_clear()


@cache
def data_sha256(dataset: str) -> str:
    """The digest of a data set in text form, as it is loaded; empty where it cannot be."""
    name, options = parse(dataset)
    try:
        files = stamp(name)
    except DataError:
        return ""
    if files is None:  # of another package: what is read decides
        return _digest_or_nothing(name, options)
    return _own_sha256(dataset, json.dumps(files), path()) if files else ""


@lru_cache(maxsize=64)
def _own_sha256(dataset: str, files: str, root: Path) -> str:
    """The same of a data set of ours, whose `files` are as their stamp says."""
    name, options = parse(dataset)
    if info(name).source is None:
        return _digest_or_nothing(name, options)
    fact = {"files": json.loads(files), "code": provenance.source_digest()}
    book = _read_book(root / DIGESTS)
    held = book.get(dataset, {})
    if {key: held.get(key) for key in fact} == fact:
        return str(held["sha256"])
    found = _digest_or_nothing(name, options)
    if found:
        fact["files"] = stamp(name) or []  # an archive may have been unpacked
        with suppress(OSError, StoreError):  # a folder that cannot be written: read anew the next time
            replace_file(root / DIGESTS, json.dumps({**book, dataset: {**fact, "sha256": found}}, indent=1))
    return found


def _digest_or_nothing(name: str, options: Mapping[str, Any]) -> str:  # literals of a space file
    try:
        return loading.digest(name, **options)
    except DataError:
        return ""


def _read_book(file: Path) -> dict[str, Any]:  # JSON
    try:
        book = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in book.items() if isinstance(v, dict)} if isinstance(book, dict) else {}


def missing_data(datasets: set[str]) -> dict[str, str]:
    """Name -> what is missing and what to do, of the data sets (in text form) that cannot be read."""
    missing = {}
    for name in sorted({parse(text)[0] for text in datasets if not data_sha256(text)}):
        try:
            check(name)
        except DataError as error:
            missing[name] = str(error).removeprefix(f"{name}: ")
    return missing


@cache
def dense_code(model: str, dataset: str) -> str:
    """Of a model and a data set in text form: other packages' source, and versions built from."""
    found = model_code(model)
    read = info(parse(dataset)[0]).read
    if read is not None:
        found |= _code_of("orchestrator.dataset", parse(dataset)[0], read)
    return _text(found)


def model_code(model: str) -> dict[str, str]:
    """Package -> hash of its source, or with `=` behind its name its version, of what builds a model."""
    name = parse(model)[0]
    versions = {f"{package}=": package_version(package) for package in models.built_from(model)}
    return _code_of("models.builder", name, models.BUILDERS[name]) | versions


def trial_code(prune: Prune, *, recover: str, prepare: str, distill: str) -> str:
    """Of the methods of a trial, in text form: other packages' source."""
    texts = {"criterion": prune.criterion, "granularity": prune.granularity, "schedule": prune.schedule}
    texts |= {"recover": recover, "prepare": prepare, "distill": distill}
    found: dict[str, str] = {}
    for axis, text in texts.items():
        found |= method_code(axis, parse(text)[0])  # by name alone: options may be refused later on
    return _text(found)


@cache
def method_code(axis: str, name: str) -> Mapping[str, str]:
    registry = METHOD_REGISTRIES[axis]
    method = registry.get(name)
    return _code_of(registry.group, method.name, method.function)


def fingerprint_choices(choices: Mapping[str, Choice]) -> dict[str, str]:
    """All that trials of these axes may be made of; what a search is known by before its trials are."""
    texts = {axis: one if isinstance(one, tuple) else () for axis, one in choices.items()}
    found = {f"data of {dataset}": data_sha256(str(dataset)) for dataset in texts["dataset"]}
    pairs = [(str(model), str(dataset)) for model in texts["model"] for dataset in texts["dataset"]]
    found |= {f"{model} on {dataset}": dense_code(model, dataset) for model, dataset in pairs}
    for axis in METHOD_REGISTRIES:
        for text in texts.get(axis, ()):
            found |= method_code(axis, parse(str(text))[0])
    return {name: digest for name, digest in found.items() if digest}


def code_of(config: DenseConfig | TrialConfig) -> tuple[str, str]:
    """(dense_code, trial_code) of a configuration by what is installed here and now."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    own = ""
    if isinstance(config, TrialConfig):
        own = trial_code(config.prune, recover=config.recover, prepare=config.prepare, distill=config.distill)
    return dense_code(dense.model, dense.dataset), own


def current(config: DenseConfig | TrialConfig) -> DenseConfig | TrialConfig:
    """The configuration with the ingredients of here and now, as far as it was recorded with them."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    refresh()
    if not dense.data_sha256:  # from before they were recorded, or from where the data were not known
        return config
    code, own = code_of(config)
    dense = replace(dense, data_sha256=data_sha256(dense.dataset), dense_code=code)
    return replace(config, dense=dense, trial_code=own) if isinstance(config, TrialConfig) else dense


def read_code(text: str) -> dict[str, str]:
    """Package -> the hash of its source or, with `=` behind its name, its version."""
    pairs = (part.rpartition("=") for part in text.split(", ") if part)
    return {name: value for name, _, value in pairs}


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _text(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(found.items()))


def _code_of(group: str, name: str, part: Callable[..., Any]) -> dict[str, str]:  # a part of any kind
    """Package -> SHA-256 of its source, of those whose code is behind a name."""
    packages = {_module_of(part).partition(".")[0]} - KNOWN
    own = not packages and _module_of(part).partition(".")[0] in provenance.SOURCE_PACKAGES
    named = (entry for entry in all_entries() if (entry.group, entry.name) == (group, name) and not own)
    packages |= {top_package(entry) for entry in named} - KNOWN
    return {_label(package): _source_sha256(package) for package in packages}


def _module_of(part: Any) -> str:  # a function, a partial of one, or an object that is called
    while hasattr(part, "func"):
        part = part.func
    return str(getattr(part, "__module__", None) or type(part).__module__)


def _label(package: str) -> str:
    found = _distribution(package)
    return package if found is None else found.name


@cache
def _distribution(package: str) -> Distribution | None:
    """Whose entry points name a package; None where nobody's do."""
    ours = (entry for entry in all_entries() if entry.group.startswith(GROUPS))
    return next((entry.dist for entry in ours if top_package(entry) == package), None)


@cache
def _source_sha256(package: str) -> str:
    """Of the source in a package's folder and of that which its distribution lists."""
    files = {**dict(_files_of(package)), **dict(_listed(_distribution(package)))}
    found = hashlib.sha256()
    for name, file in sorted(files.items()):
        found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _files_of(package: str) -> Iterator[tuple[str, Path]]:
    """The source files of a package, or the one of a module, found without importing it."""
    try:
        spec = find_spec(package)
    except (ValueError, ImportError):  # __main__ has none
        spec = None
    folders = list(map(Path, (spec.submodule_search_locations or ()) if spec else ()))
    for folder in folders:
        for file in folder.rglob("*"):
            if file.suffix in SOURCE and file.is_file():
                yield file.relative_to(folder.parent).as_posix(), file
    origin = spec.origin if spec else getattr(sys.modules.get(package), "__file__", None)
    if not folders and origin and Path(origin).is_file():
        yield Path(origin).name, Path(origin)


def _listed(distribution: Distribution | None) -> Iterator[tuple[str, Path]]:
    for listed in (distribution.files if distribution is not None else None) or ():
        file = Path(str(listed.locate()))
        # An editable install lists a finder of its own that holds absolute paths.
        installed = any(part.endswith((".dist-info", ".egg-info")) for part in listed.parts)
        installed |= listed.name.startswith("__editable__")
        if file.suffix in SOURCE and not installed and ".." not in listed.parts and file.is_file():
            yield listed.as_posix(), file
