"""What a command is started with: its words, the environment's settings and the working folder, as text."""

from __future__ import annotations

import os
import sys

from orchestrator.control_characters import is_encodable
from orchestrator.errors import UnusableError, UsageError

SETTINGS = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATE_DATA_DIR", "TMPDIR", "HOME")


def check_outside() -> None:
    """UsageError for bytes that are no text, UnusableError for a working folder that is not there."""
    for word in sys.argv[1:]:
        if not is_encodable(word):
            raise UsageError(f"{word!r:.200} is no text in this machine's encoding; write it as UTF-8")
    for name in SETTINGS:
        if not is_encodable(value := os.environ.get(name, "")):
            raise UsageError(f"{name} is {value!r:.200}, no text in this machine's encoding; use UTF-8")
    try:
        folder = os.getcwd()
    except OSError as error:
        raise UnusableError(f"the working folder cannot be used: {error.strerror}; go to another") from error
    if not is_encodable(folder):
        raise UnusableError(f"the working folder is {folder!r:.200}, no text in UTF-8; go to another")
