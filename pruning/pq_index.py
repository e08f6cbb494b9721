"""The PQ index of a vector's sparsity, adaptive pruning by it (SAP), and the phases of pruning that it shows.

Diao et al., Pruning Deep Neural Networks from a Sparsity Perspective, ICLR 2023. The PQ index is 1 minus a
ratio of power means, so it needs no scale; the bound turns it into a number of entries that must be kept.
Everything is float64 and goes through logarithms: no power overflows.

The functions that end in `rows` or `counts` work on pools, [P, n], and see the alive entries only; those that
take a vector are their one-row case, in which every entry counts, zeros too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pruning.hyperparameters import Between, to_float, to_int
from pruning.masking import count_alive_rows

Values = Tensor | Sequence[float]
UNSCALED_Q = 4.0  # up to which float64 holds the powers of any float32, and sums of them
RANGES = {
    "p": Between(0, 1, open_low=True),
    "q": Between(1, open_high=True),
    "eta": Between(0, open_high=True),
    "gamma": Between(0, open_low=True, open_high=True),
    "beta": Between(0, 1, open_low=True),
}
TOLERANCE = 1e-9  # of a pool's size: whole numbers survive rounding

NOT_SEEN = "phase not seen"
REGULARISING, UNDERFITTING, COLLAPSING = "regularising", "underfitting", "collapsing"
PAST_COMPRESSIBLE = (UNDERFITTING, COLLAPSING)
DELTA, PATIENCE = 0.01, 2
PHASE_RANGES = {"delta": Between(0, open_high=True), "patience": Between(1)}


def check_pq_options(**options: float | bool) -> None:
    """Raise ValueError, with the parameter and its range, for what the index and the bound cannot take.

    Above p = 1 the index is no measure of sparsity (moving mass from rich to poor may raise it);
    at p = q it is 0 for every vector.
    """
    for name, between in RANGES.items():
        value = to_float(options.get(name, between.high if math.isfinite(between.high) else 1.0))
        if value is None or not between.contains(value):
            raise ValueError(f"{name} is {options[name]!r}; it must be a number in {between}")
    if "p" in options and options["p"] >= options["q"]:
        raise ValueError(f"p is {options['p']!r} and q is {options['q']!r}; p must be below q")


def pq_index(values: Values, p: float = 0.5, q: float = 1.0) -> float:
    """Return I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q of all d entries, in [0, 1); larger is sparser.

    0 for a vector of zeros. ValueError for NaN, infinity, or bad p and q.
    """
    check_pq_options(p=p, q=q)
    return float(pq_index_rows(*_as_row(values), p=float(p), q=float(q)))


def kept_bound(values: Values, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> float:
    """Return r = d (1 + eta)^(-q / (q - p)) (1 - I)^(pq / (q - p)): at least so many entries are to be kept.

    It holds for the r largest entries whenever the others have at most `eta` times their sum of
    |w|^p. With eta = 0 it is (||w||_p / ||w||_q)^(pq / (q - p)); k equal non-zeros have r = k.
    """
    check_pq_options(p=p, q=q, eta=eta)
    return float(kept_bound_rows(*_as_row(values), p=float(p), q=float(q), eta=float(eta)))


def sap_prune_count(
    values: Values,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
    *,
    published: bool = False,
) -> int:
    """Return floor(d min(gamma (1 - r / d), beta)): how many of the d entries SAP prunes now.

    `published` repeats the authors' program: float32, and r rounded up before use.
    """
    check_pq_options(p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    p, q, eta, gamma, beta = float(p), float(q), float(eta), float(gamma), float(beta)
    row = _as_row(values)
    return int(sap_counts(*row, p=p, q=q, eta=eta, gamma=gamma, beta=beta, published=published))


def gini(values: Values) -> float:
    """Return the Gini index of |w|, in [0, 1); 0 for a vector of zeros. Hurley & Rickard, 2009."""
    # numpy's sort: it returns no indices, and is eight times as fast as torch's.
    ordered = torch.from_numpy(np.sort(_absolute(*_as_row(values))[0][0].numpy())).double()
    if not len(ordered) or not ordered[-1]:
        return 0.0
    d = len(ordered)
    shares = ordered.div_(ordered[-1].clone())
    ranks = torch.arange(d - 0.5, 0, -1, dtype=torch.float64).div_(d)  # of the smallest first: near 1
    return max(0.0, 1.0 - 2.0 * float(shares.div_(shares.sum()) @ ranks))


def pq_index_rows(values: Tensor, alive: Tensor, *, p: float = 0.5, q: float = 1.0) -> Tensor:
    """Return float64 [P]: the PQ index of each row's alive entries; values [P, n], alive bool [P, n]."""
    check_pq_options(p=p, q=q)
    return 0.0 - torch.expm1(_log_ratio(values, alive, p, q))


def kept_bound_rows(
    values: Tensor, alive: Tensor, *, p: float = 0.5, q: float = 1.0, eta: float = 0.0
) -> Tensor:
    """Return float64 [P]: r, see `kept_bound`, of each row."""
    check_pq_options(p=p, q=q, eta=eta)
    exponent = p * q * _log_ratio(values, alive, p, q) - q * math.log1p(eta)
    return count_alive_rows(alive) * torch.exp(exponent / (q - p))


