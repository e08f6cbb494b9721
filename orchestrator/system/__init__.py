"""The machine and the process: cores, memory, signals, files, console, versions, determinism."""
