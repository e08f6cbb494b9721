"""Parts of a third party: each is found by its entry point in pyproject.toml."""
