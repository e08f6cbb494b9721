"""Sources by the names in texts: their classes, options, facts and stamps.

A class is imported when its name is used: nothing here needs numpy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.config import method_text
from orchestrator.data import paths
from orchestrator.data.paths import data_folder
from orchestrator.data.sources.base import DatasetInfo, Source
from orchestrator.data.sources.published_datasets import PUBLISHED
from orchestrator.errors import DataError, SpaceError, unknown_name
from pruning.hyperparameters import Hyperparameter, convert_option, hyperparameters
from pruning.registry import parse_method
from pruning.user_code import own_code
from pruning.user_code.functions import find_method

Options = dict[str, Any]  # literals of a space file
Stamps = list[list[str | int]]
SELECTION = ("classes", "samples_per_class")  # options of every data set; see `datasets.check_options`

# Name in a text -> module:class.
SOURCES: dict[str, str] = {
    "mnist-5k": "orchestrator.data.sources.mnist_5k:Mnist5k",
    "folder": "orchestrator.data.sources.image_folder:ImageFolder",
    "npz": "orchestrator.data.sources.array_files:Npz",
    "npy": "orchestrator.data.sources.array_files:Npy",
    **{name: f"orchestrator.data.sources.torchvision_sources:{name}" for name in PUBLISHED},
}


def source_class(name: str) -> type[Source]:
    """Return the class of a source by its name."""
    module, _, attribute = SOURCES[name].partition(":")
    result: type[Source] = getattr(import_module(module), attribute)
    return result


def parse_dataset(text: str) -> tuple[str, Options]:
    """Split the text of a data set into (text without the options of SELECTION, those options)."""
    name, options = parse_method(text)
    selection = {key: options.pop(key) for key in SELECTION if key in options}
    return method_text(name, options), selection


@lru_cache(maxsize=256)
def find_source(text: str) -> Source | None:
    """Return the source of a text without options of SELECTION; None for what is known by its name alone.

    SpaceError for options that it does not have.
    """
    if "(" not in text and not is_source(text):
        return None
    try:
        name, options = parse_method(text)
    except ValueError as error:
        raise SpaceError(str(error)) from error
    if not is_source(name):
        return None
    if own_code.is_own(name):
        return _own_source(name, options)
    try:
        cls = source_class(name)
        return cls(**_bind(name, options))
    except ValueError as error:
        raise SpaceError(str(error)) from error


def is_source(name: str) -> bool:
    """Whether a name without options is that of a source, or of a function of one's own file."""
    return name in SOURCES or own_code.is_own(name)


def _own_source(name: str, options: Options) -> Source:
    """Return the source of a function. DataError where this process has not its code."""
    from orchestrator.data.sources.own_data import OwnData

    if not own_code.split(name).pin:  # as a store shows it: which file was meant is not known
        raise DataError(
            f"{name} is written without the digest of its file here, and is not read; name it in a space file"
        )
    try:
        own_code.code_of(name)
    except ValueError as error:
        raise DataError(str(error)) from error
    try:
        return OwnData(text=method_text(name, _bind(name, options)))
    except ValueError as error:
        raise SpaceError(str(error)) from error


def canonical_options(name: str, options: Mapping[str, Any]) -> Options:
    """Return a source's own options in canonical form: those that differ from their default, paths recorded.

    ValueError for an option that it does not have, or a value that is not allowed; no file is looked at.
    """
    bound = _bind(name, options)
    if own_code.is_own(name):
        allowed = options_of(name)
        return {key: value for key, value in bound.items() if not _is_default(value, allowed[key].default)}
    cls = source_class(name)
    for key in cls.paths:
        if bound.get(key):
            bound[key] = paths.recorded(bound[key])
    source, defaults = cls(**bound), options_of(name)
    values = {key: getattr(source, key) for key in defaults}
    return {key: value for key, value in values.items() if value != defaults[key].default}


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value is the default; a list, as space files have it, is the tuple of the same."""
    return bool(value == (list(default) if type(default) is tuple else default))


def _bind(name: str, options: Mapping[str, Any]) -> Options:
    allowed, shown = options_of(name), own_code.shown(name)
    for key in options:
        if key in SELECTION:
            raise ValueError(f"{shown}: {key} is no part of the text here; give it as an argument")
        if key not in allowed:
            raise ValueError(unknown_name(f"option of {shown}", key, [*allowed, *SELECTION]))
    return {key: convert_option(f"{shown}({key})", value, allowed[key]) for key, value in options.items()}


def options_of(name: str) -> Mapping[str, Hyperparameter]:
    """Return name -> hyper-parameter of a source's own options. ValueError for a function that has none."""
    if own_code.is_own(name):
        return hyperparameters(find_method("data set", name, (), ())[0])
    if name not in SOURCES:
        return {}
    constructor: Callable[..., Source] = source_class(name)
    return hyperparameters(constructor)


@lru_cache(maxsize=256)
def _facts(source: Source, folder: Path, data: Path) -> DatasetInfo:
    return source.facts()


def source_facts(source: Source) -> DatasetInfo:
    """Return `source.facts()`, cached until `clear_facts`: a plan asks once per trial."""
    return _facts(source, paths.base(), data_folder())


def clear_facts() -> None:
    """Forget what was known: files may have changed since."""
    _facts.cache_clear()


def stamps_of(source: Source) -> Stamps:
    """Return one [common folder, number of files, SHA-256 of their names, sizes and times of change]."""
    digest, files = hashlib.sha256(), sorted(source.files(), key=os.fsencode)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        times = status.st_mtime_ns, status.st_ctime_ns  # the second is set back by no program
        digest.update(json.dumps([os.fsencode(file).hex(), status.st_size, *times]).encode())
    if not files:
        return []
    folder = os.path.commonpath([file.parent for file in files])
    return [[str(folder), len(files), digest.hexdigest()]]
