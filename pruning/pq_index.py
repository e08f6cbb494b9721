"""Sparsity of a vector, and how much of it sparsity-informed adaptive pruning (SAP) takes away.

Diao et al., Pruning Deep Neural Networks from a Sparsity Perspective, ICLR 2023. The PQ index is
1 minus a ratio of power means, so it needs no scale; the bound turns it into a number of entries
that must be kept. Everything is float64 and goes through logarithms: no power overflows.

The functions that end in `rows` or `counts` work on pools, [P, n], and count the living only; those
that take a vector are their one-row case, in which every entry counts, zeros too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pruning.masking import count_alive
from pruning.registry import Between
from pruning.scalars import real_number

Values = Tensor | Sequence[float]
UNSCALED_Q = 4.0  # up to which float64 holds the powers of any float32, and sums of them
RANGES = {
    "p": Between(0, 1, above=True),
    "q": Between(1, under=True),
    "eta": Between(0, under=True),
    "gamma": Between(0, above=True, under=True),
    "beta": Between(0, 1, above=True),
}
TOLERANCE = 1e-9  # of a pool's size: whole numbers survive rounding


def check_pq(**given: float | bool) -> None:
    """ValueError, with the parameter and its range, for what the index and the bound cannot take.

    Above p = 1 the index is no measure of sparsity (moving mass from rich to poor may raise it);
    at p = q it is 0 for every vector.
    """
    for name, between in RANGES.items():
        value = real_number(given.get(name, between.high if math.isfinite(between.high) else 1.0))
        if value is None or not between.holds(value):
            raise ValueError(f"{name} is {given[name]!r}; it must be a number in {between}")
    if "p" in given and given["p"] >= given["q"]:
        raise ValueError(f"p is {given['p']!r} and q is {given['q']!r}; p must be below q")


def pq_index(values: Values, p: float = 0.5, q: float = 1.0) -> float:
    """I = 1 - d^(1/q - 1/p) ||w||_p / ||w||_q of all d entries, in [0, 1); larger is sparser.

    0 for a vector of zeros. ValueError for NaN, infinity, or bad p and q.
    """
    check_pq(p=p, q=q)
    return float(pq_index_rows(*_one_row(values), p=float(p), q=float(q)))


def kept_bound(values: Values, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> float:
    """r = d (1 + eta)^(-q / (q - p)) (1 - I)^(pq / (q - p)): at least so many entries are to be kept.

    It holds for the r largest entries whenever the others have at most `eta` times their sum of
    |w|^p. With eta = 0 it is (||w||_p / ||w||_q)^(pq / (q - p)); k equal non-zeros give k.
    """
    check_pq(p=p, q=q, eta=eta)
    return float(kept_bound_rows(*_one_row(values), p=float(p), q=float(q), eta=float(eta)))


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
    """floor(d min(gamma (1 - r / d), beta)): how many of the d entries SAP removes now.

    `published` repeats the authors' program: float32, and r rounded up before use.
    """
    check_pq(p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    p, q, eta, gamma, beta = float(p), float(q), float(eta), float(gamma), float(beta)
    row = _one_row(values)
    return int(sap_counts(*row, p=p, q=q, eta=eta, gamma=gamma, beta=beta, published=published))


def gini(values: Values) -> float:
    """Gini index of |w|, in [0, 1); 0 for a vector of zeros. Hurley & Rickard, 2009."""
    # numpy's sort: it returns no indices, and is eight times as fast as torch's.
    ordered = torch.from_numpy(np.sort(_sizes(*_one_row(values))[0][0].numpy())).double()
    if not len(ordered) or not ordered[-1]:
        return 0.0
    d = len(ordered)
    shares = ordered.div_(ordered[-1].clone())
    ranks = torch.arange(d - 0.5, 0, -1, dtype=torch.float64).div_(d)  # of the smallest first: near 1
    return max(0.0, 1.0 - 2.0 * float(shares.div_(shares.sum()) @ ranks))


def pq_index_rows(values: Tensor, alive: Tensor, *, p: float = 0.5, q: float = 1.0) -> Tensor:
    """float64 [P]: the PQ index of the living of each row; values [P, n], alive bool [P, n]."""
    check_pq(p=p, q=q)
    return 0.0 - torch.expm1(_log_ratio(values, alive, p, q))


def kept_bound_rows(
    values: Tensor, alive: Tensor, *, p: float = 0.5, q: float = 1.0, eta: float = 0.0
) -> Tensor:
    """float64 [P]: r, see `kept_bound`, of each row."""
    check_pq(p=p, q=q, eta=eta)
    exponent = p * q * _log_ratio(values, alive, p, q) - q * math.log1p(eta)
    return count_alive(alive) * torch.exp(exponent / (q - p))


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
    """int64 [P]: how many of the living SAP removes from each row now; see `sap_prune_count`."""
    check_pq(p=p, q=q, eta=eta, gamma=gamma, beta=beta)
    if published:
        return _published_counts(values, alive, p, q, eta, gamma, beta)
    d = count_alive(alive).double()
    kept = kept_bound_rows(values, alive, p=p, q=q, eta=eta)
    share = (gamma * (1.0 - kept / d.clamp(min=1))).clamp(0.0, beta)
    return torch.minimum((d * share + TOLERANCE * d).floor(), d).long()


def _published_counts(
    values: Tensor, alive: Tensor, p: float, q: float, eta: float, gamma: float, beta: float
) -> Tensor:
    """The order of operations is the authors': in float32 it decides where the ceiling falls."""
    living = _living(values, alive)[0].float()
    d = count_alive(alive).float()
    mean_p, mean_q = (
        (torch.linalg.vector_norm(living, power, dim=1).pow(power) / d).pow(1 / power) for power in (p, q)
    )
    index = (1 - mean_p / mean_q).nan_to_num(nan=0.0).clamp(min=0)
    kept = torch.ceil(d * (1 + eta) ** (q / (p - q)) * (1 - index) ** (q * p / (q - p)))
    share = (gamma * (1 - kept / d.clamp(min=1))).clamp(0, beta)
    return torch.floor(d * share).long()


