"""Names of exported files."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.model_io.model_lookup import ModelSource
from orchestrator.model_io.output_paths import stem_of
from orchestrator.storage.manifest import LocalFolder

RUN = "fa5eb06e01994ed68f57947f5555cacf"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("structured 50% net.py:small seed 1", "structured-50-net.py-small-seed-1-fa5eb06e"),
        (
            "l2/uniform macs 50% net.py:small iterative(rounds=6) finetune(epochs=8, lr=0.1) seed 0",
            "l2-uniform-macs-50-net.py-small-iterative-fa5eb06e",
        ),
        ("x" * 400, "x" * 48 + "-fa5eb06e"),
    ],
)
def test_a_file_has_the_name_of_its_run_as_far_as_it_is_short(name: str, stem: str, tmp_path: Path) -> None:
    assert stem_of(ModelSource(name, LocalFolder(tmp_path), None, run_id=RUN)) == stem
