"""Multiply-adds (MACs) of one image by layer: all of them, wherever in the network they run.

The count is that of torch's FlopCounterMode (2 FLOPs per MAC) on a forward pass, by its formulas;
operators that do multiply-adds and are missing there are added (`FORMULAS`). fvcore counts the same pass
on its own, and where the two disagree `Profile.notes` says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from orchestrator.trial.fvcore_counts import count_by_fvcore
from pruning.eval_mode import eval_mode
from pruning.masking import prunable_layers

# What FlopCounterMode does not know and this module has no formula for, by the operator's name.
HEAVY = re.compile(
    r"(?!upsample)\w*(conv|mm$|mv$|matmul|linear|attention|attn|rnn|lstm$|gru$|cdist|dot|fft|sparse|linalg"
    r"|embedding_bag)"
)
Operator = Any  # torch's OpOverloadPacket
Product = tuple[int, Sequence[Any]]  # MACs, and the operands that are multiplied


@dataclass(frozen=True)
class Profile:
    """The cost of one image through a network as it stands.

    `macs` by the name of the prunable layer that does them, in the order of `prunable_layers`;
    `other_macs`: all others, by "(other) module: operator". `weights`: the parameter that holds each
    layer's weight, the first of its names if several layers share it. `train_macs`: of forward and
    backward together, `layer_train_macs` those of each prunable layer. `other_ops`: what fvcore counts
    elsewhere, by operator; `unsupported`: operators that it does not know, with their number of calls.
    `notes`: where the counters differ, or stay silent.
    """

    macs: Mapping[str, int]
    other_ops: Mapping[str, int]
    unsupported: Mapping[str, int]
    parameters: int
    other_macs: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    train_macs: int = 0
    notes: tuple[str, ...] = ()
    layer_train_macs: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        """MACs of the whole network."""
        return sum(self.macs.values()) + sum(self.other_macs.values())


def profile(net: nn.Module, input_shape: tuple[int, int, int]) -> Profile:
    """Count one forward pass of one image [1, C, H, W] in eval mode, a random one with a seed of its own.

    The mode of every module and torch's global generator are as before. A multiply-add belongs to the
    prunable layer whose weight it reads, wherever that is used, or else to the module that runs it.
    """
    floating = (parameter for parameter in net.parameters() if parameter.is_floating_point())
    like = next(floating, torch.empty(0))
    image = torch.rand((1, *input_shape), generator=torch.Generator().manual_seed(0)).to(like)
    with eval_mode(net), torch.random.fork_rng(devices=[]):
        tally = _count(net, image)
        fvcore = count_by_fvcore(net, image)
    layers = prunable_layers(net)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    weights = {name: layer._parameters.get("weight") for name, layer in layers.items()}
    return Profile(
        macs={name: tally.layers[name] for name in layers},
        other_ops=fvcore.other_ops,
        unsupported=fvcore.unsupported,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        other_macs=dict(tally.others),
        weights={name: names.get(id(weight), f"{name}.weight") for name, weight in weights.items()},
        train_macs=tally.train,
        notes=(*tally.notes(), *fvcore.differences(tally.modules)),
        layer_train_macs={name: tally.train_layers[name] for name in layers},
    )


def count_macs(net: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the MACs of one image, as `profile` counts them; a network on "meta" computes nothing."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    with eval_mode(net), torch.random.fork_rng(devices=[]):
        tally = _count(net, torch.zeros((1, *input_shape)).to(like))
    return sum(tally.layers.values()) + sum(tally.others.values())


@dataclass
class _Tally:
    """The counts of a forward pass so far; `running` holds the names of the modules that are running."""

    names: Mapping[nn.Module, str]
    layers: Counter[str] = field(default_factory=Counter)
    train_layers: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    modules: Counter[str] = field(default_factory=Counter)  # by name, with all inside
    by_formula: Counter[str] = field(default_factory=Counter)  # by operator: not FlopCounterMode's
    unknown: Counter[str] = field(default_factory=Counter)  # calls, by operator
    train: int = 0
    running: list[str] = field(default_factory=lambda: [""])
    owners: dict[int, list[str]] = field(default_factory=dict)  # storage of a weight -> its layers
    parameters: set[int] = field(default_factory=set)  # storages of all parameters

    def add(self, operator: Operator, products: Sequence[Product]) -> None:
        """Count one call of an operator."""
        macs = sum(count for count, _ in products)
        if operator in FORMULAS:
            self.by_formula[str(operator)] += macs
        # Backward, each operand that has a gradient takes as many again.
        train = sum(count * (1 + sum(map(_has_gradient, operands))) for count, operands in products)
        self.train += train
        if macs:
            storages = {_storage(operand) for _, operands in products for operand in operands}
            self._add_to_owner(macs, train, str(operator), storages)
        name = self.running[-1]
        while name:
            self.modules[name] += macs
            name = name.rpartition(".")[0]
        self.modules[""] += macs

    def add_unknown(self, operator: str) -> None:
        """Count the calls of an operator without a formula, if its name says that it does multiply-adds."""
        space, _, name = operator.rpartition(".")
        if space not in ("aten", "prim", "prims") or HEAVY.match(name):
            self.unknown[operator] += 1

    def _add_to_owner(self, macs: int, train: int, operator: str, storages: set[int]) -> None:
        """Add to the layer whose weight is read, or else to the running module."""
        module = self.running[-1]
        owners = [name for storage in storages for name in self.owners.get(storage, ())]
        is_computed = not storages & self.parameters  # a weight that a subclass computes from its own
        owner: str | None = None  # the name of a network that is one layer is empty
        if owners:
            owner = module if module in owners else owners[0]
        elif is_computed and any(module in names for names in self.owners.values()):
            owner = module
        if owner is not None:
            self.layers[owner] += macs
            self.train_layers[owner] += train
        else:
            self.others[f"(other) {module}: {operator}" if module else f"(other) {operator}"] += macs

    def notes(self) -> Iterator[str]:
        """Yield a note for every operator that FlopCounterMode does not count."""
        for operator, macs in self.by_formula.items():
            yield f"MACs: {operator} {macs:,}, which FlopCounterMode does not count"
        for operator, calls in self.unknown.items():
            yield f"MACs: {operator} is not counted ({calls} calls)"


def _storage(tensor: object) -> int:
    """Return an address that all views of a tensor share; 0 where there is none (`meta`)."""
    return tensor.untyped_storage().data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0  # type: ignore[attr-defined]


def _has_gradient(operand: object) -> bool:
    return isinstance(operand, Tensor) and operand.requires_grad


def _count(net: nn.Module, image: Tensor) -> _Tally:
    """Run one forward pass, and count every call where it belongs."""
    tally = _Tally({module: name for name, module in net.named_modules()})
    tally.parameters = {_storage(parameter) for parameter in net.parameters()} - {0}
    for name, layer in prunable_layers(net).items():
        storage = _storage(layer._parameters.get("weight"))
        tally.owners.setdefault(storage or -id(layer), []).append(name)
    with ExitStack() as stack:
        stack.enter_context(_tracking_modules(tally))
        stack.enter_context(_unfused_operators())
        stack.enter_context(torch.enable_grad())  # operands show what a backward pass would compute
        stack.enter_context(_Counter(tally))
        net(image)
    return tally


def _by_torch(operator: Operator, *args: Any, **keywords: Any) -> list[Product]:
    """FlopCounterMode's own formula: 2 FLOPs per MAC."""
    first = 1 if str(operator).split(".")[-1] in ("addmm", "baddbmm") else 0
    return [(int(flop_registry[operator](*args, **keywords)) // 2, args[first : first + 2])]


def _vectors(*args: Any, first: int = 0, **keywords: Any) -> list[Product]:
    """mv, dot, vdot, and addmv behind its bias: every entry of the first operand is multiplied once."""
    return [(args[first].numel(), args[first : first + 2])]


def _addbmm(bias: Tensor, left: Tensor, right: Tensor, **keywords: Any) -> list[Product]:
    return [(left.numel() * right.shape[-1], (left, right))]


def _trilinear(left: Tensor, weight: Tensor, right: Tensor, *args: Any, **keywords: Any) -> list[Product]:
    """nn.Bilinear: one for each weight and row."""
    return [(weight.numel() * prod(left.shape[:-1]), (left, weight, right))]


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **keywords: Any) -> list[Product]:
    return [(int(sdpa_flop_count(query.shape, key.shape, value.shape)) // 2, (query, key))]


def _recurrent(
    inputs: Tensor, weight: Tensor, recurrent: Tensor, *args: Any, **keywords: Any
) -> list[Product]:
    """One layer over all steps; the first step's state is given, and has no gradient."""
    rows, steps = inputs.numel() // inputs.shape[-1], inputs.shape[0]
    first_step = recurrent.numel() * (rows // steps)
    later_steps = recurrent.numel() * rows - first_step
    return [
        (weight.numel() * rows, (inputs, weight)),
        (first_step, (recurrent,)),
        (later_steps, (recurrent, recurrent)),
    ]


_aten = torch.ops.aten
FORMULAS: dict[Operator, Callable[..., list[Product]]] = {
    _aten.mv: _vectors,
    _aten.dot: _vectors,
    _aten.vdot: _vectors,
    _aten.addmv: partial(_vectors, first=1),
    _aten.addbmm: _addbmm,
    _aten._trilinear: _trilinear,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten.mkldnn_rnn_layer: _recurrent,
}


class _Counter(TorchDispatchMode):
    """Count as FlopCounterMode does, call by call, with the operands at hand.

    FlopCounterMode itself imports torch's compiler, which takes every worker two seconds.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, so there is nothing to be skipped

    def __init__(self, tally: _Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._tally = tally
        self._formulas = {op: partial(_by_torch, op) for op in flop_registry} | FORMULAS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operator = kwargs or {}, getattr(func, "overloadpacket", func)
        formula = self._formulas.get(operator)
        if formula is None and isinstance(func, OpOverload):
            with self:  # an operator that is made of others is counted as those
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out = func(*args, **kwargs)
        if formula is not None:
            self._tally.add(operator, formula(*args, out_val=out, **kwargs))
        else:
            self._tally.add_unknown(str(operator))
        return out


@contextmanager
def _tracking_modules(tally: _Tally) -> Iterator[None]:
    """Keep `tally.running` up to date, by global hooks: attention behaves otherwise with a module's own."""

    def begin(module: nn.Module, inputs: object) -> None:
        tally.running.append(tally.names.get(module, tally.running[-1]))

    def end(module: nn.Module, inputs: object, outputs: object) -> None:
        tally.running.pop()

    handles = [
        register_module_forward_pre_hook(begin),
        register_module_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unfused_operators() -> Iterator[None]:
    """Disable fused kernels, whose MACs cannot be counted: of attention in eval mode, and cuDNN's."""
    is_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_enabled)