def _log_ratio(values: Tensor, alive: Tensor, p: float, q: float) -> Tensor:
    """[P]: log of (mean |w|^p)^(1/p) / (mean |w|^q)^(1/q), at most 0; 0 where nothing lives or all is 0."""
    size, top = _living(values, alive)
    if values.dtype != torch.float32 or q > UNSCALED_Q:
        size.div_(top.masked_fill(top == 0, 1.0)[:, None])
    log_d = count_alive(alive).double().log()
    sum_q = (size if q == 1 else size**q).sum(1)
    sum_p = size.pow_(p).sum(1)  # in place, so last: what is read once more costs less than new memory
    log_p, log_q = ((total.log() - log_d) / power for total, power in ((sum_p, p), (sum_q, q)))
    return torch.where(top > 0, (log_p - log_q).clamp(max=0.0), 0.0)


def _living(values: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute values, float64, a copy, 0 for the dead; and the largest of each row, 0 of an empty one.

    ValueError unless all of the living are finite.
    """
    size, top = _sizes(values, alive)
    return size.double(), top


def _sizes(values: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """The same, but float32 if the values are: half the bytes are half the time, and no bit is lost."""
    size = (values if values.dtype == torch.float32 else values.double()).abs()  # always another tensor
    if not alive.numpy().all():
        size.masked_fill_(~alive, 0.0)
    top = (size.amax(1) if size.shape[1] else size.new_zeros(len(size))).double()
    if not top.isfinite().all():
        raise ValueError("the values contain NaN or infinity; finite numbers are needed")
    return size, top


def _one_row(values: Values) -> tuple[Tensor, Tensor]:
    known = isinstance(values, (Tensor, np.ndarray)) and torch.as_tensor(values).dtype == torch.float32
    dtype = torch.float32 if known else torch.float64
    row = torch.as_tensor(values, dtype=dtype).detach().cpu().reshape(1, -1)
    return row, torch.ones_like(row, dtype=torch.bool)
