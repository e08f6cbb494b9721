"""Amounts by layer: a mapping from layers and patterns to fractions, and the amount of each pool.

The first entry that matches a layer decides its amount; a layer that none matches has amount 0. What
several layers make together, a channel of a residual stream or a shared weight, gets the smallest of their
amounts, as it stays whole where `protect` leaves one of them whole. Layers of one amount are a network of
their own: with scope `global` or `erk` they compete with each other, and with no layer of another amount.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from torch import Tensor, nn

from pruning.dataflow import DataFlow, find_data_flow
from pruning.hyperparameters import to_float
from pruning.layer_names import match_layers
from pruning.masking import Group, prunable_layers
from pruning.registry import Method

Amount = float | Mapping[str, float]
ALIASES = ("input", "output")
PERCENT = re.compile(r": (\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Share:
    """Pools that are pruned by one amount: names of weights or groups, or None for all."""

    amount: float
    names: frozenset[str] | None = None


def check_amount(amount: object) -> float | dict[str, float]:
    """Return a fraction in [0, 1], or a dictionary of them. ValueError for anything else."""
    if not isinstance(amount, Mapping):
        return _check_fraction("amount", amount)
    if not amount:
        raise ValueError("amount is an empty mapping; give a fraction, or {'layer4.*': 0.75, '*': 0.5}")
    for name in amount:
        if not isinstance(name, str):
            raise ValueError(f"amount: {name!r} is no layer; give names, patterns, `input` or `output`")
    return {name: _check_fraction(f"amount of {name!r}", value) for name, value in amount.items()}


def _check_fraction(label: str, value: object) -> float:
    fraction = to_float(value)
    if fraction is None or not 0 <= fraction <= 1:
        raise ValueError(f"{label} is {value!r}; it must be a fraction in [0, 1]")
    return fraction


def find_layer_amounts(
    net: nn.Module,
    amounts: Mapping[str, float],
    *,
    flow: DataFlow | None = None,
    example_input: Tensor | None = None,
) -> dict[str, float]:
    """Return the amount of every layer by name.

    ValueError for an entry that matches no layer, or only layers that entries before it match.
    """
    layers = list(prunable_layers(net))
    if len(layers) > 1 and not {*ALIASES}.isdisjoint({*amounts, *layers}):
        flow = flow or find_data_flow(net, example_input)
        _check_aliases(layers, flow)
    decided: dict[str, float] = {}
    for name, amount in amounts.items():
        matches = match_layers(net, "amount", name, flow)
        if decided.keys() >= matches:
            raise ValueError(
                f"amount: {name!r} decides no layer, as entries before it match all of its layers: the first "
                "match counts, so put it before them"
            )
        decided |= dict.fromkeys(matches - decided.keys(), amount)
    return {layer: decided.get(layer, 0.0) for layer in layers}


def _check_aliases(layers: Sequence[str], flow: DataFlow) -> None:
    """Raise ValueError for a layer called `input` or `output` that these words do not stand for alone."""
    for alias, meant in zip(ALIASES, (flow.layers[:1], flow.outputs), strict=True):
        if alias in layers and tuple(meant) != (alias,):
            raise ValueError(
                f"amount: a layer is called {alias!r}, and {alias!r} stands for {', '.join(meant)}: rename "
                "that layer of the network, or give one amount for all"
            )


def find_makers(net: nn.Module, group: Group) -> frozenset[str]:
    """Return the layers that make a group's units; of an attention with packed projections, those inside it.

    In a network of one layer, whose units are its input features, that is the layer.
    """
    layers = prunable_layers(net).keys()
    modules = {member.module for member in group.members if member.side not in ("in", "norm")}
    makers = {name for name in layers if any(name == m or name.startswith(f"{m}.") for m in modules)}
    return frozenset(makers or {member.module for member in group.members} & layers)


def find_pool_amounts(
    net: nn.Module,
    layer_amounts: Mapping[str, float],
    *,
    groups: Sequence[Group] | None,
    protected: Collection[str] = (),
) -> dict[str, tuple[float, frozenset[str]]]:
    """Return each weight or group by name with its amount, the smallest of its layers', and these layers.

    A layer that is not in `layer_amounts` has amount 0.
    """
    pools = dict(_layers_by_pool(net, groups, protected))
    return {
        pool: (min((layer_amounts.get(name, 0.0) for name in names), default=0.0), names)
        for pool, names in pools.items()
    }


def _layers_by_pool(
    net: nn.Module, groups: Sequence[Group] | None, protected: Collection[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    if groups is not None:
        yield from ((group.name, find_makers(net, group)) for group in groups)
        return
    layers_by_weight: dict[int, list[str]] = {}
    for name, layer in prunable_layers(net).items():
        layers_by_weight.setdefault(id(layer.weight), []).append(name)
    for names in layers_by_weight.values():
        if not {*names} & {*protected}:
            yield f"{names[0]}.weight", frozenset(names)


def share_out(
    net: nn.Module,
    amount: Amount,
    *,
    groups: Sequence[Group] | None,
    protected: Collection[str],
    example_input: Tensor | None = None,
) -> list[Share]:
    """Return the shares of the pools, one for each amount; a single one where all amounts are equal."""
    if not isinstance(amount, Mapping):
        return [Share(amount)]
    layer_amounts = find_layer_amounts(net, amount, example_input=example_input)
    pools = find_pool_amounts(net, layer_amounts, groups=groups, protected=protected)
    amounts = sorted({fraction for fraction, _ in pools.values()})
    if len(amounts) <= 1:
        return [Share(amounts[0] if amounts else max(layer_amounts.values()))]
    return [
        Share(value, frozenset(pool for pool, (fraction, _) in pools.items() if fraction == value))
        for value in amounts
    ]


def settle_amounts(
    net: nn.Module,
    layer_amounts: Mapping[str, float],
    *,
    groups: Sequence[Group] | None,
    protected: Collection[str],
) -> float | dict[str, float]:
    """Return the one amount, or each layer's by name, sorted: equal for amounts that prune equally.

    Layers without a say are left out: those at 0, protected ones, and classes where units go. Layers that
    make units together have the amount that these get.
    """
    pools = find_pool_amounts(net, layer_amounts, groups=groups, protected=protected)
    fractions = {fraction for fraction, _ in pools.values()}
    if len(fractions) <= 1:
        return next(iter(fractions), 0.0)
    settled: dict[str, float] = {}
    for fraction, names in pools.values():
        # A layer may make units of several groups; the largest is what its own amount allows.
        settled |= {name: max(fraction, settled.get(name, 0.0)) for name in names}
    return {name: settled[name] for name in sorted(settled) if settled[name] > 0}


def mean_amount(net: nn.Module, amounts: Mapping[str, float]) -> float:
    """Return the mean of the layers' amounts, 0 for a layer without one, each times its number of weights."""
    counts = {name: layer.weight.numel() for name, layer in prunable_layers(net).items()}
    return sum(counts[name] * amounts.get(name, 0.0) for name in counts) / sum(counts.values())


