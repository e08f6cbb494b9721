"""Fingerprints of what a result depends on: data, plug-in sources and library versions."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import models
from orchestrator.config import DenseConfig, Prune, TrialConfig
from orchestrator.data import loading
from orchestrator.data.augmentation import augmentations, parse_augmentation
from orchestrator.data.datasets import info, parse_dataset
from orchestrator.data.files import check_files, data_folder, file_stamps, mark_whole
from orchestrator.data.sources.own_data import forget_waiting
from orchestrator.data.sources.registry import SOURCES, clear_facts, find_source
from orchestrator.errors import DataError, StoreError
from orchestrator.space.hyperparameters import METHOD_REGISTRIES
from orchestrator.space.values import Choice, listed_values
from orchestrator.system import provenance
from orchestrator.system.files import replace_file
from orchestrator.training.lr_schedules import lr_schedules
from pruning.registry import parse_method
from pruning.user_code import own_code
from pruning.user_code.plugins import all_entry_points, top_level_module

DIGESTS = "digests.json"  # beside the data: a cache of their digests, by the stamp of their files
GROUPS = ("models.", "pruning.", "orchestrator.")
SOURCE_SUFFIXES = (".py", ".pyd", ".so", ".yaml", ".yml", ".json", ".toml")
# Packages that are no part of a key; for this one's own code STAGE_VERSION stands in.
UNTRACKED = {*provenance.SOURCE_PACKAGES, "torch", *sys.stdlib_module_names}


def clear_caches() -> None:
    """Clear the caches of this module: data and sources may have changed since."""
    for function in (data_sha256, dense_code, method_code, _distribution, _source_sha256):
        function.cache_clear()
    clear_facts()
    forget_waiting()


@cache
def data_sha256(dataset: str) -> str:
    """Return the digest of a data set in canonical text, as it is loaded; "" where it cannot be read."""
    name, options = parse_dataset(dataset)
    try:
        files = file_stamps(name)
    except DataError:
        return ""
    if files is None:  # of another package, which alone knows its files: what it loads decides
        return _loaded_digest(name, options)
    return _cached_sha256(dataset, json.dumps(files), data_folder()) if files else ""


@lru_cache(maxsize=64)
def _cached_sha256(dataset: str, files: str, root: Path) -> str:
    """Return the digest of a data set of this package, cached by the stamp of its `files`."""
    name, options = parse_dataset(dataset)
    is_source = find_source(name) is not None
    if not is_source and info(name).source is None:
        return _loaded_digest(name, options)
    # Another version of Pillow may decode the same files otherwise.
    stamps = {"files": json.loads(files), "code": provenance.source_digest(), "pillow": version("pillow")}
    digests = _read_digests(root / DIGESTS)
    # One relative path means other files in another folder.
    entry = f"{dataset} in {stamps['files'][0][0]}" if is_source else dataset
    cached = digests.get(entry, {})
    if {key: cached.get(key) for key in stamps} == stamps:
        if is_source:
            mark_whole(name, stamps["files"])
        return str(cached["sha256"])
    sha256 = _loaded_digest(name, options)
    if sha256:
        stamps["files"] = file_stamps(name) or []  # an archive may have been unpacked
        digests[entry] = {**stamps, "sha256": sha256}
        with suppress(OSError, StoreError):  # a read-only folder: the data are read again the next time
            root.mkdir(parents=True, exist_ok=True)
            replace_file(root / DIGESTS, json.dumps(digests, indent=1))
    return sha256


def _loaded_digest(name: str, options: Mapping[str, Any]) -> str:  # literals of a space file
    try:
        return loading.digest(name, **options)
    except DataError:
        return ""


def _read_digests(file: Path) -> dict[str, Any]:  # JSON
    try:
        digests = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in digests.items() if isinstance(v, dict)} if isinstance(digests, dict) else {}


def missing_data(datasets: set[str]) -> dict[str, str]:
    """Return name -> what is missing and what to do, for the data sets (in text form) that cannot be read.

    One whose files are there, but not the images that its options ask for, is called by its whole text.
    """
    missing: dict[str, str] = {}
    for text in sorted(text for text in datasets if not data_sha256(text)):
        subject, options = parse_dataset(text)
        name = subject
        try:
            check_files(name)
            subject = text
            loading.digest(name, **options)
        except DataError as error:
            missing[subject] = str(error).removeprefix(f"{name}: ")
    return missing


def check_data(datasets: Iterable[str]) -> None:
    """Raise DataError for a data set whose files are missing or damaged, or that cannot be loaded."""
    for text in datasets:
        check_files(parse_dataset(text)[0])
    for text, problem in missing_data(set(datasets)).items():
        raise DataError(f"{text}: {problem}")


@cache
def dense_code(model: str, dataset: str, augment: str = "none", schedule: str = "constant") -> str:
    """Return the source hashes and versions of the packages that a dense training comes from.

    They are those of its model, data set, augmentation and learning-rate schedule.
    """
    code = model_code(model) | recipe_code(augment, schedule)
    name = parse_method(dataset)[0]
    if own_code.is_own(name):
        own = own_code.code_of(name)
        code[own_code.split(name).path] = own.sha256
        code |= {f"{package}=": package_version(package) for package in own.libraries}
    elif name not in SOURCES and (read := info(name).read) is not None:
        code |= _code_of("orchestrator.dataset", name, read)
    return _code_text(code)


def model_code(model: str) -> dict[str, str]:
    """Return package -> source hash, and package with a final `=` -> version, of what builds a model."""
    name = parse_method(model)[0]
    versions = {f"{package}=": package_version(package) for package in models.built_from(model)}
    return _code_of("models.builder", name, models.find_builder(name)) | versions


def recipe_code(augment: str, schedule: str) -> dict[str, str]:
    """Return package -> source hash, and package with a final `=` -> version, of what a recipe names.

    An augmentation of this package whose results have changed has a version too.
    """
    learning_rates = lr_schedules.get(schedule)
    code = _code_of(lr_schedules.group, learning_rates.name, learning_rates.function)
    for method in parse_augmentation(augment):
        code |= _code_of(augmentations.group, method.name, method.function)
        if library := method.traits.get("library"):
            code[f"{library}="] = package_version(str(library))
        if revision := method.traits.get("revision"):  # of a method whose results have changed since
            code[f"{method.name}="] = str(revision)
    return code


def trial_code(prune: Prune, *, recover: str, prepare: str, distill: str) -> str:
    """Return the source hashes of the other packages that a trial's methods come from."""
    texts = {"criterion": prune.criterion, "granularity": prune.granularity, "schedule": prune.schedule}
    texts |= {"recover": recover, "prepare": prepare, "distill": distill}
    code: dict[str, str] = {}
    for axis, text in texts.items():
        code |= method_code(axis, parse_method(text)[0])  # by name alone: its options may be in conflict
    return _code_text(code)


