"""Load a recorded model, and verify that it reaches its recorded accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.config import Numerics
from orchestrator.data.loading import Dataset, load_dataset
from orchestrator.errors import DeviceError, StoreError
from orchestrator.model_io.source import ModelSource, resolve_source, source_of_run
from orchestrator.planning.fingerprints import model_code, parse_code
from orchestrator.storage import model_files
from orchestrator.storage.model_spec import ModelSpec
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import DIGEST_LENGTH, RunRecord, Tracker
from orchestrator.training.evaluation import evaluate
from pruning.architecture import widths
from pruning.masking import Masks, apply_masks
from pruning.registry import parse
from pruning.structure import shrink


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a loaded network: its run, params, final metrics, and masks of the uncut network.

    `verified`: its files were compared with a hash that was kept apart from them, not only with each other.
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
) -> tuple[nn.Module, Record]:
    """A recorded network in eval mode, and its record.

    `source`: `runs:/<id>` or the id alone; `models:/name@alias` or `models:/name/3`; or a folder with
    arch.json and manifest.json. A folder is compared with `manifest_sha256`; without it, and with a warning,
    its files are compared with each other only. With `cut`, dead units and channels are taken out where the
    trial did so; else the whole network comes with its dead weights at zero. `strict` evaluates it on the
    recorded data set. StoreError where there is no such network, a file is not as it was written, or `strict`
    finds another accuracy; DeviceError for a device that is not there.
    """
    place = _device(device)
    found = resolve_source(source, uri=default_uri(Path.cwd(), uri), manifest_sha256=manifest_sha256)
    if found.manifest_sha256 is None:
        text = f"{found.files.where}: without manifest_sha256 its files are compared with each other only"
        warnings.warn(text, stacklevel=2)
    net, saved = load_module(found, cut=cut)
    net.to(place)
    if strict:
        verify_accuracy(net, found, saved.blueprint)
    verified = found.manifest_sha256 is not None
    about = (found.run_id, found.name, found.params, found.metrics, found.tags)
    return net, Record(*about, saved.masks, saved.blueprint, found.accuracy, verified)


def load_module(origin: ModelSource, *, cut: bool) -> tuple[nn.Module, model_files.SavedModel]:
    """The network of an origin, masked or cut out, and the files as they were read."""
    saved = model_files.read(origin.files, manifest_sha256=origin.manifest_sha256)
    _check_source(origin, saved.blueprint.model)
    return build_module(saved, origin.tracker, cut=cut), saved


def _check_source(origin: ModelSource, model: str) -> None:
    """StoreError where another package builds the model, and its source is not that of the recorded network.

    A warning where the model is built from another version of a package.
    """
    recorded = parse_code(origin.params.get("dense_code", ""))
    for name, now in model_code(model).items() if recorded else ():
        if recorded.get(name, now) == now:
            continue
        if name.endswith("="):
            text = f"{origin.name} was built by {name[:-1]} {recorded[name]}, and {now} is installed"
            warnings.warn(text, stacklevel=4)
        else:
            raise StoreError(
                f"the source of {name} has changed since {origin.name} was recorded, and would build another "
                "network; install it as it was"
            )


def build_module(saved: model_files.SavedModel, tracker: Tracker | None, *, cut: bool) -> nn.Module:
    """The network of checked files, masked or cut out, on the CPU in eval mode."""
    plan = saved.blueprint
    net = plan.network(weights_of(tracker, saved))
    apply_masks(net, saved.masks)
    if not cut or plan.cut_widths is None:
        return net
    image = torch.zeros((2, *plan.input_shape))  # of which the shape counts alone: random ones are compared
    for whole_if_dead in (False, True):  # the second as earlier versions cut
        try:
            small = shrink(net, saved.masks, image, whole_if_dead=whole_if_dead)
        except ValueError as error:
            raise StoreError(f"this network cannot be cut out by its masks: {error}") from error
        if widths(small) == plan.cut_widths:
            return small.eval()
    raise StoreError("what the masks leave of this network is not what was recorded: other widths")


def saved_model(tracker: Tracker, row: RunRecord) -> model_files.SavedModel:
    """The checked files of a run; StoreError where it holds no whole model."""
    found = source_of_run(tracker, row)
    return model_files.read(found.files, manifest_sha256=found.manifest_sha256)


def weights_of(tracker: Tracker | None, saved: model_files.SavedModel) -> dict[str, Tensor]:
    """Its weights, or those of the parent where it holds masks alone (not masked yet)."""
    if saved.weights is not None:
        return saved.weights
    key = str(saved.blueprint.parent)
    if tracker is None:
        raise StoreError(f"this folder holds masks only; its weights are in the store, under the key {key}")
    parent = tracker.finished_one(key)
    if parent is None:
        raise StoreError(f"the dense network that this run starts from is gone: key {key}")
    dense = saved_model(tracker, parent)
    if dense.blueprint.built_as != saved.blueprint.built_as:
        raise StoreError(
            f"run {parent.run_id} is not the dense network of these masks, but {dense.blueprint.model}"
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


def verify_accuracy(net: nn.Module, origin: ModelSource, blueprint: ModelSpec) -> None:
    """StoreError unless the network has the recorded accuracy on the recorded data set's test images."""
    if origin.accuracy is None or "dataset" not in origin.params:
        raise StoreError(
            f"{origin.name} has no recorded accuracy on a data set, so that strict cannot be kept"
        )
    device = next(net.parameters()).device
    images = recorded_data(origin, device)
    digests = origin.data_digests()
    if digests and images.digest[:DIGEST_LENGTH] not in digests:
        raise StoreError(
            f"{images.name} is not the data that {origin.name} was measured on: its digest differs"
        )
    numerics = _numerics(origin, blueprint)
    with _threads(numerics.threads):
        found = evaluate(net, images.test, numerics=numerics).accuracy
    if found != origin.accuracy:
        raise StoreError(
            f"{origin.name} has an accuracy of {found!r} where {origin.accuracy!r} is recorded: "
            "another device, number of threads or version, or not the network that was measured"
        )


def recorded_data(origin: ModelSource, device: str | torch.device) -> Dataset:
    """The data set that a network was measured on; DataError where its files are not there."""
    name, options = parse(origin.params["dataset"])
    return load_dataset(name, device=device, **options)


def _numerics(origin: ModelSource, blueprint: ModelSpec) -> Numerics:
    """As the network was measured; of the text params only those that decide numbers."""
    planned = Numerics()
    given = {
        name: origin.params.get(f"numerics.{name}", "") for name in ("precision", "threads", "micro_batch")
    }
    return Numerics(
        precision="bf16" if given["precision"] == "bf16" else "fp32",
        threads=int(given["threads"] or planned.threads),
        micro_batch=blueprint.spent.micro_batch or int(given["micro_batch"] or planned.micro_batch),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
