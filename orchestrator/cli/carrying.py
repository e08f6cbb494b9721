"""export, register: a network goes out into the world."""

from __future__ import annotations

import typer

app = typer.Typer()
