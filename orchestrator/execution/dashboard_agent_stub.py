"""A small process in place of Ray's dashboard agent, which would import for a second.

The raylet waits for files that name the agent's ports (-1: none), and ends if the agent ends.
"""

from __future__ import annotations

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
POLL_SECONDS = 0.5

if __name__ == "__main__":
    raylet, (folder, node) = os.getppid(), sys.argv[1:]
    for name in PORTS:
        path = os.path.join(folder, f"{name}_{node}")
        with open(f"{path}.half", "w", encoding="utf-8") as file:
            file.write("-1")
        os.rename(f"{path}.half", path)
    while os.getppid() == raylet:
        time.sleep(POLL_SECONDS)
