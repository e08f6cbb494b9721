"""Makes `pruning` this project's package, before anything of it is imported.

A folder of the user's that is called `pruning` may come before ours on Python's path.
"""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parent.parent / "pruning" / "package_imports.py"))["claim_packages"]()
