"""A stand-in for a CUDA device on machines without one: tensors that say they are on it, and no faster.

Within `cuda_double()` the device `cuda` exists. Its tensors lie in the memory of the CPU, and are told from
others by their storage. What a GPU refuses is refused: to compute with tensors of two devices, to give its
memory to NumPy. What makes the host wait for a GPU is counted in `waits`, as `torch.cuda.set_sync_debug_mode`
does: `item()`, `tolist()`, `cpu()`, `nonzero()`, indices that are boolean or come from the host, and copies
between devices that are not both from pinned memory and non-blocking. Bits are those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
GROUPING = "_group_tensors_by_device_and_dtype"
DEVICE = torch.device("cuda", 0)
# Operators whose result the host reads, or whose output's shape it has to know.
READ_BY_THE_HOST = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim}
READ_BY_THE_HOST |= {aten._unique2, aten.unique_consecutive, aten.unique_dim_consecutive}
FACTORIES = {
    "tensor",
    "as_tensor",
    "from_numpy",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "linspace",
    "eye",
}
FACTORIES |= {"rand", "randn", "randint", "randperm", "empty_strided", "frombuffer", "new_tensor", "stack"}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class CudaDouble:
    """The device's memory, and how often the host has waited for it, by operator.

    A copy to the device of more than `largest` bytes is refused, as where its memory is full.
    """

    def __init__(self) -> None:
        self.largest: int | None = None
        self.waits: Counter[str] = Counter()
        # By address, which no other storage has while there is a weak reference to this one.
        self._on_device: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        # Made by torch itself, in a formula of autograd: on a GPU it would be where its operands are.
        self._unplaced: dict[int, StorageWeakRef] = {}
        self.is_making = False  # a tensor, for Python

    def has(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the device."""
        return _address(tensor) in self._on_device

    def put(self, tensor: Tensor) -> Tensor:
        """Say of a tensor, and of all its views, that it is on the device."""
        self._on_device[_address(tensor)] = StorageWeakRef(tensor.untyped_storage())
        return tensor

    def leave_open(self, tensor: Tensor) -> None:
        """Let a tensor be on the device of those that it is first used with."""
        self._unplaced[_address(tensor)] = StorageWeakRef(tensor.untyped_storage())

    def is_open(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._unplaced

    def take(self, tensor: Tensor) -> Tensor:
        """Say of a tensor that it is on the host."""
        self._on_device.pop(_address(tensor), None)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._pinned

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned[_address(tensor)] = StorageWeakRef(tensor.untyped_storage())
        return tensor


@contextmanager
def cuda_double() -> Iterator[CudaDouble]:
    """Give this process a device `cuda` within the block."""
    double = CudaDouble()
    replaced = {
        "init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "default_generators": (torch.Generator().manual_seed(0),),
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(clip_grad, GROUPING, partial(_by_device, double)))
        stack.enter_context(_Kernels(double))
        stack.enter_context(_Calls(double))
        yield double


def _by_device(double: CudaDouble, tensors: Any, **options: Any) -> Any:
    """Group tensors as torch does, which looks for their device past all that Python says."""
    groups = torch.utils._foreach_utils._group_tensors_by_device_and_dtype(tensors, **options)
    return {
        (DEVICE if double.has(values[0][0]) else device, dtype): (values, indices)
        for (device, dtype), (values, indices) in groups.items()
    }


def _address(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or without storage
        return 0


def _is_cuda(device: object) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


class _Kernels(TorchDispatchMode):
    """Every operator below autograd: refuse to mix devices, count waits, and say where results are."""

    def __init__(self, double: CudaDouble) -> None:
        super().__init__()
        self.double = double

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(self.double.has, tensors)):
            result = func(*args, **kwargs)
            if not self.double.is_making and all(map(self.double.is_open, tensors)):
                for leaf in tree_leaves(result):
                    if isinstance(leaf, Tensor):
                        self.double.leave_open(leaf)
            return result
        if packet in READ_BY_THE_HOST:
            self.double.waits[packet.__name__] += 1
        if packet in INDEXED:
            self._check_indices(packet, args)
        elif packet is aten.copy_:
            self._check_copy(*args, **kwargs)
            return func(*args, **kwargs)
        else:
            self._refuse_mixture(func, tensors)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.double.put(leaf)
        return result

    def _refuse_mixture(self, func: Any, tensors: Sequence[Tensor]) -> None:
        # A number of the host may take part: a kernel gets it by its value.
        for tensor in tensors:
            if tensor.dim() and not self.double.has(tensor):
                if not self.double.is_open(tensor):
                    raise RuntimeError(
                        f"Expected all tensors to be on the same device: {func} of cuda:0, cpu"
                    )
                self.double.put(tensor)

    def _check_copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> None:
        pinned = self.double.is_pinned(source) or self.double.is_pinned(target)
        if self.double.has(target) != self.double.has(source) and not (non_blocking and pinned):
            self.double.waits["copy_"] += 1

    def _check_indices(self, packet: Any, args: Any) -> None:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if not self.double.has(args[0]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        if any(index.dtype in (torch.bool, torch.uint8) or not self.double.has(index) for index in indices):
            self.double.waits[packet.__name__] += 1


class _Calls(TorchFunctionMode):
    """Every call from Python: make tensors on the device, move them, and tell where they are."""

    def __init__(self, double: CudaDouble) -> None:
        super().__init__()
        self.double = double
        self.calls = {
            "to": self._to,
            "cpu": lambda tensor: self._move(tensor, "cpu"),
            "cuda": lambda tensor, *_, **options: self._move(tensor, "cuda", **options),
            "pin_memory": lambda tensor: self.double.pin(tensor.clone()),
            "is_pinned": self.double.is_pinned,
            "tolist": self._tolist,
            "numpy": self._numpy,
            "__array__": self._numpy,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        is_method = bool(args) and isinstance(args[0], Tensor)
        if name == "__get__" and is_method:
            return self._attribute(func, args[0])
        if is_method and name in self.calls:
            return self.calls[name](*args, **kwargs)
        return self._make(func, name, args, kwargs)

    def _attribute(self, func: Any, tensor: Tensor) -> Any:
        is_there = self.double.has(tensor)
        if func == Tensor.device.__get__ and is_there:
            return DEVICE
        return is_there if func == Tensor.is_cuda.__get__ else func(tensor)

    def _make(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function that may make a tensor, on the device or in pinned memory."""
        is_pinned, device = kwargs.pop("pin_memory", False), kwargs.get("device")
        to_device = _is_cuda(device) or (name == "new_tensor" and device is None and self.double.has(args[0]))
        if to_device:
            kwargs["device"] = "cpu"
        self.double.is_making = name in FACTORIES
        try:
            result = func(*args, **kwargs)
        finally:
            self.double.is_making = False
        if to_device:
            self.double.waits["copy_"] += name in ("tensor", "as_tensor", "asarray", "new_tensor")
            self.double.put(result)
        return self.double.pin(result) if is_pinned else result

    def _to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            kwargs |= {"device": args[0].device, "dtype": args[0].dtype}
            if self.double.has(args[0]):
                kwargs["device"] = DEVICE
            args = args[1:]
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is None:
            device = DEVICE if self.double.has(tensor) else tensor.device
        return self._move(
            tensor, device, dtype=dtype, copy=copy, non_blocking=non_blocking, memory_format=memory_format
        )

    def _move(
        self,
        tensor: Tensor,
        device: str | torch.device,
        *,
        dtype: torch.dtype | None = None,
        copy: bool = False,
        non_blocking: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Tensor:
        to_device, is_there = _is_cuda(device), self.double.has(tensor)
        if tensor.is_meta or torch.device(device).type == "meta":
            return tensor.to(device, dtype, copy=copy)
        options = {} if memory_format is None else {"memory_format": memory_format}
        moved = tensor.to(dtype or tensor.dtype, copy=copy or to_device != is_there, **options)
        if to_device == is_there:
            return moved
        if to_device and self.double.largest is not None and moved.nbytes > self.double.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if not (non_blocking and self.double.is_pinned(tensor)):
            self.double.waits["copy_"] += 1
        return self.double.put(moved) if to_device else self.double.take(moved)

    def _tolist(self, tensor: Tensor) -> Any:
        self.double.waits["tolist"] += self.double.has(tensor)
        return tensor.tolist()

    def _numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.double.has(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        return tensor.numpy(*args, **kwargs)
