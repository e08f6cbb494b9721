"""Layers chosen by name or pattern: what `protect` and `only` leave whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

from pruning.checks import names_of_layers
from pruning.dataflow import DataFlow, find_data_flow
from pruning.masking import prunable_layers


def find_protected_layers(
    net: nn.Module,
    protect: Collection[str],
    *,
    only: Collection[str] = (),
    flow: DataFlow | None = None,
    example_input: Tensor | None = None,
) -> frozenset[str]:
    """Return the names of the layers of `protect` and, with `only`, of all layers that are not in that.

    Both take names of layers, patterns over them by the rules of `fnmatch` (`layer4.*`; `*` crosses dots),
    `input`, the first layer that runs, and `output`, those that make the logits. ValueError for anything
    else, and for a pattern that matches no layer.
    """
    protect, only = names_of_layers("protect", protect), names_of_layers("only", only)
    if {"input", "output"} & {*protect, *only} and len(prunable_layers(net)) > 1:
        flow = flow or find_data_flow(net, example_input)
    names = _resolve_names(net, "protect", protect, flow)
    if only:
        names |= prunable_layers(net).keys() - _resolve_names(net, "only", only, flow)
    if only or any(is_pattern(net, name) for name in protect):
        _check_aliases(net, names, flow, example_input)
    return names


def _check_aliases(
    net: nn.Module, names: Collection[str], flow: DataFlow | None, example_input: Tensor | None
) -> None:
    """Raise ValueError for a layer called `input` or `output` whose name, recorded, would mean others."""
    aliases = {"input", "output"} & set(names)
    if aliases and len(prunable_layers(net)) > 1:
        flow = flow or find_data_flow(net, example_input)
        for alias in sorted(aliases):
            meant = flow.layers[:1] if alias == "input" else flow.outputs
            if alias not in meant or not set(meant) <= set(names):
                raise ValueError(
                    f"layer {alias!r} is left whole by a pattern or by `only`, and {alias!r} stands for "
                    f"{', '.join(meant)}: rename that layer of the network, or list the others by name"
                )


def is_pattern(net: nn.Module, name: str) -> bool:
    """Return whether a name is a pattern. A layer's own name never is, whatever its characters."""
    return any(character in name for character in "*?[") and name not in prunable_layers(net)


def _resolve_names(
    net: nn.Module, label: str, names: Collection[str], flow: DataFlow | None
) -> frozenset[str]:
    return frozenset[str]().union(*(match_layers(net, label, name, flow) for name in sorted(names)))


def match_layers(net: nn.Module, label: str, name: str, flow: DataFlow | None) -> frozenset[str]:
    """Return the layers that a name, a pattern, `input` or `output` stands for. ValueError for none."""
    layers = list(prunable_layers(net))
    if name in ("input", "output"):
        first, last = (flow.layers[:1], flow.outputs) if flow else (layers, layers)  # one layer is both
        return frozenset(first if name == "input" else last)
    if is_pattern(net, name):
        matches = frozenset(layer for layer in layers if fnmatchcase(layer, name))
        if not matches:
            raise ValueError(f"{label}: pattern {name!r} matches no layer; {_near_names(layers, name)}")
        return matches
    if name not in layers:
        raise ValueError(f"{label}: no layer {name!r}; {_near_names(layers, name)}")
    return frozenset({name})


def _near_names(layers: Sequence[str], name: str) -> str:
    """Return what a name could have meant: the layers of that module, or names that look alike."""
    inside = [f"{name}.*"] if any(layer.startswith(f"{name}.") for layer in layers) else []
    known = list(dict.fromkeys(["input", "output", *layers]))
    near = inside or get_close_matches(name, known, n=3, cutoff=0.4) or known[:7]
    return f"there are {', '.join(near)}"
