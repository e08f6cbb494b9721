"""Plug-ins; pyproject.toml has an entry point for each."""
