"""Two sides of one job in turns, checked to do the same: what is written to results/FILE.json.

A file of benchmarks has functions that yield jobs, and ends with `main`:

    from benchmarks.harness import AtLeast, AtMost, Job, benchmark, main

    @benchmark                                      # @benchmark(full=True): only with --full
    def step() -> Iterator[Job]:
        ...                                         # what is not timed: networks, images
        yield Job(
            "masked step, mlp, batch 256",          # what; the row's name
            ours=masked_step,                       # a call without arguments
            peer=dense_step,                        # of the other side; None where there is none
            peer_name="the dense step",
            claims=(AtMost(1.03),),                 # ours / peer is at most 1.03
            rounds=15, number=20,                   # 15 turns of 20 calls each
            equal="bit for bit",                    # what both return is compared by `same`
        )

    if __name__ == "__main__":
        main(__file__)

`AtMost(x)` is of ours / peer, `AtLeast(x)` of peer / ours (as many times as fast), both of ours alone where
there is no peer. `limit` is what cannot be surpassed, `aim` what would be better than the target.
A side returns what is compared, or `Done(value, measures, elsewhere)`: `measures` are further figures by
name (a claim names its own, with its unit; "seconds" is the wall time of a call, unless it is given), and
`elsewhere` the CPU seconds of processes that it started, which are not others' work. Equality is checked
in the first turn and in every later one. The first turn is a warm-up unless `warm=False`.
`python -m benchmarks.FILE [--full] [--dry] [NAME ...]`: `--dry` writes no file, a name picks a function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from benchmarks.kept import Row, keep
from orchestrator.system.machine import MachineLoad, watch_load

RESULTS = Path(__file__).parent / "results"
WALL = "seconds"


@dataclass(frozen=True)
class Done:
    """What one call of a side gave."""

    value: Any = None  # whatever both sides compute
    measures: Mapping[str, float] = field(default_factory=dict)
    elsewhere: float = 0.0


@dataclass(frozen=True)
class AtMost:
    """Ours is at most so many times the peer's; at most so much, where there is no peer."""

    bound: float
    aim: float | None = None
    limit: float | None = None
    measure: str = WALL
    unit: str = "s"

    def of(self, ours: float, peer: float | None) -> float:
        return ours if peer is None else ours / peer

    def holds(self, found: float) -> bool:
        return found <= self.bound


@dataclass(frozen=True)
class AtLeast(AtMost):
    """The peer's is at least so many times ours; ours is at least so much, where there is no peer."""

    def of(self, ours: float, peer: float | None) -> float:
        return ours if peer is None else peer / ours

    def holds(self, found: float) -> bool:
        return found >= self.bound


@dataclass(frozen=True)
class Told:
    """A figure that is told, without a target: the ratio is ours / peer."""

    measure: str = WALL
    unit: str = "s"


Claim = AtMost | AtLeast | Told
Side = Callable[[], Any]  # whatever both sides compute, or a Done


def equal_bits(ours: Any, peer: Any) -> bool:
    """Whether tensors, numbers, texts, or lists of them are equal."""
    import torch

    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, peer)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(peer) and all(map(equal_bits, ours, peer))
    return bool(ours == peer)


@dataclass(frozen=True)
class Job:
    """One row, or one for each claim; `note` is a sentence below the table."""

    what: str
    ours: Side
    peer: Side | None = None
    peer_name: str = ""
    claims: tuple[Claim, ...] = (Told(),)
    rounds: int = 5
    number: int = 1
    warm: bool = True
    equal: str = ""
    same: Callable[[Any, Any], bool] = equal_bits
    note: str = ""


Benchmark = Callable[[], Iterator[Job]]
_found: dict[str, dict[str, tuple[Benchmark, bool]]] = {}


def benchmark(function: Benchmark | None = None, *, full: bool = False) -> Any:  # a decorator, plain or not
    """Make a function that yields jobs one of its file's benchmarks; a `full` one takes minutes."""
    if function is None:
        return lambda later: benchmark(later, full=full)
    file = str(Path(function.__code__.co_filename).resolve())
    _found.setdefault(file, {})[function.__name__] = (function, full)
    return function