@cache
def method_code(axis: str, name: str) -> Mapping[str, str]:
    """Return package -> source hash of a method, where another package has it."""
    registry = METHOD_REGISTRIES[axis]
    method = registry.get(name)
    return _code_of(registry.group, method.name, method.function)


def fingerprint_choices(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Return the fingerprints of everything that trials of these axes may use: the identity of a search."""
    texts = {axis: listed_values(choice) for axis, choice in choices.items()}
    fingerprints = {f"data of {dataset}": data_sha256(str(dataset)) for dataset in texts["dataset"]}
    pairs = [(str(model), str(dataset)) for model in texts["model"] for dataset in texts["dataset"]]
    fingerprints |= {f"{model} on {dataset}": dense_code(model, dataset) for model, dataset in pairs}
    for augment, schedule in product(texts["train.augment"], texts["train.schedule"]):
        fingerprints |= recipe_code(augment, schedule)
    for axis in METHOD_REGISTRIES:
        for text in texts.get(axis, ()):
            fingerprints |= method_code(axis, parse_method(str(text))[0])
    return {name: digest for name, digest in fingerprints.items() if digest}


def installed_code(config: DenseConfig | TrialConfig) -> tuple[str, str]:
    """Return (dense_code, trial_code) of a configuration by what is installed now."""
    if isinstance(config, DenseConfig):
        train = config.train
        return dense_code(config.model, config.dataset, train.augment, train.schedule), ""
    code = trial_code(config.prune, recover=config.recover, prepare=config.prepare, distill=config.distill)
    return installed_code(config.dense)[0], code


def with_current_fingerprints(config: DenseConfig | TrialConfig) -> DenseConfig | TrialConfig:
    """Return the configuration with the fingerprints of now, if it was recorded with any."""
    dense = config.dense if isinstance(config, TrialConfig) else config
    clear_caches()
    if not dense.data_sha256:  # recorded before there were fingerprints, or where the data were not readable
        return config
    code, methods_code = installed_code(config)
    dense = replace(dense, data_sha256=data_sha256(dense.dataset), dense_code=code)
    return replace(config, dense=dense, trial_code=methods_code) if isinstance(config, TrialConfig) else dense


def parse_code(text: str) -> dict[str, str]:
    """Return package -> source hash, or package with a final `=` -> version, from a configuration's text."""
    pairs = (item.rpartition("=") for item in text.split(", ") if item)
    return {name: value for name, _, value in pairs}


def package_version(package: str) -> str:
    """Return the version of an installed package, or \"not installed\"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _code_text(code: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(code.items()))


def _code_of(group: str, name: str, function: Callable[..., Any]) -> dict[str, str]:  # of any signature
    """Return package -> SHA-256 of its source, for the packages that implement a name, or its own file."""
    if own_code.is_own(name):
        return {own_code.split(name).path: own_code.code_of(name).sha256}
    package = _module_of(function).partition(".")[0]
    packages = {package} - UNTRACKED
    if package not in provenance.SOURCE_PACKAGES:
        entries = (entry for entry in all_entry_points() if (entry.group, entry.name) == (group, name))
        packages |= {top_level_module(entry) for entry in entries} - UNTRACKED
    return {_distribution_name(package): _source_sha256(package) for package in packages}


def _module_of(function: Any) -> str:  # a function, a partial of one, or an object that is called
    while hasattr(function, "func"):
        function = function.func
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _distribution_name(package: str) -> str:
    distribution = _distribution(package)
    return package if distribution is None else distribution.name


@cache
def _distribution(package: str) -> Distribution | None:
    """Return the distribution whose entry points name a package; None where no distribution's do."""
    ours = (entry for entry in all_entry_points() if entry.group.startswith(GROUPS))
    return next((entry.dist for entry in ours if top_level_module(entry) == package), None)


@cache
def _source_sha256(package: str) -> str:
    """Hash the source files in a package's folder and those that its distribution lists."""
    files = {**dict(_package_files(package)), **dict(_distribution_files(_distribution(package)))}
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the source files of a package or module, without importing it."""
    try:
        spec = find_spec(package)
    except (ValueError, ImportError):  # __main__ has none
        spec = None
    folders = list(map(Path, (spec.submodule_search_locations or ()) if spec else ()))
    for folder in folders:
        for file in folder.rglob("*"):
            if file.suffix in SOURCE_SUFFIXES and file.is_file():
                yield file.relative_to(folder.parent).as_posix(), file
    origin = spec.origin if spec else getattr(sys.modules.get(package), "__file__", None)
    if not folders and origin and Path(origin).is_file():
        yield Path(origin).name, Path(origin)


def _distribution_files(distribution: Distribution | None) -> Iterator[tuple[str, Path]]:
    for listed in (distribution.files if distribution is not None else None) or ():
        file = Path(str(listed.locate()))
        # An editable install lists a finder of its own that holds absolute paths.
        installed = any(folder.endswith((".dist-info", ".egg-info")) for folder in listed.parts)
        installed |= listed.name.startswith("__editable__")
        if file.suffix in SOURCE_SUFFIXES and not installed and ".." not in listed.parts and file.is_file():
            yield listed.as_posix(), file
