"""The MLflow pages of a store, served on loopback."""

from __future__ import annotations

import os
import subprocess
import sys

from orchestrator import tracking
from orchestrator.address import shown, store_folder
from orchestrator.errors import StoreError


def serve(uri: str, *, port: int) -> None:
    """Run the MLflow server on 127.0.0.1 until it is interrupted. StoreError where it cannot start."""
    folder = store_folder(uri)
    if folder is None:
        print(f"the store is a server with pages of its own: {shown(uri)}", file=sys.stderr)
        return
    tracking.initialise(uri)
    base = f"http://127.0.0.1:{port}"
    print(f"{base}/#/experiments?workflowType=machine_learning", flush=True)
    for line in best_runs(uri, base):
        print(line, flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", uri, "--default-artifact-root", (folder / "artifacts").as_uri()]
    process = subprocess.Popen(command, env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    try:
        if process.wait():
            raise StoreError(
                f"the MLflow server ended with {process.returncode}; is port {port} taken? try --port"
            )
    except KeyboardInterrupt:
        process.terminate()
        process.wait()


def best_runs(uri: str, base: str, *, most: int = 5) -> list[str]:
    """One line per space: the address that compares its best trials by validation accuracy."""
    lines = []
    for experiment in tracking.Tracker(uri, "").client.search_experiments():
        tracker = tracking.Tracker(uri, experiment.name)
        rows = tracker.search("attributes.status = 'FINISHED' and tags.kind = 'trial' and tags.key LIKE '_%'")
        rows.sort(key=lambda row: -row.metrics.get("final/val_accuracy", 0.0))
        if rows:
            address = tracking.compare_address(
                base, experiment.experiment_id, [row.run_id for row in rows[:most]]
            )
            lines.append(f"best of {experiment.name}: {address}")
    return lines
