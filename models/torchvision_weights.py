"""Pre-trained weights of torchvision's classifiers: their names, and how they come into a network."""

from __future__ import annotations

import os
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from models.densenet import current_name
from models.names import unknown

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
    entry = _enum(name)[weights]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    file = os.path.join(folder, os.path.basename(entry.url))
    try:
        state = torch.hub.load_state_dict_from_url(
            entry.url, progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, OSError, TimeoutError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise ValueError(
            f"weights {weights} cannot be downloaded ({reason}); put {entry.url} at {file}"
        ) from error
    except RuntimeError as error:  # a hash that is not that of its name
        raise ValueError(f"{file} is damaged; remove it ({error})"[:400]) from error
    state = {current_name(at): tensor for at, tensor in state.items() if not at.startswith(AUXILIARY)}
    try:
        net.load_state_dict(_resized(net, state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {weights} do not fit images of this size: {reason}") from error


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
