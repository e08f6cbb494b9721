"""Several networks of one architecture that run as one: their linear layers are one batched product.

The batches of the members lie behind each other, [members * N, ...], so that whatever acts on every image
by itself (activations, pooling, flattening, sums of branches) is called once for all of them, as it stands
in the network's own code. Linear layers multiply all members in one operation; other layers with parameters
run member by member.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

ALIGNMENT = 16  # numbers: 64 bytes of float32, where torch begins the memory of every tensor


class _BatchedLinear(torch.autograd.Function):
    """rows [members, N, in], weight [members, out, in], bias [members, out] or None -> [members, N, out].

    Torch's own gradient of a batched product multiplies the weight's factors in the other order than that of
    a single linear layer does, and rounds otherwise.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # torch's own type
        rows = _align(rows)
        ctx.save_for_backward(rows, weight)
        ctx.has_bias = bias is not None
        outputs = _empty((*rows.shape[:2], weight.shape[1]), like=rows)
        if bias is None:
            return torch.bmm(rows, weight.mT, out=outputs)
        return torch.baddbmm(bias[:, None], rows, weight.mT, out=outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        gradient = _align(gradient)
        of_weight = torch.bmm(gradient.mT, rows, out=_empty(weight.shape, like=rows))
        of_bias = gradient.sum(1) if ctx.has_bias else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias
        return torch.bmm(gradient, weight, out=_empty(rows.shape, like=rows)), of_weight, of_bias


class StackedLinear(nn.Module):
    """Linear layers as one batched product: inputs [members * N, ..., in] -> [members * N, ..., out].

    The members' parameters become views of the stacked ones: what changes one changes the other.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.members = len(layers)
        self.weight = _stack([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _stack(biases) if biases else None
        self._layers = list(layers)  # a list: no submodules, their parameters are these

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(self.members, -1, inputs.shape[-1])
        weight, bias = self._in_precision(rows.device.type)
        rows = rows.to(weight.dtype)
        outputs: Tensor = _BatchedLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])

    def _in_precision(self, device: str) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, in the precision of autocast where that is on."""
        if not torch.is_autocast_enabled(device):
            return self.weight, self.bias
        dtype = torch.get_autocast_dtype(device)
        return self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)

    def share_gradients(self) -> None:
        """Give every member's parameter its part of the gradient."""
        for name, stacked in self.named_parameters():
            if stacked.grad is not None:
                for layer, gradient in zip(self._layers, stacked.grad.unbind(0), strict=True):
                    getattr(layer, name).grad = gradient
                stacked.grad = None


class ParallelModule(nn.Module):
    """Modules that run beside each other, each on its own part of a batch [members * N, ...]."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = inputs.tensor_split(len(self.parts))
        return torch.cat([module(part) for module, part in zip(self.parts, parts, strict=True)])


def _empty(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Return memory for matrices [members, ...], each of which begins where a tensor of its own would.

    Matrix products may round otherwise where their factors or results begin elsewhere.
    """
    size = prod(shape[1:])
    if size % ALIGNMENT == 0:
        return like.new_empty(shape)
    padded = size + -size % ALIGNMENT
    strides = [prod(shape[position + 1 :]) for position in range(1, len(shape))]
    return like.new_empty(shape[0] * padded).as_strided(tuple(shape), (padded, *strides))


def _align(matrices: Tensor) -> Tensor:
    """Return matrices [members, ...] in memory that `_empty` returns."""
    if matrices[0].numel() % ALIGNMENT == 0 and matrices.is_contiguous():
        return matrices
    return _empty(matrices.shape, like=matrices).copy_(matrices)


def _stack(parameters: Sequence[Tensor]) -> nn.Parameter:
    """Return the parameters in one, [members, ...], and make each of them a view of its part."""
    stacked = nn.Parameter(_align(torch.stack([parameter.detach() for parameter in parameters])))
    for parameter, part in zip(parameters, stacked.detach().unbind(0), strict=True):
        parameter.data = part
    return stacked


class StackedNetwork(nn.Module):
    """Networks of one architecture as one: images [members * N, ...] -> logits [members * N, classes].

    It trains the members in place. ValueError for a network that cannot be stacked, by `stacking_conflict`.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        if reason := stacking_conflict(nets[0]):
            raise ValueError(reason)
        self.members = len(nets)
        self.net = _stack_modules(nets)
        self._linear = [module for module in self.net.modules() if isinstance(module, StackedLinear)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def share_gradients(self) -> None:
        """Give every parameter of the members its gradient, after a backward pass."""
        for layer in self._linear:
            layer.share_gradients()


def _stack_modules(nets: Sequence[nn.Module]) -> nn.Module:
    """Return one module for the same module of every network."""
    first = nets[0]
    if type(first) is nn.Linear:
        return StackedLinear(cast(list[nn.Linear], nets))
    if _own_tensors(first):
        return ParallelModule(nets)
    # A copy without its children: their stacked forms take their names.
    shell = deepcopy(first, {id(child): None for child in first.children()})
    for name, _ in first.named_children():
        setattr(shell, name, _stack_modules([net.get_submodule(name) for net in nets]))
    return shell


def stacking_conflict(net: nn.Module) -> str:
    """Return why networks like this one cannot be stacked; empty where they can."""
    modules = dict(net.named_modules())
    for name, module in modules.items():
        if _own_tensors(module) and list(module.children()):
            return f"{name or type(net).__name__} has parameters of its own beside its layers"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return f"{name or type(net).__name__} has hooks"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            return f"{name} drops out at random"
    parameters = [id(parameter) for module in modules.values() for parameter in module._parameters.values()]
    named = [identity for identity in parameters if identity != id(None)]
    return "" if len(set(named)) == len(named) else "two layers share a parameter"


def _own_tensors(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers that are not its children's."""
    own = (*module._parameters.values(), *module._buffers.values())
    return any(tensor is not None for tensor in own)


def uses_products_alone(net: nn.Module) -> bool:
    """Whether all layers with parameters are linear: only those run faster in a stack."""
    return all(type(module) is nn.Linear for module in net.modules() if _own_tensors(module))
