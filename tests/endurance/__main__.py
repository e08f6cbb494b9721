"""Random kills of everything that a sweep is made of: `python tests/endurance --kills 200 --seed 1`.

It prints one row of a Markdown table for each kill, and ends with exit code 1 if anything was lost, done
twice or left behind. The same seed draws the same kills, not the same moments: those are the machine's.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]

from descendants import adopt_orphans, leftovers
from disk import mounted
from faults import EVERYWHERE, World
from server import Server
from small_space import Place
from storm import TITLES, Row, Storm

# Eight kills: each kind at least once, on a disk and through a server.
SHORT = [
    ("disk", ["worker", "raylet", "disk", "interrupt", "gcs_server"]),
    ("server", ["driver", "server", "worker"]),
]
LONGEST_STORM = 8  # kills of one sweep


def drawn(kills: int, dice: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Where the store is, and the kinds of kill, for one sweep after the other."""
    while kills:
        store = dice.choice(["disk", "server"])
        size = min(kills, dice.randrange(3, LONGEST_STORM + 1))
        yield store, [dice.choice([*EVERYWHERE, store]) for _ in range(size)]
        kills -= size


@contextmanager
def world(store: str, folder: Path, dice: random.Random) -> Iterator[tuple[Place, World]]:
    """A small disk with a SQLite store, or a server."""
    if store == "server":
        server = Server(folder / "server")
        server.start()
        try:
            yield Place.make(folder, server.uri), World(dice, server=server)
        finally:
            server.kill()
        return
    with mounted(folder / "work") as is_mounted:
        yield Place.make(folder), World(dice, disk=folder / "work" if is_mounted else None)


def reference(folder: Path) -> dict[str, object]:
    """The bits of a sweep that nothing happened to."""
    place = Place.make(folder)
    with place.log.open("ab") as log, place.start(log) as process:
        if process.wait():
            raise SystemExit(place.log.read_text())
    return place.bits()


def rows(storms: Iterator[tuple[str, list[str]]], dice: random.Random) -> Iterator[Row]:
    number, bits = 1, None
    for store, kinds in storms:
        with tempfile.TemporaryDirectory(prefix="e-", ignore_cleanup_errors=True) as name:
            try:
                bits = bits or reference(Path(name) / "undisturbed")
                with world(store, Path(name) / "s", dice) as (place, around):
                    yield from Storm(place, around, bits, number, store).run(possible(kinds, around))
                    number += len(kinds)
            finally:
                leftovers(1.0)  # of what was cut off


def possible(kinds: list[str], around: World) -> list[str]:
    """Without a small disk, drivers are killed where it would be filled."""
    if around.disk is not None or "disk" not in kinds:
        return kinds
    print("no small disk can be mounted here (root can): drivers are killed instead", file=sys.stderr)
    return ["driver" if kind == "disk" else kind for kind in kinds]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/endurance", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="eight kills, each kind at least once")
    given = parser.parse_args()
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and unmount
    dice = random.Random(given.seed)
    storms = iter(SHORT) if given.short else drawn(given.kills, dice)
    print("| " + " | ".join(TITLES) + " |\n|" + "---|" * len(TITLES), flush=True)
    wrong = 0
    for row in rows(storms, dice):
        print("| " + " | ".join(row.cells()) + " |", flush=True)
        wrong += bool(row.wrong)
        for text in row.wrong:
            print(f"kill {row.number} ({row.killed}): {text}", file=sys.stderr, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