def sap_counts(
    values: Tensor,
    alive: Tensor,
    *,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
    published: bool = False,
) -> Tensor:
    """Return int64 [P]: how many alive entries SAP prunes from each row now; see `sap_prune_count`."""
    check_pq_options(p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    if published:
        return _published_counts(values, alive, p, q, eta, gamma, beta)
    d = count_alive_rows(alive).double()
    bound = kept_bound_rows(values, alive, p=p, q=q, eta=eta)
    share = (gamma * (1.0 - bound / d.clamp(min=1))).clamp(0.0, beta)
    return torch.minimum((d * share + TOLERANCE * d).floor(), d).long()


def _published_counts(
    values: Tensor, alive: Tensor, p: float, q: float, eta: float, gamma: float, beta: float
) -> Tensor:
    # The order of operations is the authors': in float32 it decides where the ceiling falls.
    sizes = _alive_absolute(values, alive)[0].float()
    d = count_alive_rows(alive).float()
    mean_p, mean_q = (
        (torch.linalg.vector_norm(sizes, power, dim=1).pow(power) / d).pow(1 / power) for power in (p, q)
    )
    index = (1 - mean_p / mean_q).nan_to_num(nan=0.0).clamp(min=0)
    bound = torch.ceil(d * (1 + eta) ** (q / (p - q)) * (1 - index) ** (q * p / (q - p)))
    share = (gamma * (1 - bound / d.clamp(min=1))).clamp(0, beta)
    return torch.floor(d * share).long()


def _log_ratio(values: Tensor, alive: Tensor, p: float, q: float) -> Tensor:
    """Return [P]: log of (mean |w|^p)^(1/p) / (mean |w|^q)^(1/q), at most 0; 0 for an empty or zero row."""
    size, top = _alive_absolute(values, alive)
    if values.dtype != torch.float32 or q > UNSCALED_Q:
        size.div_(top.masked_fill(top == 0, 1.0)[:, None])
    log_d = count_alive_rows(alive).double().log()
    sum_q = (size if q == 1 else size**q).sum(1)
    sum_p = size.pow_(p).sum(1)  # in place, so last: what is read once more costs less than new memory
    log_p, log_q = ((total.log() - log_d) / power for total, power in ((sum_p, p), (sum_q, q)))
    return torch.where(top > 0, (log_p - log_q).clamp(max=0.0), 0.0)


def _alive_absolute(values: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Return `_absolute` in float64."""
    size, top = _absolute(values, alive)
    return size.double(), top


def _absolute(values: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Return absolute values, a copy with 0 for pruned entries, and each row's largest, 0 if empty.

    The copy is float32 if the values are: half the bytes are half the time, and no bit is lost. ValueError
    unless all alive values are finite.
    """
    size = (values if values.dtype == torch.float32 else values.double()).abs()  # always another tensor
    if not alive.numpy().all():
        size.masked_fill_(~alive, 0.0)
    top = (size.amax(1) if size.shape[1] else size.new_zeros(len(size))).double()
    if not top.isfinite().all():
        raise ValueError("the values contain NaN or infinity; finite numbers are needed")
    return size, top


def _as_row(values: Values) -> tuple[Tensor, Tensor]:
    is_float32 = isinstance(values, (Tensor, np.ndarray)) and torch.as_tensor(values).dtype == torch.float32
    dtype = torch.float32 if is_float32 else torch.float64
    row = torch.as_tensor(values, dtype=dtype).detach().cpu().reshape(1, -1)
    return row, torch.ones_like(row, dtype=torch.bool)


def check_phase_options(*, delta: float, patience: int) -> None:
    """Raise ValueError for what `find_phases` cannot take."""
    size, rounds = to_float(delta), to_int(patience)
    if size is None or not PHASE_RANGES["delta"].contains(size):
        raise ValueError(f"delta: expected a number in {PHASE_RANGES['delta']} but got {delta!r}")
    if rounds is None or not PHASE_RANGES["patience"].contains(rounds):
        raise ValueError(f"patience: expected a whole number of rounds, 1 or more, but got {patience!r}")


def find_phases(indices: Sequence[float], *, delta: float = DELTA, patience: int = PATIENCE) -> list[str]:
    """Return the phase of every round from the PQ index of the retrained network after each (section 4).

    The index falls while pruning regularises the network, rises when it begins to underfit, and falls again
    when it collapses. A turning point is an extreme from which the index has moved away by more than `delta`
    for `patience` rounds on end: what is less is noise. Before the first bottom is known, and in rounds
    before the fall that leads to it, the phase is not seen; an index may also never turn.
    """
    check_phase_options(delta=delta, patience=patience)
    upside_down = [-value for value in indices]
    result = [NOT_SEEN] * len(indices)
    start, bottom = 0, _find_minimum(indices, 0, delta, patience)
    if bottom is not None and max(indices[: bottom + 1]) - indices[bottom] <= delta:
        # It rises from the first round on: the fall, if there is one, comes after the top.
        start = _find_minimum(upside_down, bottom, delta, patience) or len(indices)
        bottom = _find_minimum(indices, start, delta, patience)
    if bottom is None:
        return result
    top = _find_minimum(upside_down, bottom, delta, patience)
    top = len(indices) - 1 if top is None else top
    result[start : bottom + 1] = [REGULARISING] * (bottom + 1 - start)
    result[bottom + 1 : top + 1] = [UNDERFITTING] * (top - bottom)
    result[top + 1 :] = [COLLAPSING] * (len(indices) - top - 1)
    return result


def _find_minimum(values: Sequence[float], start: int, delta: float, patience: int) -> int | None:
    """Return the position of the first confirmed minimum from `start` on; None without one."""
    lowest, rounds_above = start, 0
    for position in range(start + 1, len(values)):
        if values[position] < values[lowest]:
            lowest, rounds_above = position, 0
        else:
            rounds_above = rounds_above + 1 if values[position] > values[lowest] + delta else 0
        if rounds_above == patience:
            return lowest
    return None
