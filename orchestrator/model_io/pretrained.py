"""Read and check the source model of `--from MODEL`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from orchestrator.config import Json
from orchestrator.errors import DataError, SpaceError, StoreError, UsageError
from orchestrator.model_io.load import load_module, recorded_dataset
from orchestrator.model_io.model_lookup import ACCEPTED_SOURCES, ModelSource, resolve_source
from orchestrator.model_io.state_dict_files import SUFFIXES, infer_architecture, read_state_dict
from orchestrator.planning.constraints import match_source_model, shape_of
from orchestrator.space import values
from orchestrator.space.space import Space
from orchestrator.storage import model_files
from orchestrator.storage.manifest import FilesInMemory
from orchestrator.trial.context import NetworkState
from orchestrator.trial.weight_transfer import SourceModelInfo, classes_of
from pruning.masking import Masks
from pruning.user_code import own_code

Network = tuple[NetworkState, dict[str, Json]]  # and the content of its arch.json


def with_source_model(space: Space, source: str, *, uri: str) -> Space:
    """Return the space with the network that `source` names as its source model, whose model it takes over.

    A space without `start` starts from the source model's weights. Raises StoreError where there is no such
    network, and SpaceError or UsageError where the space cannot start from it.
    """
    starts = space.axes.start or ("weights",)
    if set(starts) == {"scratch"}:
        raise UsageError(
            f"--from {source[:80]}: every start of {space.name} is scratch; add weights or masked"
        )
    return _starting_from(space, load_source_model(space, source, uri=uri))


def _starting_from(space: Space, source_model: SourceModelInfo) -> Space:
    model = values.canonical_model(source_model.model)
    axes = space.axes.model_copy(update={"model": (model,), "start": space.axes.start or ("weights",)})
    return space.model_copy(update={"axes": axes, "source_model": source_model})


def with_bundled_source(space: Space, files: FilesInMemory, *, sha256: str, source: str, name: str) -> Space:
    """Return the space with a source model that a bundle holds, whose manifest has this SHA-256.

    `source` is what was given to --from, and `name` the run's id or the file's name. StoreError for other
    files.
    """
    saved = model_files.load_model_from(files, manifest_sha256=sha256)
    spec, state = saved.spec, saved.state()
    arch = spec.model_dump(mode="json", include={"model", "input_shape", "num_classes", "classes"})
    return _starting_from(space, _source_model_info(state, arch, files.contents, sha256, source, name))


def transfer_messages(before: Space, space: Space) -> Iterator[str]:
    """Yield lines on a transfer: the model that is replaced, and the tensors that are inherited."""
    source_model = space.source_model
    if source_model is None:
        return
    model = space.axes.model[0]
    if before.axes.model != space.axes.model:
        yield f"the model of {source_model.name} takes the place of the space's: {own_code.shown(model)}"
    datasets: dict[str, list[str]] = {}
    for dataset in space.axes.dataset:
        try:
            mapping = match_source_model(space.axes.model[0], dataset, source_model)
        except ValueError:
            continue  # the plan says why
        phrases = [f"{mapping.inherited} of {source_model.name}"]
        for verb, reasons in (("fitted", mapping.adapted), ("drawn anew", mapping.replaced)):
            if reasons:
                phrases.append(f"{verb}: {', '.join(f'{name} ({why})' for name, why in reasons.items())}")
        datasets.setdefault("; ".join(phrases), []).append(dataset)
    for text, names in datasets.items():
        yield f"{own_code.shown(names[0]) if len(names) == 1 else f'{len(names)} data sets'}: {text}"


def load_source_model(space: Space, source: str, *, uri: str) -> SourceModelInfo:
    """Load the network that `source` names, uncut; equal networks have equal hashes."""
    path = Path(source)
    if path.suffix in SUFFIXES and not path.is_dir():
        if not path.exists():
            raise StoreError(f"{source[:200]}: there is no such file; give one, or {ACCEPTED_SOURCES}")
        name, (state, arch) = path.name, _network_of_file(space, path)
    else:
        model = resolve_source(source, uri=uri)
        name, (state, arch) = model.run_id or model.name, _network_of_source(model)
    if not_finite := [key for key, tensor in state.weights.items() if not tensor.isfinite().all()]:
        raise StoreError(
            f"{source[:200]}: {not_finite[0]} is not finite everywhere; nothing can start from it"
        )
    # The training cost of the network is no part of its hash.
    with tempfile.TemporaryDirectory() as folder:
        sha256 = model_files.save_model(Path(folder), state, arch={**arch, "cut_widths": None})
        files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    return _source_model_info(state, arch, files, sha256, source, name)


def _source_model_info(
    state: NetworkState,
    arch: Mapping[str, Json],
    files: Mapping[str, bytes],
    sha256: str,
    source: str,
    name: str,
) -> SourceModelInfo:
    classes = arch.get("classes")
    return SourceModelInfo(
        sha256,
        source,
        name,
        arch["model"],
        tuple(arch["input_shape"]),
        arch["num_classes"],
        None if classes is None else tuple(classes),
        {key: tuple(tensor.shape) for key, tensor in state.weights.items()},
        not all(mask.all() for mask in state.masks.values()),
        files,
    )


def _network_of_source(model: ModelSource) -> Network:
    """The network of a run, a registered model or a folder, uncut, with its dead weights at zero."""
    net, saved = load_module(model, cut=False)
    spec = saved.spec
    arch = spec.model_dump(mode="json", include={"model", "input_shape", "num_classes"})
    if classes := _classes(model, spec.num_classes) or spec.classes:
        arch["classes"] = list(classes)
    weights = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    return NetworkState(weights, saved.masks), arch


def _classes(model: ModelSource, count: int) -> tuple[str, ...] | None:
    """The classes of the outputs, if this version knows the recorded data set."""
    try:
        dataset = recorded_dataset(model)
        classes = classes_of(dataset) if dataset else ()
    except (SpaceError, DataError, StoreError):
        return None
    return classes if len(classes) == count else None


def _network_of_file(space: Space, path: Path) -> Network:
    """The network of a state dict, of the space's only model: the file does not name its own."""
    if len(space.axes.model) != 1:
        raise SpaceError(
            f"{path.name} does not say which model it is, and {space.name} has {len(space.axes.model)}; "
            "give one, as --set model=densenet121"
        )
    model, image = space.axes.model[0], shape_of(space.axes.dataset[0])[0]
    weights, shape, classes = infer_architecture(path, read_state_dict(path), model=model, image=image)
    arch: dict[str, Json] = {"model": model, "input_shape": list(shape), "num_classes": classes}
    return NetworkState(weights, Masks()), arch
