"""Store the masks of every round of a trial, for controls that use the same masks."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from orchestrator.config import TrialConfig
from orchestrator.errors import StoreError, StoreUnavailableError
from orchestrator.storage import model_files
from orchestrator.storage.tensor_files import load_expected_tensors, pack_mask, packed_bytes, unpack_mask
from orchestrator.system.files import write_file
from orchestrator.trial.context import NetworkState
from orchestrator.trial.recovery import RoundMasks, mask_source_config
from pruning.masking import Masks
from pruning.schedules import rounds_of, schedules

if TYPE_CHECKING:
    from orchestrator.tracking import RunRecord, Tracker

ROUND_MASKS = "trunk.safetensors"  # the name in stores made by earlier versions, too
SHA256 = "trunk_sha256"  # the tag of a run that has the file
# Per round: epochs, training FLOPs, the effective ones, micro-batch; training seconds. A file of an earlier
# version lacks the effective ones: it is refused, and the control prunes for itself.
COUNTS, SECONDS = "counts", "seconds"


def dump_round_masks(masks: RoundMasks) -> bytes:
    """Serialize masks as bits, named `ROUND/TENSOR`, and the training cost of each round."""
    counts = [
        (state.epochs, state.train_flops, state.train_flops_effective, state.micro_batch)
        for state in masks.rounds
    ]
    content = {
        f"{number}/{name}": pack_mask(mask)
        for number, state in enumerate(masks.rounds, start=1)
        for name, mask in state.masks.items()
    }
    content[COUNTS] = torch.tensor(counts, dtype=torch.int64)
    content[SECONDS] = torch.tensor([state.train_seconds for state in masks.rounds], dtype=torch.float64)
    return save(content)


def save_round_masks(folder: Path, masks: RoundMasks) -> str:
    """Write the file into a run's folder; return its SHA-256."""
    data = dump_round_masks(masks)
    write_file(folder / ROUND_MASKS, data)
    return hashlib.sha256(data).hexdigest()


def parse_round_masks(data: bytes, key: str, *, rounds: int, like: Masks, path: str) -> RoundMasks:
    """Parse what `dump_round_masks` wrote. StoreError for other rounds, or other tensors than `like`'s."""
    numbers = range(1, rounds + 1)
    forms: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        f"{number}/{name}": ((packed_bytes(tuple(mask.shape)),), torch.uint8)
        for number in numbers
        for name, mask in like.items()
    }
    forms |= {COUNTS: ((rounds, 4), torch.int64), SECONDS: ((rounds,), torch.float64)}
    tensors = load_expected_tensors(data, forms, path)
    costs = zip(tensors[COUNTS].tolist(), tensors[SECONDS].tolist(), strict=True)
    return RoundMasks(
        tuple(
            NetworkState(
                {},
                {
                    name: unpack_mask(tensors[f"{number}/{name}"], tuple(mask.shape))
                    for name, mask in like.items()
                },
                epochs=epochs,
                train_seconds=seconds,
                train_flops=flops,
                train_flops_effective=effective,
                micro_batch=micro_batch,
            )
            for number, ((epochs, flops, effective, micro_batch), seconds) in zip(numbers, costs, strict=True)
        ),
        key,
    )


def load_round_masks(tracker: Tracker, config: TrialConfig) -> RoundMasks | None:
    """Load the masks that a control uses; None if the store lacks them, or the trial is no control."""
    source = mask_source_config(config)
    if source is None:
        return None
    with suppress(StoreUnavailableError, StoreError), tracker.translating_errors():
        row = tracker.find_finished(source.key())
        return None if row is None else _load(tracker, row, source)
    return None


def _load(tracker: Tracker, row: RunRecord, source: TrialConfig) -> RoundMasks | None:
    if SHA256 not in row.tags:
        return None
    data = tracker.read_bytes(row, ROUND_MASKS)
    if hashlib.sha256(data).hexdigest() != row.tags[SHA256]:
        raise StoreError(f"{ROUND_MASKS} of run {row.run_id} is not as it was written")
    saved = model_files.load_model(
        tracker.download_folder(row, "model"), manifest_sha256=row.tags["manifest_sha256"]
    )
    rounds = rounds_of(schedules.get(source.prune.schedule))
    path = f"{ROUND_MASKS} of run {row.run_id}"
    return parse_round_masks(data, source.key(), rounds=rounds, like=saved.masks, path=path)
