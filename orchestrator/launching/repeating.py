"""The command that repeats a sweep, as its run records it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from orchestrator.space import SPACES, Space

if TYPE_CHECKING:
    from orchestrator.launching.options import Options

COMMAND = "command"  # a tag of a sweep's run
LONGEST = 4000  # characters; the store cuts tags at 8000


def command(space: Space, options: Options) -> str:
    """What brings the same points to the same results; how many run at once, and where, changes none.

    A space that is no named one is called by its file, which the run keeps under `space.yaml`.
    """
    own = SPACES / f"{space.name}.yaml"
    named = own.is_file() and own.read_text(encoding="utf-8-sig") == space.text
    words = ["orchestrate", "sweep", "--space", space.name if named else f"{space.name}.yaml"]
    words += [word for item in space.sets for word in ("--set", item)]
    words += [] if space.ancestor is None else ["--from", space.ancestor.source]
    words += ["--device", options.device]
    words += [] if options.precision == "fp32" else ["--precision", options.precision]
    words += [] if options.stop is None else ["--stop", options.stop]
    return shlex.join(words)[:LONGEST]
