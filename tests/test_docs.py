"""The pages of docs/ that are written from the code say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_methods_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "write_methods.py"))["page"]()
    written = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert written == page, "write it anew: python docs/write_methods.py"
