"""Read and check the source model of `--from MODEL`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.config import Json
from orchestrator.errors import SpaceError, StoreError, UsageError
from orchestrator.model_io.load import load_module
from orchestrator.model_io.source import FORMS, ModelSource, resolve_source
from orchestrator.model_io.state_dict_files import SUFFIXES, infer_architecture, read_state_dict
from orchestrator.planning.constraints import match_source_model, shape_of
from orchestrator.space import values
from orchestrator.space.space import Space
from orchestrator.storage import model_files
from orchestrator.trial.context import NetworkState
from orchestrator.trial.weight_transfer import SourceModelInfo, classes_of
from pruning.masking import Masks

Network = tuple[NetworkState, dict[str, Json]]  # with what arch.json says of it


def with_source_model(space: Space, source: str, *, uri: str) -> Space:
    """The space with the network that `source` names as its ancestor, and that network's model for its own.

    A space that says nothing of `start` starts from the ancestor's weights. StoreError where there is no
    such network; SpaceError or UsageError where the space and it do not go together.
    """
    starts = space.axes.start or ("weights",)
    if set(starts) == {"scratch"}:
        raise UsageError(
            f"--from {source[:80]}: every start of {space.name} is scratch; add weights or masked"
        )
    ancestor = load_source_model(space, source, uri=uri)
    axes = space.axes.model_copy(update={"model": (values.canonical_model(ancestor.model),), "start": starts})
    return space.model_copy(update={"axes": axes, "source_model": ancestor})


def transfer_messages(before: Space, space: Space) -> Iterator[str]:
    """What there is to say of a descent: the model that gives way, and what is inherited, by data set."""
    ancestor = space.source_model
    if ancestor is None:
        return
    if before.axes.model != space.axes.model:
        yield f"the model of {ancestor.name} takes the place of the space's: {space.axes.model[0]}"
    datasets: dict[str, list[str]] = {}
    for dataset in space.axes.dataset:
        try:
            found = match_source_model(space.axes.model[0], dataset, ancestor)
        except ValueError:
            continue  # the plan says why
        parts = [f"{found.inherited} of {ancestor.name}"]
        for word, reasons in (("fitted", found.adapted), ("drawn anew", found.replaced)):
            parts += [f"{word}: {', '.join(f'{n} ({why})' for n, why in reasons.items())}"] if reasons else []
        datasets.setdefault("; ".join(parts), []).append(dataset)
    for text, names in datasets.items():
        yield f"{names[0] if len(names) == 1 else f'{len(names)} data sets'}: {text}"


def load_source_model(space: Space, source: str, *, uri: str) -> SourceModelInfo:
    """The network that `source` names, whole and in a form of its own: equal networks have equal hashes."""
    path = Path(source)
    if path.suffix in SUFFIXES and not path.is_dir():
        if not path.exists():
            raise StoreError(f"{source[:200]}: there is no such file; give one, or {FORMS}")
        name, (state, arch) = path.name, _of_file(space, path)
    else:
        origin = resolve_source(source, uri=uri)
        name, (state, arch) = origin.run_id or origin.name, _logged(origin)
    if broken := [key for key, tensor in state.weights.items() if not tensor.isfinite().all()]:
        raise StoreError(f"{source[:200]}: {broken[0]} is not finite everywhere; nothing can start from it")
    sha256, files = _written(state, arch)
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


def _logged(origin: ModelSource) -> Network:
    """The network of a run, a registered model or a folder, whole, dead weights at zero."""
    net, saved = load_module(origin, cut=False)
    plan = saved.blueprint
    arch = plan.model_dump(mode="json", include={"model", "input_shape", "num_classes"})
    classes = _classes(origin.params.get("dataset"), plan.num_classes) or plan.classes
    return NetworkState(_plain(net.state_dict()), saved.masks), arch | (
        {"classes": list(classes)} if classes else {}
    )


def _classes(dataset: str | None, count: int) -> tuple[str, ...] | None:
    """What the outputs are of, if the recorded data set is known here."""
    if dataset is None:
        return None
    try:
        found = classes_of(dataset)
    except SpaceError:
        return None
    return found if len(found) == count else None


def _of_file(space: Space, path: Path) -> Network:
    """The network of a file, which does not say its model: the space's only one."""
    if len(space.axes.model) != 1:
        raise SpaceError(
            f"{path.name} does not say which model it is, and {space.name} has {len(space.axes.model)}; "
            "give one, as --set model=densenet121"
        )
    model, masks = space.axes.model[0], Masks()
    tensors = read_state_dict(path)
    weights, shape, classes = infer_architecture(
        path, tensors, model=model, image=shape_of(space.axes.dataset[0])[0]
    )
    return NetworkState(weights, masks), {"model": model, "input_shape": list(shape), "num_classes": classes}


def _written(state: NetworkState, arch: Mapping[str, Json]) -> tuple[str, dict[str, bytes]]:
    """The SHA-256 of the manifest and the files; what the network has cost is no part of them."""
    with tempfile.TemporaryDirectory() as place:
        sha256 = model_files.save_model(Path(place), state, arch={**arch, "cut_widths": None})
        return sha256, {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
