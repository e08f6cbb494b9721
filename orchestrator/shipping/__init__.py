"""A network as one folder that runs without this project: `orchestrate export`."""
