"""Pre-trained weights of torchvision's classifiers: their names, and how they come into a network."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from models.densenet import current_name
from models.options import unknown

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that only training used


def weights_name(name: str, weights: object) -> str:
    """Return the name of trained weights, `DEFAULT` as what it stands for. ValueError for an unknown one."""
    allowed = _enum(name).__members__
    label = str(weights).rpartition(".")[2]  # ResNet18_Weights.DEFAULT is DEFAULT
    if not isinstance(weights, str) or label not in allowed:
        raise ValueError(unknown(f"weights of torchvision.{name}", str(weights), allowed))
    return str(allowed[label].name)


def load_weights(net: nn.Module, name: str, weights: str) -> None:
    """Load trained weights, which are downloaded where torch hub's folder lacks them.

    ValueError, with the file and where to put it, where they cannot be downloaded, or do not fit.
    """
    url = _enum(name)[weights].url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    try:
        if file.exists():  # torch.hub checks what it downloads alone
            _check_digest(file, file.stat().st_mtime_ns)
        state = torch.hub.load_state_dict_from_url(
            url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:  # URLError, too
        reason = _line(getattr(error, "reason", error))
        raise ValueError(f"weights {weights} cannot be downloaded ({reason}); put {url} at {file}") from error
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{file} is damaged; remove it, or put {url} there ({_line(error)})") from error
    state = {current_name(at): tensor for at, tensor in state.items() if not at.startswith(AUXILIARY)}
    try:
        net.load_state_dict(_resized(net, state))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"weights {weights} do not fit the network ({_line(error)})") from error


def _line(error: object) -> str:
    return " ".join(str(error).split())[:160]


@lru_cache(maxsize=16)
def _check_digest(file: Path, changed: int) -> None:
    """Raise RuntimeError for a file whose content is not that of its name, `NAME-HASH.pth`."""
    digest = file.stem.rpartition("-")[2]
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if not sha256.startswith(digest):
        raise RuntimeError(f"its SHA-256 starts with {sha256[: len(digest)]}")


def _resized(net: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors, a vision transformer's positions interpolated to the image size of the network."""
    from models.torchvision_compat import models

    if not isinstance(net, models.VisionTransformer):
        return state
    resized: dict[str, Any] = models.vision_transformer.interpolate_embeddings(
        net.image_size, net.patch_size, state
    )
    return resized


def _enum(name: str) -> Any:  # a WeightsEnum, which has no types
    from models.torchvision_compat import models

    return models.get_model_weights(name)
