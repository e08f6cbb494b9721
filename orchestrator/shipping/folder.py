"""`orchestrate export`: a file with FILE.json, or a folder with all that it takes to use the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.datasets import parse_dataset
from orchestrator.data.loading import Dataset, scaling
from orchestrator.errors import DataError, StoreError, StoreUnavailableError, UsageError
from orchestrator.model_io.export import (
    ExportedFile,
    ExportOptions,
    WrittenNetwork,
    export_model,
    exported_file,
    save_metadata,
    write_network,
)
from orchestrator.model_io.load import recorded_data, recorded_dataset
from orchestrator.model_io.model_lookup import ModelSource, resolve_source
from orchestrator.model_io.output_paths import check_free, folder_aside, move_folder, parts_of, stem_of
from orchestrator.shipping.card import Card
from orchestrator.shipping.evaluation import FileAccuracy, Sample, evaluate_file, write_sample
from orchestrator.shipping.runners import check_script
from orchestrator.shipping.selection import Choice, choose_best, is_sweep
from orchestrator.tracking import DIGEST_LENGTH

CARD, CHECK = "README.md", "check.py"
FILE_ENDING = re.compile(r"\.[A-Za-z]\w*")  # v1.2 is a folder


@dataclass(frozen=True)
class Shipment:
    """An exported file, and what was written around it; `accuracy` is None where the file is alone."""

    file: ExportedFile
    names: tuple[str, ...]
    accuracy: FileAccuracy | None
    choice: Choice | None
    note: str = ""

    def lines(self) -> Iterator[str]:
        """Yield what the command prints."""
        yield from self.choice.lines() if self.choice else ()
        yield from self.file.lines()
        if self.accuracy is not None:
            yield f"accuracy of this file: {self.accuracy.text()}"
            yield f"beside it: {', '.join(name for name in self.names if name != self.file.path.name)}"
            yield f"check it: python {self.file.path.parent / CHECK}"
        if self.note:
            yield self.note


def ship(
    source: str,
    options: ExportOptions,
    *,
    out: Path | None = None,
    best: bool = False,
    within: float | None = None,
    reason: str = "",
    uri: str,
) -> Shipment:
    """Write a run's network, or that of the best run of a sweep, as a complete folder or as a single file.

    `out` with an ending, as net.onnx, is a file. Any other is a folder, by default one that is named after
    the run; it is complete unless it has files already: then the file and FILE.json are added to it. `reason`
    is a sentence on why this run was chosen, for the model card.
    The errors of `export`, UsageError for a folder that has another run's network, and DataError where the
    test images of a complete folder are missing.
    """
    companions = options.check().companions
    if within is not None and not best:
        raise UsageError("--within goes with --best, which chooses a run of a sweep")
    is_file = out is not None and not out.is_dir() and FILE_ENDING.fullmatch(out.suffix) is not None
    if out is not None and is_file:
        check_free(parts_of(out, companions))  # before the store is read
    choice = choose_best(source, within=within, uri=uri) if best else None
    model = _resolve(choice.run_id if choice else source, uri=uri)
    if out is not None and is_file:
        return Shipment(export_model(model, options, out), (), None, choice)
    folder = Path.cwd() / stem_of(model) if out is None else out
    if (folder / CHECK).exists() and not any(p.name.startswith(stem_of(model)) for p in folder.iterdir()):
        raise UsageError(f"{folder} has the network of another run; name another folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        note = f"{folder} has files already: a model card, a sample and {CHECK} go into a new folder"
        return Shipment(export_model(model, options, folder), (), None, choice, note)
    return _ship_folder(model, options, folder, choice, reason)


def _resolve(source: str, *, uri: str) -> ModelSource:
    """Return a network; of a sweep, the error says that --best chooses a run."""
    try:
        return resolve_source(source, uri=uri)
    except StoreUnavailableError:
        raise
    except StoreError as error:
        if not is_sweep(source, uri=uri):
            raise
        raise UsageError(
            f"{source} is a sweep, and one of its runs is exported: --best chooses it"
        ) from error


def _ship_folder(
    model: ModelSource, options: ExportOptions, folder: Path, choice: Choice | None, reason: str
) -> Shipment:
    """Write a complete folder, aside first."""
    name = f"{stem_of(model)}{options.suffix}"
    if not model.params.get("dataset"):
        raise UsageError(
            f"{model.name} names no data set, and a model card and a sample need one; "
            f"--out {name} writes the network alone"
        )
    check_free([folder / name])
    with folder_aside(folder) as aside:
        place = aside / "folder"
        place.mkdir()
        data = _data(model, name)
        written = write_network(model, options, place / name, data=data)
        accuracy, sample = evaluate_file(written, data)
        written = _with_sample(written, data, accuracy, sample)
        dataset = parse_dataset(recorded_dataset(model))[0]
        pictures = write_sample(place, sample, written.interface, scaling(dataset))
        (place / CHECK).write_text(check_script(name, options), encoding="utf-8")
        parts = [part.name for part in parts_of(written.path, options.check().companions)]
        names = (*reversed(parts), *pictures, CHECK)
        reason = f"It is {choice.reason()}." if choice else reason
        card = Card(model, options, written, data, accuracy, sample, names, reason)
        (place / CARD).write_text(card.text(), encoding="utf-8")
        move_folder(place, folder, last=name)
    file = exported_file(model, written, folder / name)
    return Shipment(file, (*names, CARD), accuracy, choice)


def _data(model: ModelSource, name: str) -> Dataset:
    """Load the data set of a run. DataError where its files are missing, or are not those of its run."""
    hint = f"--out {name} --no-scaling writes the bare network alone, without them"
    try:
        data = recorded_data(model, "cpu")
    except (DataError, StoreError) as error:
        raise type(error)(f"{error}; {hint}") from error
    digests = model.data_digests()
    if digests and data.digest[:DIGEST_LENGTH] not in digests:
        raise DataError(
            f"{data.name} is not the data that {model.name} was measured on: its digest differs; {hint}"
        )
    return data


def _with_sample(
    written: WrittenNetwork, data: Dataset, accuracy: FileAccuracy, sample: Sample
) -> WrittenNetwork:
    """Add class names, the accuracy of the file and its sample to FILE.json."""
    form = written.reduced.form if written.reduced is not None and written.is_reduced else ""
    metadata = {
        **written.metadata,
        "class_names": list(data.class_names),
        "data_digest": data.digest,
        "test": accuracy.to_json(),
        "sample": sample.to_json(data.class_names, form),
    }
    save_metadata(written.path, metadata)
    return replace(written, metadata=metadata)