def run(job: Job) -> list[Row]:
    """A row for each claim. ValueError where the sides did not compute the same."""
    turns: list[tuple[Done, Done | None]] = []
    if job.warm:
        _turn(job, first=True)
    load, since = watch_load(), perf_counter()
    for number in range(job.rounds):
        turns.append(_turn(job, first=number % 2 == 0))
    elsewhere = sum(done.elsewhere for turn in turns for done in turn if done is not None)
    seen = load()
    others = max(0.0, seen.others - elsewhere / (perf_counter() - since))
    return [_row(job, claim, turns, replace(seen, others=others)) for claim in job.claims]


def _turn(job: Job, *, first: bool) -> tuple[Done, Done | None]:
    """Both sides once, ours `first` or last."""
    if job.peer is None:
        return _timed(job.ours, job.number), None
    if first:
        ours = _timed(job.ours, job.number)
        peer = _timed(job.peer, job.number)
    else:
        peer = _timed(job.peer, job.number)
        ours = _timed(job.ours, job.number)
    if job.equal and not job.same(ours.value, peer.value):
        raise ValueError(f"{job.what}: the sides differ")
    return ours, peer


def _timed(side: Side, number: int) -> Done:
    started = perf_counter()
    for _ in range(number):
        found = side()
    seconds = (perf_counter() - started) / number
    done = found if isinstance(found, Done) else Done(found)
    return replace(done, measures={WALL: seconds, **done.measures})


def _row(job: Job, claim: Claim, turns: list[tuple[Done, Done | None]], load: MachineLoad) -> Row:
    name = claim.measure
    pairs = [(ours.measures[name], peer and peer.measures[name]) for ours, peer in turns]
    judged = None if isinstance(claim, Told) else claim
    of = (lambda ours, peer: ours if peer is None else ours / peer) if judged is None else judged.of
    found = [of(*pair) for pair in pairs]
    return {
        "what": job.what,
        "measure": name,
        "unit": claim.unit,
        "ours": _spread([ours for ours, _ in pairs]),
        "peer": None if job.peer is None else _spread([peer for _, peer in pairs if peer is not None]),
        "peer_name": job.peer_name,
        "ratio": None if job.peer is None else _spread(found),
        "kind": type(claim).__name__,
        "target": judged and judged.bound,
        "aim": judged and judged.aim,
        "limit": judged and judged.limit,
        "reached": None if judged is None else judged.holds(median(found)),
        "equal": job.equal,
        "rounds": job.rounds,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": asdict(load),
        "busy": load.busy,
        "note": job.note,
    }


def _spread(values: list[float]) -> dict[str, float]:
    """The median, and the quartiles where there are enough to tell."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median(values), "low": low, "high": high}


def main(file: str) -> None:
    """Run the benchmarks of a file as the command line says, and write its results."""
    words = sys.argv[1:]
    names = [word for word in words if not word.startswith("--")]
    mine = _found[str(Path(file).resolve())]
    wanted = [name for name, (_, full) in mine.items() if name in names or not (names or full)]
    if "--full" in words and not names:
        wanted = list(mine)
    if unknown := set(names) - mine.keys():
        raise SystemExit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(mine)}")
    place = RESULTS / f"{Path(file).stem}.json"
    for name in wanted:
        rows = [_told({"benchmark": name, **row}) for job in mine[name][0]() for row in run(job)]
        if "--dry" not in words:
            keep(place, name, rows, known=list(mine))


def _told(row: Row) -> Row:
    """The row, said on the terminal."""
    found, unit = (row["ratio"], "x") if row["ratio"] else (row["ours"], f" {row['unit']}")
    sides = "" if row["peer"] is None else f" ({row['ours']['median']:.4g} / {row['peer']['median']:.4g})"
    reached = "ok" if row["reached"] else "missed"
    judged = "" if row["target"] is None else f"; target {row['target']:g}: {reached}"
    busy = f"; {row['busy']}" if row["busy"] else ""
    print(f"{row['what']} [{row['measure']}] {found['median']:.4g}{unit}{sides}{judged}{busy}", flush=True)
    return row


def benchmark_files(folder: Path) -> list[str]:
    """The files of a folder that end with `main`, by their names as modules."""
    end = '\nif __name__ == "__main__":\n    main(__file__)\n'
    return sorted(file.stem for file in folder.glob("*.py") if file.read_text().endswith(end))
