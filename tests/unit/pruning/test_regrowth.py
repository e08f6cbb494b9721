"""Drop and grow: the count exact, what grows from zero, and the choice of a plain loop from the papers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.regrowth import Regrowth, cosine_fraction, regrow_at_random, regrow_by_gradient

# Small whole numbers tie often, and are zero often.
numbers = st.integers(-3, 3)
fractions = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0])


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, gradient, mask) of one layer; what the mask leaves out has values, too."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    size = rows * columns
    weight, gradient = (draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(2))
    alive = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    values = [torch.tensor(each, dtype=torch.float32) for each in (weight, gradient)]
    return (
        values[0].reshape(rows, columns),
        values[1].reshape(rows, columns),
        torch.tensor(alive).reshape(rows, columns),
    )


def at_random(weight: Tensor, alive: Tensor, fraction: float, seed: int = 0) -> Regrowth:
    return regrow_at_random(weight, alive, fraction=fraction, generator=torch.Generator().manual_seed(seed))


def places(mask: Tensor) -> set[int]:
    return set(mask.flatten().nonzero().flatten().tolist())


def rigl_by_the_paper(
    weight: Tensor, gradient: Tensor, alive: Tensor, fraction: float
) -> tuple[set[int], set[int]]:
    """Algorithm 1: (alive, starts at zero) by index; a layer that is whole stays so."""
    w, g, active = weight.flatten().tolist(), gradient.flatten().tolist(), places(alive)
    count = int(fraction * len(active)) if len(active) < len(w) else 0
    drop = sorted(active, key=lambda i: (abs(w[i]), i))[:count]
    remaining = active - set(drop)
    candidates = [i for i in range(len(w)) if i not in remaining]
    grow = set(sorted(candidates, key=lambda i: (-abs(g[i]), i))[:count])
    return remaining | grow, grow - active


def set_leaves(weight: Tensor, alive: Tensor, fraction: float) -> set[int]:
    """What Mocanu et al. leave of the weights before others are drawn, by index."""
    w, active = weight.flatten().tolist(), places(alive)
    if len(active) == len(w):
        return active
    positive = sorted((i for i in active if w[i] > 0), key=lambda i: (w[i], i))
    negative = sorted((i for i in active if w[i] < 0), key=lambda i: (-w[i], i))
    gone = positive[: int(fraction * len(positive))] + negative[: int(fraction * len(negative))]
    return {i for i in active if w[i] != 0} - set(gone)


@given(layers(), fractions)
def test_rigl_is_the_algorithm_of_the_paper(layer: tuple[Tensor, Tensor, Tensor], fraction: float) -> None:
    weight, gradient, alive = layer
    after = regrow_by_gradient(weight, gradient, alive, fraction=fraction)
    assert (places(after.alive), places(after.grown)) == rigl_by_the_paper(weight, gradient, alive, fraction)


@given(layers(), fractions, st.integers(0, 100))
def test_set_drops_what_the_paper_drops_and_draws_from_all_others(
    layer: tuple[Tensor, Tensor, Tensor], fraction: float, seed: int
) -> None:
    weight, _, alive = layer
    after = at_random(weight, alive, fraction, seed)
    left = set_leaves(weight, alive, fraction)
    assert places(after.alive) - places(after.grown) == left
    assert not places(after.grown) & left


@given(layers(), fractions, st.integers(0, 100))
def test_the_count_stays_exact_and_what_was_dead_starts_at_zero(
    layer: tuple[Tensor, Tensor, Tensor], fraction: float, seed: int
) -> None:
    weight, gradient, alive = layer
    for after in (
        regrow_by_gradient(weight, gradient, alive, fraction=fraction),
        at_random(weight, alive, fraction, seed),
    ):
        assert after.alive.shape == after.grown.shape == alive.shape
        assert int(after.alive.sum()) == int(alive.sum())
        assert not (after.grown & ~after.alive).any()
        assert not (after.alive & ~alive & ~after.grown).any()


@given(layers(), fractions)
def test_values_behind_the_mask_decide_nothing(layer: tuple[Tensor, Tensor, Tensor], fraction: float) -> None:
    weight, gradient, alive = layer
    masked = weight * alive
    for one, other in (
        (
            regrow_by_gradient(weight, gradient, alive, fraction=fraction),
            regrow_by_gradient(masked, gradient, alive, fraction=fraction),
        ),
        (at_random(weight, alive, fraction), at_random(masked, alive, fraction)),
    ):
        assert torch.equal(one.alive, other.alive)
        assert torch.equal(one.grown, other.grown)


def test_rigl_by_hand() -> None:
    """Of five alive weights floor(0.5 x 5) = 2 go: 0.1 and -0.2. Of what is dead then 9 and 8 grow."""
    weight = torch.tensor([[5.0, 0.1, -0.2, 3.0, 0.0, 0.0, 4.0]])
    gradient = torch.tensor([[7.0, 8.0, 0.5, 9.9, 2.0, -9.0, 1.0]])
    alive = torch.tensor([[True, True, True, True, False, False, True]])
    after = regrow_by_gradient(weight, gradient, alive, fraction=0.5)
    assert places(after.alive) == {0, 3, 6, 5, 1}
    assert places(after.grown) == {5}  # 1 was dropped, and its gradient brings it back: it keeps its value


def test_set_by_hand() -> None:
    """Half of 1, 2, 3, 4: 1 and 2; half of -5, -1: -1; and the weight that is zero."""
    weight = torch.tensor([[4.0, 1.0, 0.0, 3.0], [2.0, -1.0, -5.0, 9.0]])
    alive = torch.tensor([[True, True, True, True], [True, True, True, False]])
    after = at_random(weight, alive, 0.5)
    assert places(after.alive & ~after.grown) == {0, 3, 6}
    assert len(places(after.grown)) == 4


def test_every_place_is_drawn_as_often_as_another() -> None:
    """Two of eight places a draw: 500 of 2000 for each, with a standard deviation of 19."""
    weight = torch.tensor([[9.0, 9.0, 1.0, 1.0] + [0.0] * 6])
    alive = weight != 0
    drawn: Counter[int] = Counter()
    for seed in range(2000):
        drawn.update(places(at_random(weight, alive, 0.5, seed).grown))
    assert drawn.keys() == set(range(2, 10))
    assert all(abs(count - 500) < 5 * 19 for count in drawn.values())


def test_a_layer_that_is_whole_stays_so() -> None:
    weight, alive = torch.tensor([[1.0, 0.0, -2.0]]), torch.ones(1, 3, dtype=torch.bool)
    for after in (regrow_by_gradient(weight, weight, alive, fraction=1.0), at_random(weight, alive, 1.0)):
        assert after.alive.all()
        assert not after.grown.any()


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.3), (20, 0.225), (30, 0.15), (40, 0.075), (60, 0.0), (61, 0.0), (1e9, 0.0)]
)
def test_the_fraction_falls_with_the_cosine(step: float, expected: float) -> None:
    """0.3 / 2 (1 + cos(pi t / 60)): cos of 0, pi / 3, pi / 2, 2 pi / 3, pi is 1, 1/2, 0, -1/2, -1."""
    assert cosine_fraction(step, start=0.3, end=60) == pytest.approx(expected, abs=1e-15)


def test_the_fraction_of_a_training_without_updates_is_zero() -> None:
    assert cosine_fraction(0, start=0.3, end=0) == 0.0


def test_what_cannot_be_done_is_refused() -> None:
    good, alive = torch.ones(1, 2), torch.tensor([[True, False]])
    bad = torch.tensor([[1.0, math.nan]])
    with pytest.raises(ValueError, match="the gradients contain NaN"):
        regrow_by_gradient(good, bad, alive, fraction=0.5)
    with pytest.raises(ValueError, match="the weights contain NaN"):
        at_random(bad, alive, 0.5)
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"fraction is .* it must be in"):
            regrow_by_gradient(good, good, alive, fraction=fraction)