def check_one_amount(granularity: Method, schedule: Method) -> None:
    """Raise ValueError for amounts by layer where the method decides how many go."""
    if granularity.name == "nm":
        n, m = granularity.options["n"], granularity.options["m"]
        raise ValueError(
            f"granularity {n}:{m} removes {1 - n / m:g} of every row: it has no amounts by layer; "
            "leave layers whole with `protect` or `only`"
        )
    if schedule.traits.get("adaptive"):
        raise ValueError(
            f"schedule {schedule.label!r} decides itself how many go from each layer: it has no amounts by "
            "layer; give one amount, its ceiling"
        )


def amounts_text(amounts: Mapping[str, float]) -> str:
    """Return amounts by layer as text, `{"layer4.*": 75%, "*": 50%}`: YAML, exact, in their order."""
    entries = (f"{json.dumps(name)}: {_percent(amount)}" for name, amount in amounts.items())
    return f"{{{', '.join(entries)}}}"


def _percent(amount: float) -> str:
    # Decimal, as 100 * 0.07 is 7.000000000000001; `f`, as normalize writes 1E+2.
    return f"{Decimal(repr(amount)).scaleb(2).normalize():f}%"


def read_amounts(text: str) -> dict[str, float]:
    """Return the amounts by layer of a text by `amounts_text`."""
    decoder, amounts, position = json.JSONDecoder(), dict[str, float](), 1
    while position < len(text):
        name, end = decoder.raw_decode(text, position)
        number = PERCENT.match(text, end)
        if number is None:
            raise ValueError(f"{text!r:.80} is no text of amounts by layer")
        amounts[name] = float(Decimal(number[1]).scaleb(-2))
        position = number.end() + 2  # past `, `
    return amounts
