"""What of a network is never pruned, by granularity."""

from __future__ import annotations

import pytest

from orchestrator.trial import structure
from pruning.channels import Channels


@pytest.mark.parametrize(("granularity", "layer"), [("channel", "stem"), ("head", "query"), ("weight", "")])
def test_layers_that_are_left_whole_are_named(
    monkeypatch: pytest.MonkeyPatch, granularity: str, layer: str
) -> None:
    channels = Channels((), (), {"stem": "its units are mixed"}, {"query": "its heads are mixed"})
    monkeypatch.setattr(structure, "_channels", lambda architecture, protect: channels)
    architecture = (f"mlp(widths=[7, {len(granularity)}])", (1, 2, 2), 3)
    names = structure.unpruned_of(architecture, granularity)
    assert [name.partition(" (left whole")[0] for name in names] == ([layer] if layer else [])
