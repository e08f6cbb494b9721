"""In the place of Ray's dashboard agent, which no sweep asks for anything, and which imports for a second.

The raylet waits until its agent has said which ports it listens on, in files of the session's folder; -1
says that there is none. It then runs as long as the raylet does.
"""

from __future__ import annotations

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
BEAT_SECONDS = 0.5

if __name__ == "__main__":
    raylet, (folder, node) = os.getppid(), sys.argv[1:]
    for name in PORTS:
        path = os.path.join(folder, f"{name}_{node}")
        with open(f"{path}.half", "w", encoding="utf-8") as file:
            file.write("-1")
        os.rename(f"{path}.half", path)
    while os.getppid() == raylet:
        time.sleep(BEAT_SECONDS)
