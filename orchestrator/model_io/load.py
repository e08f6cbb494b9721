"""Load a recorded model, and verify that it reaches its recorded accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.config import Numerics
from orchestrator.data.datasets import parse_dataset
from orchestrator.data.loading import Dataset, load_dataset
from orchestrator.errors import DeviceError, StoreError
from orchestrator.model_io.model_lookup import ModelSource, resolve_source, source_of_run
from orchestrator.planning.fingerprints import model_code, parse_code
from orchestrator.storage import model_files
from orchestrator.storage.manifest import read_manifest
from orchestrator.storage.model_files import ModelSpec
from orchestrator.storage.uri import default_uri
from orchestrator.system.determinism import torch_threads
from orchestrator.tracking import DIGEST_LENGTH, RunRecord, Tracker
from orchestrator.training.evaluation import evaluate
from pruning.channels import find_channels, find_uncut_layers, shrink
from pruning.cutting.layer_widths import layer_widths
from pruning.masking import Masks, apply_masks
from pruning.user_code import own_code, stored_code


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """The record of a loaded network: its run, params, final metrics, and the masks of the uncut network.

    `verified`: its files match a hash that is stored apart from them, not only each other.
    """

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    masks: Masks
    blueprint: ModelSpec
    accuracy: float | None
    verified: bool


def load(
    source: str | Path,
    *,
    cut: bool = True,
    device: str = "cpu",
    uri: str | None = None,
    strict: bool = False,
    manifest_sha256: str | None = None,
    trust_code: bool = False,
) -> tuple[nn.Module, ModelRecord]:
    """Load a recorded network in eval mode, and its record.

    `source` is `runs:/<id>` or the id alone, `models:/name@alias`, `models:/name/3`, or a folder with
    arch.json and manifest.json. A folder is compared with `manifest_sha256`; without it, and with a warning,
    its files are compared with each other only. With `cut`, dead units and channels are cut out where the
    trial did so; else the network is uncut, with its dead weights at zero. `strict` evaluates it on the
    recorded data set.

    A network of a file of one's own is built by that file, from the current folder and with the recorded
    digest; with `trust_code` by the copy that is kept with the run, which may do anything: trust its author.
    The same holds for a data set of one's own file.

    Raises StoreError where there is no such network, a file is not as it was written, or `strict` measures
    another accuracy, and DeviceError for a device that is not available.
    """
    torch_device = _device(device)
    model = resolve_source(source, uri=default_uri(Path.cwd(), uri), manifest_sha256=manifest_sha256)
    verified = model.manifest_sha256 is not None
    if not verified:
        text = f"{model.files.where}: without manifest_sha256 its files are compared with each other only"
        warnings.warn(text, stacklevel=2)
    with stored_code.trusting(trust_code):
        net, saved = load_module(model, cut=cut)  # built and checked on the CPU
        net.to(torch_device)
        if strict:
            verify_accuracy(net, model, saved.spec)
    run = (model.run_id, model.name, model.params, model.metrics, model.tags)
    return net, ModelRecord(*run, saved.masks, saved.spec, model.accuracy, verified)


def load_module(model: ModelSource, *, cut: bool) -> tuple[nn.Module, model_files.SavedModel]:
    """Load the network of a source, masked or cut out, and its files as they were read."""
    saved = model_files.load_model_from(model.files, manifest_sha256=model.manifest_sha256)
    _check_code(model, saved.spec.model)
    return build_module(saved, model.tracker, cut=cut), saved


def _check_code(model: ModelSource, name: str) -> None:
    """Raise StoreError where the source of the package that builds the model has changed since.

    Warn where another version of a package builds it.
    """
    recorded = parse_code(model.params.get("dense_code", ""))
    for package, current in model_code(name).items() if recorded else ():
        if recorded.get(package, current) == current:
            continue
        if package.endswith("="):  # by its version, not by its source
            text = f"{model.name} was built by {package[:-1]} {recorded[package]}, and {current} is installed"
            warnings.warn(text, stacklevel=4)
        else:
            raise StoreError(
                f"the source of {package} has changed since {model.name} was recorded, and would build "
                "another network; install it as it was"
            )


def build_module(saved: model_files.SavedModel, tracker: Tracker | None, *, cut: bool) -> nn.Module:
    """Build the network of checked files, masked or cut out, on the CPU in eval mode."""
    spec = saved.spec
    net = spec.build_network(weights_of(tracker, saved))
    apply_masks(net, saved.masks)
    if not cut or spec.cut_widths is None:
        return net
    errors: list[ValueError] = []
    for small in _possible_cuts(net, saved, errors):
        # Earlier versions recorded fewer of an attention's counts, NAME:COUNT.
        widths = {
            name: width
            for name, width in layer_widths(small).items()
            if name in spec.cut_widths or ":" not in name
        }
        if widths == spec.cut_widths:
            return small.eval()
    if errors:
        raise StoreError(f"this network cannot be cut out by its masks: {errors[0]}") from errors[0]
    raise StoreError("what the masks leave of this network is not what was recorded: other widths")


def _possible_cuts(
    net: nn.Module, saved: model_files.SavedModel, errors: list[ValueError]
) -> Iterator[nn.Module]:
    """Yield what the masks leave of a network, by all that may have been cut when it was recorded.

    It was traced as it was built, and either its heads or its channels were cut. What cannot be cut adds to
    `errors`.
    """
    image = torch.zeros((2, *saved.spec.input_shape))  # only its shape matters
    protect = find_uncut_layers(net, saved.masks)
    builders: tuple[Callable[[], nn.Module], ...] = (lambda: net, saved.spec.build_fresh_network)
    for build in builders:
        try:
            channels = find_channels(build(), image, protect=protect)
        except ValueError as error:
            errors.append(error)
            continue
        both = (*channels.groups, *channels.heads)
        choices = (both, channels.groups, channels.heads) if channels.heads else (both,)
        # Whole if dead: as earlier versions cut.
        for groups, whole_if_dead in product(choices, (False, True)):
            try:
                yield shrink(net, saved.masks, image, groups=groups, whole_if_dead=whole_if_dead)
            except ValueError as error:
                errors.append(error)


def saved_model(tracker: Tracker, row: RunRecord) -> model_files.SavedModel:
    """Read and check the files of a run's model; StoreError where it has no complete one."""
    model = source_of_run(tracker, row)
    return model_files.load_model_from(model.files, manifest_sha256=model.manifest_sha256)


