"""Check a GPU: what it computes, whether the host waits for it, and how long steps and cut networks take.

    python -m benchmarks.gpu_check                       # eight minutes at most; `make gpu-check`
    python -m benchmarks.gpu_check --device cpu --small  # through all of it in seconds, without a GPU

It needs neither Ray nor MLflow. The table is printed; the JSON is what `orchestrate plan --calibrate` reads.
It is written after every row, and an error is the reason of its row. Exit code 4 without a GPU, 5 where a
check is not passed or there was an error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import models
import pruning
from benchmarks.gpu_equality import check_equality, check_graph, check_waits
from benchmarks.gpu_steps import CLASSES, describe_failure, make_settings, measure_steps
from orchestrator.errors import CollapsedError
from orchestrator.latency.measure import NetworkVariants, measure
from orchestrator.planning.step_times import KIND, VERSION
from orchestrator.system.determinism import CUBLAS, deterministic
from orchestrator.system.files import replace_file
from orchestrator.trial.scoring import score_on
from pruning.masking import apply_masks

RESULTS = Path(__file__).parent / "results" / "gpu_check.json"
PAGE = Path(__file__).parent.parent / "docs" / "machines.md"
START, END = "<!-- table gpu-check -->", "<!-- end -->"
SECONDS = 480.0
PARTS = ("checks", "steps", "latency", "scoring")  # of the file, in the order in which they are made
NOT_MEASURED = "not measured"
CUT_NETWORKS = (("cnn", (3, 32, 32)), ("resnet(depth=20)", (3, 32, 32)), ("densenet121", (3, 32, 32)))
SMALL_NETWORKS = (("cnn(widths=[4, 4])", (1, 8, 8)),)
SCORED = 100  # images: ten of each of ten classes
Row = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Clock:
    """The time that a check may take."""

    seconds: float
    started: float

    def is_over(self, share: float = 1.0) -> bool:
        """Whether a share of the time has passed."""
        return perf_counter() - self.started > share * self.seconds


def run(device: str, *, small: bool, clock: Clock, save: Callable[[Row], None]) -> Row:
    """Return all rows; of what the time does not suffice for, rows without a value.

    `save` is called with what there is after every row: a process that dies loses nothing of before.
    """
    os.environ.setdefault(*CUBLAS)  # before cuBLAS is used, which reads it once
    result = _describe_device(device) | {"is_complete": False, "seconds": 0.0}
    result |= {part: [] for part in PARTS}

    def save_rows(rows: Iterable[Row], part: str, share: float = math.inf) -> None:
        for row in rows:
            result[part].append(row)
            result["seconds"] = round(perf_counter() - clock.started, 1)
            save(result)
            if clock.is_over(share):
                break

    save_rows(check_waits(device, small=small), "checks")
    save_rows(check_graph(device), "checks")
    save_rows(check_equality(device, small=small), "checks", 0.35)
    with deterministic(device):
        steps = measure_steps(
            make_settings(small=small),
            device=device,
            seconds=0.02 if small else 1.0,
            is_over=lambda: clock.is_over(0.8),
        )
        save_rows(steps, "steps")
        save_rows(measure_latency(device, small=small, clock=clock), "latency")
        save_rows(measure_scoring(device, small=small, clock=clock), "scoring")
    result["is_complete"] = True
    save(result)
    return result


def _describe_device(device: str) -> Row:
    memory = torch.cuda.get_device_properties().total_memory if device == "cuda" else None
    return {
        "kind": KIND,
        "version": VERSION,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "gpu_bytes": None if memory is None else memory >> 30 << 30,
        "torch": torch.__version__,
    }


def measure_latency(device: str, *, small: bool, clock: Clock) -> Iterator[Row]:
    """Yield the latency of networks with half of their channels cut out, against whole ones."""
    for model, shape in SMALL_NETWORKS if small else CUT_NETWORKS:
        for batch in (1, 16) if small else (1, 256):
            row: Row = {"model": model, "input_shape": list(shape), "batch": batch, "dense_ms": None}
            row |= {"masked_ms": None, "cut_ms": None, "speedup": None, "self_ratio": None}
            if not clock.is_over(0.95):
                row |= _latency(model, shape, batch, device=device, seconds=0.05 if small else 1.0)
            yield row


def _latency(model: str, shape: tuple[int, int, int], batch: int, *, device: str, seconds: float) -> Row:
    try:
        latency = measure(_cut_variants(model, shape), batch=batch, seconds=seconds, device=device)
    except CollapsedError as error:
        return {"reason": str(error)[:200]}
    except Exception as error:  # noqa: BLE001  the boundary of a network: the others go on
        return describe_failure(error)
    times = {f"{form}_ms": spread.p50 for form, spread in latency.timing.spreads.items()}
    return {**times, "speedup": latency.speedup, "self_ratio": latency.timing.self_ratio}


def _cut_variants(model: str, shape: tuple[int, int, int]) -> NetworkVariants:
    """Return a network, whole, masked, and with half of its channels cut out."""
    torch.manual_seed(0)
    net = models.build(model, input_shape=shape, num_classes=CLASSES)
    example = torch.zeros((2, *shape))
    options: dict[str, Any] = {"criterion": "l2", "granularity": "channel", "scope": "layer"}
    masks = pruning.prune(net, amount=0.5, example_input=example, **options)
    masked = models.build(model, input_shape=shape, num_classes=CLASSES)
    masked.load_state_dict(net.state_dict())
    apply_masks(masked, masks)
    return NetworkVariants(net, shape, masked, pruning.shrink(net, masks, example), masks)


def measure_scoring(device: str, *, small: bool, clock: Clock) -> Iterator[Row]:
    """Yield the seconds in which SNIP and GraSP score a network on as many images as a trial takes."""
    model, shape = SMALL_NETWORKS[0] if small else CUT_NETWORKS[-1]
    count = 20 if small else SCORED
    images = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
    sample = images, torch.arange(count) % CLASSES
    torch.manual_seed(0)
    net = models.build(model, input_shape=shape, num_classes=CLASSES)
    for criterion in ("snip", "grasp"):
        row: Row = {"criterion": criterion, "model": model, "images": count, "seconds": None}
        if not clock.is_over():
            score = partial(pruning.prune, amount=0.5, criterion=criterion, sample=sample)
            try:
                for _ in range(2):  # the first time libraries choose their kernels
                    started = perf_counter()
                    score_on(torch.device(device), net, runs_it=True, prune=score)
                    seconds = perf_counter() - started
                row["seconds"] = seconds
            except Exception as error:  # noqa: BLE001  the boundary of a criterion: the other goes on
                row |= describe_failure(error)
        yield row


def table(result: Row | None) -> str:
    """Return the result as Markdown; without one, rows that say so."""
    steps = result["steps"] if result else [setting.row() for setting in make_settings(small=False)]
    title = (
        f"{result['device']}, torch {result['torch']}, {result['seconds']:g} s."
        if result
        else "No GPU was at hand."
    )
    parts = [title, _step_table(steps), _latency_table(result), _scoring_table(result)]
    if result:
        failed = [row["what"] for row in result["checks"] if not row["reached"]]
        text = f"not passed: {'; '.join(failed)}" if failed else "all passed"
        parts.append(f"{len(result['checks'])} checks of equality and waits: {text}.")
    return "\n\n".join(parts)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, unit: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:.3g}{unit}"


def _step_table(steps: Sequence[Row]) -> str:
    """Return a row for each network and batch size, with a column for each variant."""
    variants = list(dict.fromkeys(row["variant"] for row in steps))
    groups: dict[tuple[str, int], dict[str, Row]] = {}
    for row in steps:
        groups.setdefault((row["label"], row["batch"]), {})[row["variant"]] = row
    rows = []
    for (model, batch), by_variant in groups.items():
        plain = by_variant["plain"]
        times = (_number(by_variant[v]["step_ms"]) if v in by_variant else "" for v in variants)
        planned, peak = plain["planned_bytes"], plain["peak_bytes"]
        memory = (_number(size and size / 2**30, " GiB") for size in (peak, planned))
        rows.append([model, str(batch), *times, *memory])
    header = ["step, ms", "batch", *variants, "peak memory", "planned for"]
    return _markdown(header, rows)


def _latency_table(result: Row | None) -> str:
    if result:
        records = result["latency"]
    else:
        records = [{"model": model, "batch": batch} for model, _ in CUT_NETWORKS for batch in (1, 256)]
    names = ("dense_ms", "masked_ms", "cut_ms", "speedup")
    rows = [[row["model"], str(row["batch"]), *(_number(row.get(name)) for name in names)] for row in records]
    return _markdown(
        ["latency, ms", "batch", "dense", "masked", "half of the channels cut out", "speedup"], rows
    )


def _scoring_table(result: Row | None) -> str:
    records: Sequence[Row] = (
        result["scoring"]
        if result
        else [
            {"criterion": name, "model": CUT_NETWORKS[-1][0], "images": SCORED} for name in ("snip", "grasp")
        ]
    )
    rows = [
        [row["criterion"], row["model"], str(row["images"]), _number(row.get("seconds"), " s")]
        for row in records
    ]
    return _markdown(["scores", "network", "images", "time"], rows)


def write_page(result: Row | None, page: Path = PAGE) -> None:
    """Put the table in its place on a page of the documentation."""
    text = page.read_text(encoding="utf-8")
    head, _, tail = text.partition(START)
    rest = tail.partition(END)[2]
    replace_file(page, f"{head}{START}\n\n{table(result)}\n\n{END}{rest}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks, in seconds")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that it may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    parser.add_argument("--page", action="store_true", help="write the table into docs/machines.md, too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "gpu-check: torch sees no CUDA device here; --device cpu --small runs it without one\n"
        )
        return 4
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = run(
        options.device,
        small=options.small,
        clock=Clock(options.seconds, perf_counter()),
        save=lambda result: replace_file(options.out, json.dumps(result, indent=1) + "\n"),
    )
    sys.stdout.write(f"{table(result)}\n\n{options.out}\n")
    if options.page:
        write_page(result)
    has_error = any(row.get("is_error") for part in PARTS for row in result[part])
    return 0 if all(row["reached"] for row in result["checks"]) and not has_error else 5


if __name__ == "__main__":
    sys.exit(main())
