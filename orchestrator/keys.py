"""Keys of configurations: the SHA-256 by which a stored result is found again.

A key is that of the canonical JSON of every field that a stage reads, defaults included, its parent's key,
and the stage's version. A field that came later is in no key until it is used, so that old results are found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

Stage = Literal["dense", "trial"]
# Raise a number when results of its stage change for an unchanged configuration. Version 3 of trials: layers
# that are split, shuffled or interleaved are cut in blocks; SynFlow reads transposed convolutions otherwise.
STAGE_VERSIONS: Mapping[Stage, int] = {"dense": 2, "trial": 3}
# Raise it when results on a GPU change alone. Version 2: gradient criteria score on the GPU, the teacher of a
# distillation is in the precision of the training, and micro-batches are as large as the memory allows.
GPU_VERSION = 2
ADDED_LATER: Mapping[str, Any] = {
    "start": "scratch",
    "ancestor_sha256": "",
    "data_sha256": "",
    "dense_code": "",
    "trial_code": "",
    "round_to": 1,
    "train.channels_last": False,
    "train.label_smoothing": 0.0,
    "train.mixup": 0.0,
    "train.ema": 0.0,
    "numerics.fast": False,
    "numerics.compile": False,
    "numerics.devices": 1,
    "numerics.sync_batch_norm": False,
}
# Fields of Prune that take the place of `amount` in a key, or are no part of it.
OTHER_AMOUNTS = ("layer_amounts", "amount_label", "limits")
FINGERPRINTS = ("data_sha256", "dense_code", "trial_code")  # a plan adds them; no space file has them


def stage_key(stage: Stage, content: Mapping[str, Any]) -> str:
    """Return the key of a stage's configuration, in hex; `content` is what JSON can write, without NaN."""
    record = {"stage": stage, "version": STAGE_VERSIONS[stage], **content}
    return hashlib.sha256(_CANONICAL.encode(record).encode()).hexdigest()


def non_default_numerics(numerics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of numerics but those of ADDED_LATER that have their default."""
    return {
        name: value for name, value in numerics.items() if ADDED_LATER.get(f"numerics.{name}", ...) != value
    }


def non_default_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe but those of ADDED_LATER that have their default."""
    return {name: value for name, value in recipe.items() if ADDED_LATER.get(f"train.{name}", ...) != value}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
