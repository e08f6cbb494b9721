"""Work on the images of a batch, shared among threads of Python.

Torch's own threads wait for each other actively at every operation: beside one that reads ahead, two of them
on two cores took longer than one. What is called here has to release Python's lock, and to be no parallel
operation of torch itself: NumPy's are not, and torch's only above SERIAL_VALUES.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SERIAL_VALUES = 1 << 15  # torch shares more values than that among its threads
SHARES = 4  # of each thread, as one may be slower than the others
SHARED_VALUES = 1 << 16  # of an image; below, threads wait for Python's lock longer than they work


def in_threads(work: Callable[[slice], None], count: int, *, values: int) -> None:
    """Call `work` with slices that cover `count` images of so many values, on one or more threads.

    They are one less than torch has: one reads ahead.
    """
    threads = min(torch.get_num_threads() - 1, count)
    if threads <= 1 or values < SHARED_VALUES:
        work(slice(0, count))
        return
    step = math.ceil(count / (SHARES * threads))
    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        for _ in pool.map(work, parts):
            pass
