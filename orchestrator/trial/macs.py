"""How many multiply-adds one image costs, by layer: all of them, wherever in the network they run.

The count is that of torch's FlopCounterMode (2 FLOPs per MAC) on a forward pass, by its formulas;
operators that do multiply-adds and are missing there are added (`FORMULAS`). fvcore counts the same pass
on its own, and what the two do not agree on is in `Profile.notes`.
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
from pruning.masking import prunable_layers
from pruning.modes import eval_mode

# What FlopCounterMode does not know and this module has no formula for, by the operator's name.
HEAVY = re.compile(
    r"(?!upsample)\w*(conv|mm$|mv$|matmul|linear|attention|attn|rnn|lstm$|gru$|cdist|dot|fft|sparse|linalg"
    r"|embedding_bag)"
)
Operator = Any  # torch's OpOverloadPacket
Part = tuple[int, Sequence[Any]]  # MACs, and the operands that are multiplied


@dataclass(frozen=True)
class Profile:
    """Cost of one image through a network as it stands.

    `macs` by the name of the prunable layer that does them, in the order of `prunable_layers`;
    `other_macs`: all others, by "(other) module: operator". `weights`: the parameter that holds each
    layer's weight, the first of its names if several layers share it. `train_macs`: of forward and
    backward together. `other_ops`: what fvcore counts elsewhere, by operator; `unsupported`: operators
    that it does not know, with their number of calls. `notes`: where the counters differ, or stay silent.
    """

    macs: Mapping[str, int]
    other_ops: Mapping[str, int]
    unsupported: Mapping[str, int]
    parameters: int
    other_macs: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    train_macs: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total_macs(self) -> int:
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
        theirs = count_by_fvcore(net, image)
    layers = prunable_layers(net)
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    held = {name: layer._parameters.get("weight") for name, layer in layers.items()}
    return Profile(
        {name: tally.layers[name] for name in layers},
        theirs.others,
        theirs.unsupported,
        sum(parameter.numel() for parameter in net.parameters()),
        dict(tally.others),
        {name: named.get(id(weight), f"{name}.weight") for name, weight in held.items()},
        tally.train,
        (*_unknown(tally), *theirs.differences(tally.modules)),
    )


@dataclass
class _Tally:
    """What is counted as a pass goes on; `open` holds the names of the modules that are running."""

    names: Mapping[nn.Module, str]
    layers: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    modules: Counter[str] = field(default_factory=Counter)  # by name, with all inside
    added: Counter[str] = field(default_factory=Counter)  # by operator: not FlopCounterMode's
    unknown: Counter[str] = field(default_factory=Counter)  # calls, by operator
    train: int = 0
    open: list[str] = field(default_factory=lambda: [""])
    owners: dict[int, list[str]] = field(default_factory=dict)  # storage of a weight -> its layers
    parameters: set[int] = field(default_factory=set)  # storages of all parameters

    def add(self, operator: Operator, parts: Sequence[Part]) -> None:
        """Take down one call."""
        macs = sum(part for part, _ in parts)
        if operator in FORMULAS:
            self.added[str(operator)] += macs
        if macs:
            storages = {_storage(operand) for _, operands in parts for operand in operands}
            self._book(macs, str(operator), storages)
        # Backward, each operand that has a gradient takes as many again.
        self.train += sum(part * (1 + sum(map(_has_gradient, operands))) for part, operands in parts)
        name = self.open[-1]
        while name:
            self.modules[name] += macs
            name = name.rpartition(".")[0]
        self.modules[""] += macs

    def look_at(self, operator: str) -> None:
        """Take down an operator that looks as if it did multiply-adds, and that nothing counts."""
        space, _, name = operator.rpartition(".")
        if space not in ("aten", "prim", "prims") or HEAVY.match(name):
            self.unknown[operator] += 1

    def _book(self, macs: int, operator: str, storages: set[int]) -> None:
        here = self.open[-1]
        readers = [name for storage in storages for name in self.owners.get(storage, ())]
        computed = not storages & self.parameters  # a weight that a subclass computes from its own
        if readers:
            self.layers[here if here in readers else readers[0]] += macs
        elif computed and any(here in names for names in self.owners.values()):
            self.layers[here] += macs
        else:
            self.others[f"(other) {here}: {operator}" if here else f"(other) {operator}"] += macs


def _storage(tensor: object) -> int:
    """An address that the views of one tensor share; 0 where there is none (`meta`)."""
    return tensor.untyped_storage().data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0  # type: ignore[attr-defined]


def _has_gradient(operand: object) -> bool:
    return isinstance(operand, Tensor) and operand.requires_grad


def _count(net: nn.Module, image: Tensor) -> _Tally:
    """One pass, every call taken down where it belongs."""
    tally = _Tally({module: name for name, module in net.named_modules()})
    tally.parameters = {_storage(parameter) for parameter in net.parameters()} - {0}
    for name, layer in prunable_layers(net).items():
        storage = _storage(layer._parameters.get("weight"))
        tally.owners.setdefault(storage or -id(layer), []).append(name)
    with ExitStack() as stack:
        stack.enter_context(_opened(tally))
        stack.enter_context(_whole_operators())
        stack.enter_context(torch.enable_grad())  # tells what a backward pass would compute
        stack.enter_context(_Counter(tally))
        net(image)
    return tally


def _by_torch(operator: Operator, *args: Any, **keywords: Any) -> list[Part]:
    first = 1 if str(operator).split(".")[-1] in ("addmm", "baddbmm") else 0
    return [(int(flop_registry[operator](*args, **keywords)) // 2, args[first : first + 2])]


def _vectors(*args: Any, first: int = 0, **keywords: Any) -> list[Part]:
    """mv, dot, vdot, and addmv behind its bias: every entry of the first operand is multiplied once."""
    return [(args[first].numel(), args[first : first + 2])]


def _addbmm(bias: Tensor, left: Tensor, right: Tensor, **keywords: Any) -> list[Part]:
    return [(left.numel() * right.shape[-1], (left, right))]


def _trilinear(left: Tensor, weight: Tensor, right: Tensor, *args: Any, **keywords: Any) -> list[Part]:
    """nn.Bilinear: one for each weight and row."""
    return [(weight.numel() * prod(left.shape[:-1]), (left, weight, right))]


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **keywords: Any) -> list[Part]:
    return [(int(sdpa_flop_count(query.shape, key.shape, value.shape)) // 2, (query, key))]


def _recurrent(inputs: Tensor, weight: Tensor, recurrent: Tensor, *args: Any, **keywords: Any) -> list[Part]:
    """One layer over all steps; the first step's state is given, and has no gradient."""
    rows = inputs.numel() // inputs.shape[-1]
    steps = inputs.shape[0]
    first = recurrent.numel() * (rows // steps)
    rest = recurrent.numel() * rows - first
    return [(weight.numel() * rows, (inputs, weight)), (first, (recurrent,)), (rest, (recurrent, recurrent))]


_aten = torch.ops.aten
FORMULAS: dict[Operator, Callable[..., list[Part]]] = {
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
    """What FlopCounterMode does, call by call, with the operands at hand.

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
            with self:  # an operator that is made of others is seen as those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self._tally.add(operator, formula(*args, out_val=out, **kwargs))
        else:
            self._tally.look_at(str(operator))
        return out


@contextmanager
def _opened(tally: _Tally) -> Iterator[None]:
    """Keep `tally.open` while modules run; by global hooks, since attention looks at a module's own."""

    def begin(module: nn.Module, inputs: object) -> None:
        tally.open.append(tally.names.get(module, tally.open[-1]))

    def end(module: nn.Module, inputs: object, outputs: object) -> None:
        tally.open.pop()

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
def _whole_operators() -> Iterator[None]:
    """Without the fused kernels whose multiply-adds nobody sees: of attention in eval mode, and cuDNN's."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _unknown(tally: _Tally) -> Iterator[str]:
    for operator, macs in tally.added.items():
        yield f"MACs: {operator} {macs:,}, which FlopCounterMode does not count"
    for operator, calls in tally.unknown.items():
        yield f"MACs: {operator} is not counted ({calls} calls)"