def weights_of(tracker: Tracker | None, saved: model_files.SavedModel) -> dict[str, Tensor]:
    """Return the weights of a model: where it stores masks alone, those of its dense network, unmasked."""
    if saved.weights is not None:
        return saved.weights
    key = str(saved.spec.parent)
    if tracker is None:
        raise StoreError(f"this folder holds masks only; its weights are in the store, under the key {key}")
    parent = tracker.find_finished(key)
    if parent is None:
        raise StoreError(f"the dense network that this run starts from is gone: key {key}")
    dense = saved_model(tracker, parent)
    if dense.spec.architecture != saved.spec.architecture:
        raise StoreError(
            f"run {parent.run_id} is not the dense network of these masks, but {dense.spec.model}"
        )
    return dense.state().weights


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {text!r}; cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"networks are loaded on cpu or cuda, not on {text!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"device {text!r} is not there: torch sees {count} CUDA devices; cpu is")
    return device


def verify_accuracy(net: nn.Module, model: ModelSource, spec: ModelSpec) -> None:
    """Raise StoreError unless the network has its recorded accuracy on the test images, digit for digit."""
    if model.accuracy is None or "dataset" not in model.params:
        raise StoreError(
            f"{model.name} has no recorded accuracy on a data set, which strict would compare with"
        )
    device = next(net.parameters()).device
    images = recorded_data(model, device)
    digests = model.data_digests()
    if digests and images.digest[:DIGEST_LENGTH] not in digests:
        raise StoreError(
            f"{images.name} is not the data that {model.name} was measured on: its digest differs"
        )
    numerics = _numerics(model, spec)
    with torch_threads(numerics.threads):
        accuracy = evaluate(net, images.test, numerics=numerics).accuracy
    if accuracy != model.accuracy:
        raise StoreError(
            f"{model.name} has an accuracy of {accuracy!r} where {model.accuracy!r} is recorded: "
            "another device, number of threads or version, or not the network that was measured"
        )


def recorded_data(model: ModelSource, device: str | torch.device) -> Dataset:
    """Load the data set that a network was measured on; DataError where its files are missing."""
    name, options = parse_dataset(recorded_dataset(model))
    return load_dataset(name, device=device, **options)


def recorded_dataset(model: ModelSource) -> str:
    """Return the text of the data set that a network was measured on; "" where none is recorded.

    A function of one's own file has its pin, and its code may run: StoreError where it may not.
    """
    text = model.params.get("dataset", "")
    name = own_code.NAME_AT_START.match(text)
    if name is None:
        return text
    parts = own_code.split(name[0])
    sha256 = parse_code(model.params.get("dense_code", "")).get(parts.path, "")
    pinned = f"{parts.path}@{sha256[: own_code.PIN_LENGTH]}:{parts.function}" if sha256 else name[0]
    model_files.accept_code([pinned], lambda: read_code(model), where=model.name)
    return pinned + text[name.end() :]


def read_code(model: ModelSource) -> str:
    """Return the user's own files that are kept with a network, unread; "" for none."""
    return model_files.read_kept_code(read_manifest(model.files, manifest_sha256=model.manifest_sha256))


def _numerics(model: ModelSource, spec: ModelSpec) -> Numerics:
    """The numerics that the network was measured with, as far as they decide its accuracy."""
    default, prefix = Numerics(), "numerics."
    threads, micro_batch = (model.params.get(f"{prefix}{name}", "") for name in ("threads", "micro_batch"))
    return Numerics(
        precision="bf16" if model.params.get(f"{prefix}precision") == "bf16" else "fp32",
        threads=int(threads or default.threads),
        micro_batch=spec.spent.micro_batch or int(micro_batch or default.micro_batch),
    )
